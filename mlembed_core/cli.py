"""The command line, ``mlembed``: one command per stage (as ``dvc.yaml`` calls them), and the commands for people.

Imports stand inside the commands: ``mlembed --help`` must not wait for torch. Errors of the project's own family are printed
without a traceback and set the exit code (see ``errors.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol

import typer

from mlembed_core import lifeline
from mlembed_core.allocator import keep_freed_memory
from mlembed_core.artifacts import Workspace
from mlembed_core.config.checks import Policy
from mlembed_core.config.model import Pooling
from mlembed_core.errors import ArtifactError, MachineError, MlembedError
from mlembed_core.export.kinds import Format, StoredType, VectorType

app = typer.Typer(
    name="mlembed",
    help="Train, score, ship and promote a family of multilingual text-embedding models (3D-ML).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
STAGES = "Stages (dvc.yaml calls these)"
REGISTRY = "Registry"
PEOPLE = "For people"
REFUSED = 11  # as registry.gate.PromotionRefusedError, whose module is slow to import

ModelOption = Annotated[str, typer.Option("--model", help="a folder (models/3d), models:/NAME@alias or models:/NAME/VERSION")]
LayersOption = Annotated[int | None, typer.Option("--layers", min=1, help="use the first layers only")]
DimOption = Annotated[int | None, typer.Option("--dim", min=1, help="cut vectors to this length")]
RankOption = Annotated[int | None, typer.Option("--rank", min=1, help="cut the token table to this rank")]
ColumnOption = Annotated[str | None, typer.Option("--column", help="key or column that holds the text (default: text)")]
InstructionOption = Annotated[str | None, typer.Option("--instruction", help="what the queries look for, put in front of each")]
VectorsOption = Annotated[VectorType, typer.Option("--vectors", help="float32, int8 (a quarter) or binary (a 32nd of the size)")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]


def _workspace() -> Workspace:
    """The workspace around the current folder, its whole parameter file checked before anything is touched."""
    from mlembed_core.config.load import load_all
    from mlembed_core.config.params import Params

    workspace = Workspace.find()
    load_all(workspace.params_file, Params)
    return workspace


@app.command(rich_help_panel=STAGES)
def source(name: Annotated[str, typer.Argument(help="a key of `sources` in configs/params.yaml")]) -> None:
    """Build one source: checked text rows, as parquet."""
    from mlembed_core.stages import source as stage

    stage.run(_workspace(), name)


@app.command(rich_help_panel=STAGES)
def tokenizer() -> None:
    """Train the tokenizer on the sources, or take the one named in the parameters."""
    from mlembed_core.stages import tokenizer as stage

    stage.run(_workspace())


@app.command(rich_help_panel=STAGES)
def tokenize(name: Annotated[str, typer.Argument(help="a key of `sources`")]) -> None:
    """Tokenise one source: rows with query ids inline, documents once."""
    from mlembed_core.stages import tokenize as stage

    stage.run(_workspace(), name)


@app.command(rich_help_panel=STAGES)
def backbone() -> None:
    """Make the weights that every setting starts from."""
    from mlembed_core.stages import backbone as stage

    stage.run(_workspace())


@app.command(rich_help_panel=STAGES)
def cache() -> None:
    """Join the tokenised sources into the memory-mapped training cache."""
    from mlembed_core.stages import cache as stage

    stage.run(_workspace())


@app.command(rich_help_panel=STAGES)
def card() -> None:
    """Describe the data: rows, tokens, languages, scripts, licences, lengths, what was dropped; as a page and a picture."""
    from mlembed_core.stages import card as stage

    stage.run(_workspace())


@app.command(rich_help_panel=STAGES)
def train(setting: Annotated[str, typer.Argument(help="a key of `settings`")]) -> None:
    """Train one setting through `accelerate launch` (profile: MLEMBED_LAUNCHER, a file of configs/accelerate)."""
    from mlembed_core.train.launch import launch

    launch(_workspace(), setting)


@app.command(rich_help_panel=STAGES)
def evaluate(
    setting: Annotated[str | None, typer.Argument(help="a key of `settings`")] = None,
    suite: Annotated[str | None, typer.Argument(help="a key of `suites`")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="any model: a folder, models:/NAME@alias, ORG/NAME@COMMIT of the hub"),
    ] = None,
    suite_option: Annotated[
        str | None, typer.Option("--suite", help="with --model: a suite's name, a benchmark of mteb, or tasks of mteb with commas between")
    ] = None,
    layers: LayersOption = None,
    dim: DimOption = None,
    rank: RankOption = None,
    grid: Annotated[bool, typer.Option("--grid", help="with --model: all of evaluation.submodels that it has")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="with --model: the folder to write (default: under .work/scored)")] = None,
    instructions: Annotated[
        bool | None, typer.Option("--instructions/--no-instructions", help="with --model: mteb's instructions before queries")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score one setting's submodels on one suite with mteb; or, with --model and --suite, any model."""
    if model is None:
        if setting is None or suite is None:
            raise typer.BadParameter("name a setting and a suite, or give --model and --suite")
        only_with_model = {"--suite": suite_option, "--layers": layers, "--dim": dim, "--rank": rank, "--out": out, "--grid": grid or None}
        given = [name for name, value in {**only_with_model, "--instructions": instructions}.items() if value is not None]
        if given:
            raise typer.BadParameter(f"{', '.join(given)} belong to --model; a setting's submodels stand in configs/params.yaml")
        from mlembed_core.stages import evaluate as stage

        stage.run(_workspace(), setting, suite)
        return
    if suite_option is None or setting is not None:
        raise typer.BadParameter("--model goes with --suite, and without a setting")
    if grid and not layers is dim is rank is None:
        raise typer.BadParameter("--grid scores the cuts of the parameters; leave out --layers, --dim and --rank")
    from mlembed_core.config.evaluate import SubmodelParams
    from mlembed_core.registry.evaluate import evaluate_model

    cut = SubmodelParams(layers=layers, dim=dim, rank=rank)
    done = evaluate_model(model, suite_option, cut=cut, grid=grid, out=out, instructions=instructions)
    if as_json:
        _print_json(done.as_dict())
        return
    for name, scores in done.scores.items():
        typer.echo(f"{name}: " + ", ".join(f"{task} {score:.3f}" for task, score in scores.items()))
    typer.echo(f"table, mteb's result files and model-card sections: {done.folder}", err=True)


@app.command(rich_help_panel=STAGES)
def control(suite: Annotated[str, typer.Argument(help="a key of `suites`")]) -> None:
    """Score the controls (untrained model, TF-IDF, BM25) on one suite."""
    from mlembed_core.stages import control as stage

    stage.run(_workspace(), suite)


@app.command(rich_help_panel=STAGES)
def report() -> None:
    """Compare all scores: tables, pictures and one self-contained page."""
    from mlembed_core.stages import report as stage

    stage.run(_workspace())


@app.command(rich_help_panel=REGISTRY)
def register(
    setting: Annotated[str | None, typer.Argument(help="a key of `settings`")] = None,
    every: Annotated[bool, typer.Option("--all", help="register every setting")] = False,
    as_json: JsonOption = False,
) -> None:
    """Register a trained setting in MLflow (once per weights), with its scores and the report's pictures."""
    if (setting is None) != every:
        raise typer.BadParameter("name one setting, or give --all")
    from mlembed_core.registry.register import register as register_settings

    done = register_settings(_workspace(), None if setting is None else [setting])
    if as_json:
        _print_json([item.as_dict() for item in done])
    else:
        for item in done:
            typer.echo(item.summary)


@app.command(rich_help_panel=REGISTRY)
def promote(
    version: Annotated[str | None, typer.Argument(help="number, alias or setting (default: the best candidate)")] = None,
    why: Annotated[str, typer.Option("--why", help="kept in the record")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="put it through the gate, and move nothing")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a version the champion, if it passes the gate; a refusal lists every reason (exit code 11)."""
    from mlembed_core.registry.promote import promote as move

    done = move(_workspace(), version, why=why, dry_run=dry_run)
    refused = done.judgement is not None and not done.judgement.passed
    if done.judgement is not None and refused and not as_json:
        done.judgement.require()
    _tell(done, as_json=as_json)
    if refused:
        raise typer.Exit(REFUSED)


@app.command(rich_help_panel=REGISTRY)
def rollback(
    to: Annotated[str | None, typer.Option("--to", help="an earlier champion (default: the one before)")] = None,
    why: Annotated[str, typer.Option("--why", help="kept in the record")] = "",
    as_json: JsonOption = False,
) -> None:
    """Give the alias champion back to an earlier champion."""
    from mlembed_core.registry.promote import rollback as move

    _tell(move(_workspace(), to=to, why=why), as_json=as_json)


@app.command(rich_help_panel=REGISTRY)
def history(as_json: JsonOption = False) -> None:
    """Show every move of the champion: who, when, from, to, why."""
    from mlembed_core.registry.promote import history as read

    _tell(read(_workspace()), as_json=as_json)


@app.command(rich_help_panel=REGISTRY)
def lineage(
    model: Annotated[str, typer.Argument(help="models:/NAME@alias or models:/NAME/VERSION")],
    check: Annotated[bool, typer.Option("--check", help="recompute the hashes of what is on disk")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="print the graph, for Markdown")] = False,
    as_json: JsonOption = False,
) -> None:
    """Go from a registered version back to the raw text: run, commit, manifests, md5s, licences."""
    from mlembed_core.registry.lineage import lineage as trace

    done = trace(model, _workspace(), check=check)
    if mermaid:
        typer.echo(done.mermaid)
    else:
        _tell(done, as_json=as_json)
    if done.problems:
        raise ArtifactError(f"{len(done.problems)} things are not as recorded:\n  " + "\n  ".join(done.problems))


@app.command(rich_help_panel=REGISTRY)
def rescore(
    version: Annotated[str, typer.Argument(help="number, alias or setting")] = "champion",
    as_json: JsonOption = False,
) -> None:
    """Score a registered version on the gate's suites as they are today, so that a candidate can be compared with it."""
    from mlembed_core.registry.rescore import rescore as score

    _tell(score(_workspace(), version), as_json=as_json)


@app.command(rich_help_panel=PEOPLE)
def preset(
    name: Annotated[str, typer.Argument(help="a file of configs/presets, without .yaml")],
    catalogue: Annotated[
        str | None, typer.Option("--catalogue", help="a file of configs/sources: its sources take the place of the preset's")
    ] = None,
) -> None:
    """Put a preset in place as configs/params.yaml; the next `dvc repro` runs what changed."""
    from mlembed_core.config.presets import compose

    workspace = Workspace.find()
    workspace.params_file.write_text(compose(workspace.root / "configs" / "presets", name, catalogue=catalogue), encoding="utf-8")
    typer.echo(f"configs/params.yaml is now the preset {name}. Next: dvc repro")


@app.command(rich_help_panel=PEOPLE)
def migrate(
    config: Annotated[Path, typer.Argument(help="the config.json that a training of F2LLM or ML-Embed was started with")],
    base: Annotated[str, typer.Option("--on", help="the preset under it: what the file does not say is as there")] = "published",
    name: Annotated[str | None, typer.Option("--name", help="of the new preset (default: the file's experiment_id)")] = None,
    processes: Annotated[int | None, typer.Option("--processes", min=1, help="that the file's batch size was for")] = None,
    keys: Annotated[list[str] | None, typer.Option("--key", metavar="THEIRS=KNOWN", help="a key that this release calls otherwise")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the preset, write nothing")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a training configuration of the reference into a preset, and say what became of every key."""
    from mlembed_core.config import migrate as migration

    wrong = [key for key in keys or () if not all(key.partition("="))]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not of the form THEIRS=KNOWN", param_hint="--key")
    folder = Workspace.find().root / "configs" / "presets"
    renamed = dict(key.split("=", 1) for key in keys or ())
    done = migration.migrate(config, folder, base=base, name=name, processes=processes, renamed=renamed)
    path = None if dry_run else migration.write(done, folder)
    if as_json:
        _print_json({**done.as_dict(), "file": None if path is None else str(path)})
        return
    typer.echo(done.summary, err=True)
    typer.echo(done.text.rstrip() if path is None else f"{path} is a preset now. Look at it; then: mlembed preset {done.name}")


@app.command(rich_help_panel=PEOPLE)
def search(
    query: Annotated[str, typer.Argument(help="what to look for")],
    model: ModelOption,
    layers: LayersOption = None,
    dim: DimOption = None,
    rank: RankOption = None,
    file: Annotated[Path | None, typer.Option("--file", help="texts to search, .txt, .jsonl or .parquet (default: the sources)")] = None,
    column: ColumnOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="how many to show")] = 10,
    instruction: InstructionOption = None,
    vectors: VectorsOption = VectorType.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Find the texts nearest to a query, in a file or in the passages of the sources."""
    if not query.strip():
        raise typer.BadParameter("the query is empty", param_hint="QUERY")
    from mlembed_core.registry import search as engine

    keep_freed_memory()
    corpus = engine.corpus_of_sources(Workspace.find()) if file is None else engine.corpus_of_file(file, column=column)
    encoder, hits = engine.run(
        query, corpus, ref=model, layers=layers, dim=dim, rank=rank, top=top, instruction=instruction, precision=vectors
    )
    if as_json:
        found = {"query": query, "model": model, "submodel": encoder.submodel.name, "texts": len(corpus.texts)}
        _print_json({**found, "hits": [hit.as_dict() for hit in hits]})
        return
    typer.echo(f"{len(corpus.texts):,} texts, {model} at {encoder.submodel.name}", err=True)
    for hit in hits:
        typer.echo(f"{hit.rank:3d}  {hit.score:+.3f}  {' '.join(hit.text.split())[:160]}  [{hit.place}]")


@app.command(rich_help_panel=PEOPLE)
def encode(
    source_file: Annotated[Path, typer.Argument(metavar="INPUT", help="texts: .txt (one per line), .jsonl or .parquet")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="vectors: .npy or .parquet")],
    model: ModelOption,
    layers: LayersOption = None,
    dim: DimOption = None,
    rank: RankOption = None,
    column: ColumnOption = None,
    queries: Annotated[bool, typer.Option("--queries", help="encode queries instead of documents")] = False,
    instruction: InstructionOption = None,
    vectors: VectorsOption = VectorType.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Turn a file of texts into a file of unit vectors, one row per text; int8 and binary ones in the form of sentence-transformers."""
    if instruction is not None and not queries:
        raise typer.BadParameter("an instruction belongs to queries; add --queries", param_hint="--instruction")
    from mlembed_core.registry import search as engine

    keep_freed_memory()
    done = engine.encode_file(
        source_file,
        target,
        ref=model,
        layers=layers,
        dim=dim,
        rank=rank,
        column=column,
        queries=queries,
        instruction=instruction,
        precision=vectors,
    )
    if as_json:
        _print_json(done.as_dict())
    else:
        typer.echo(
            f"{done.file}: shape ({done.texts:,}, {done.dim}), {done.submodel}, {done.seconds:.1f} s, {done.texts_per_second:,.0f} texts/s"
        )


@app.command(rich_help_panel=PEOPLE)
def export(
    model: Annotated[str, typer.Argument(help="a folder (models/3d), models:/NAME@alias or models:/NAME/VERSION")],
    out: Annotated[Path | None, typer.Option("--out", help="the new folder (default: exports/, named by what is in it)")] = None,
    layers: LayersOption = None,
    dim: DimOption = None,
    rank: RankOption = None,
    form: Annotated[Format, typer.Option("--format", help="compat: stock model; factorised: small table")] = Format.COMPAT,
    dtype: Annotated[StoredType, typer.Option("--dtype", help="of the weights on disk")] = StoredType.FP32,
    instruction: InstructionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a submodel out as a small checkpoint of its own, and prove that it gives the same vectors."""
    from mlembed_core.export.export import export as write
    from mlembed_core.registry.resolve import resolve

    done = write(resolve(model), out, layers=layers, dim=dim, rank=rank, form=form, dtype=dtype, instruction=instruction)
    _tell(done, as_json=as_json)


@app.command(rich_help_panel=PEOPLE)
def push(
    folder: Annotated[Path, typer.Argument(help="what `mlembed export` wrote")],
    repo: Annotated[str, typer.Argument(help="owner/name on the hub")],
    licence: Annotated[str | None, typer.Option("--licence", help="as the hub spells it, e.g. apache-2.0 (default: none)")] = None,
    public: Annotated[bool, typer.Option("--public", help="make a new repository public")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show the files and the model card")] = False,
) -> None:
    """Put an export and its model card on the hub (HF_TOKEN from the environment)."""
    from mlembed_core.export.card import push as send

    try:
        workspace = Workspace.find()
    except MlembedError:
        workspace = None  # the card then tells less
    done = send(folder, repo=repo, licence=licence, workspace=workspace, private=not public, dry_run=dry_run)
    for name, size in done.files.items():
        typer.echo(f"{size:14,}  {name}", err=True)
    typer.echo(done.card if done.url is None else done.url)


@app.command(rich_help_panel=PEOPLE)
def serve(
    model: ModelOption,
    layers: LayersOption = None,
    dim: DimOption = None,
    rank: RankOption = None,
    host: Annotated[str, typer.Option("--host", help="address to listen on; another than loopback needs MLEMBED_API_KEY")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one")] = 8080,
    name: Annotated[str | None, typer.Option("--name", help="what clients call the model (default: as in --model)")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads that compute (default: torch's own)")] = None,
) -> None:
    """Serve a model with all its submodels over HTTP, as OpenAI's /v1/embeddings does; layers, dim and rank are upper limits."""
    from mlembed_core.registry.serving.run import serve as run

    run(model, layers=layers, dim=dim, rank=rank, host=host, port=port, name=name, threads=threads)


@app.command("import", rich_help_panel=PEOPLE)
def import_(
    folder: Annotated[Path, typer.Argument(help="a model in Hugging Face form, e.g. a released ML-Embed with U.pth and V.pth")],
    out: Annotated[Path | None, typer.Option("--out", help="the new folder (default: imported/ and the folder's name)")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=2, help="tokens of a text, EOS included")] = None,
    pooling: Annotated[Pooling | None, typer.Option("--pooling", help="default: last of a causal model, else mean")] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a checkpoint from elsewhere in, to be cut, scored, searched, exported or taught from like our own."""
    from mlembed_core.importing import import_folder

    done = import_folder(folder, out or Path("imported") / folder.resolve().name, max_length=max_length, pooling=pooling)
    _tell(done, as_json=as_json)


@app.command(rich_help_panel=PEOPLE)
def verify(
    folder: Annotated[Path, typer.Argument(help="what `mlembed export` wrote")],
    fingerprint: Annotated[str | None, typer.Option("--fingerprint", help="what the export printed, to know it from another")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check an export: its files are as written, and this machine's stack computes its vectors."""
    from mlembed_core.export.verify import verify as check

    done = check(folder, fingerprint=fingerprint)
    _tell(done, as_json=as_json)


@app.command(rich_help_panel=PEOPLE)
def prefetch(
    suite: Annotated[str | None, typer.Argument(help="a suite's name, a benchmark of mteb, or tasks of mteb with commas between")] = None,
    sources: Annotated[bool, typer.Option("--sources", help="instead of a suite's: the files of all sources")] = False,
    mirror: Annotated[Path | None, typer.Option("--mirror", help="a folder to fetch into, to carry to a machine without network")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="say what is where, fetch nothing")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch the datasets of a suite, or of the sources, from the hub: scoring itself never downloads."""
    if (suite is None) != sources:
        raise typer.BadParameter("name a suite, or give --sources")
    if suite is None:
        _prefetch_sources(mirror, only_list=only_list, as_json=as_json)
        return
    from mlembed_core.registry.evaluate import prefetch as fetch_all

    found = fetch_all(suite, mirror=mirror, only_list=only_list)
    if as_json:
        _print_json([item.__dict__ for item in found])
        return
    for item in found:
        typer.echo(f"{item.dataset}  {item.place}" + ("" if item.found or only_list else "  (fetched)"))
    typer.echo(f"{len(found)} datasets" if found else f"{suite} reads no dataset of the hub", err=True)


def _prefetch_sources(mirror: Path | None, *, only_list: bool, as_json: bool) -> None:
    from mlembed_core.stages.source import prefetch as fetch_all

    found = [
        {"source": name, "place": place, "fetched": fetched}
        for name, place, fetched in fetch_all(_workspace(), mirror=mirror, only_list=only_list)
    ]
    if as_json:
        _print_json(found)
        return
    for item in found:
        typer.echo(f"{item['source']}  {item['place']}" + ("  (fetched)" if item["fetched"] else ""))
    typer.echo(f"{len(found)} sources of the hub" if found else "no source of the parameters is from the hub", err=True)


@app.command(rich_help_panel=PEOPLE)
def mine(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="files of pairs, or globs: parquet, jsonl, csv")],
    out: Annotated[Path, typer.Option("--out", help="the parquet file to write; a source may name it")],
    model: Annotated[str | None, typer.Option("--model", help="find candidates with a model: a folder or models:/NAME@alias")] = None,
    lexical: Annotated[str | None, typer.Option("--lexical", help="or without one: tfidf or bm25")] = None,
    negatives: Annotated[int, typer.Option("--negatives", min=1, max=24, help="of a row")] = 24,
    top: Annotated[int, typer.Option("--top", min=1, help="ranks to look at")] = 100,
    skip: Annotated[int, typer.Option("--skip", min=0, help="first ranks to leave out: likely right too")] = 5,
    max_score: Annotated[
        float | None, typer.Option("--max-score", help="a negative's score is less (default: 0.8; bm25, which has no scale: none)")
    ] = None,
    max_share: Annotated[float, typer.Option("--max-share", min=0, help="and less than this share of the positive's")] = 0.95,
    too_few: Annotated[Policy, typer.Option("--too-few", help="rows with fewer negatives")] = Policy.DROP,
    instruction: InstructionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find hard negatives for pairs that come without any."""
    if (model is None) == (lexical is None):
        raise typer.BadParameter("give --model or --lexical")
    from mlembed_core.data.mining import LEXICAL, Rules
    from mlembed_core.mine import mine_files

    if lexical is not None and lexical not in LEXICAL:
        raise typer.BadParameter(f"{lexical!r} is none of {', '.join(LEXICAL)}", param_hint="--lexical")
    if max_score is None and lexical != "bm25":
        max_score = 0.8
    rules = Rules(top=top, skip=skip, max_score=max_score, max_share=max_share, keep=negatives)
    done = mine_files(inputs, out, rules=rules, too_few=too_few, model=model, lexical=lexical, instruction=instruction)
    _tell(done, as_json=as_json)


@app.command(rich_help_panel=PEOPLE)
def doctor(
    preset: Annotated[str | None, typer.Option("--preset", help="instead: what this preset takes in memory and disk")] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="with --preset: rows over all sources (default: 18 million)")] = None,
    machines: Annotated[
        int | None, typer.Option("--machines", min=1, help="with --preset: and the time on so many machines of 8 GPUs")
    ] = None,
    tflops: Annotated[float | None, typer.Option("--tflops", min=0.001, help="with --machines: that a step reaches on a GPU")] = None,
    gbits: Annotated[float | None, typer.Option("--gbits", min=0.001, help="with --machines: Gbit/s of a machine's network")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine and this clone for whatever would stop the pipeline."""
    if machines is not None and preset is None:
        raise typer.BadParameter("it belongs to --preset", param_hint="--machines")
    if preset is not None:
        _show_budget(preset, rows, machines, tflops, gbits, as_json=as_json)
        return
    from mlembed_core.doctor import Status, diagnose

    colours = {Status.OK: typer.colors.GREEN, Status.WARN: typer.colors.YELLOW, Status.FAIL: typer.colors.RED}
    findings = []
    for finding in diagnose():
        findings.append(finding)
        if not as_json:
            typer.secho(f"{finding.status:4}", fg=colours[finding.status], nl=False)
            typer.echo(f"  {finding.name}: {finding.message}" + (f"\n      → {finding.advice}" if finding.advice else ""))
    if as_json:
        _print_json([finding.as_dict() for finding in findings])
    failed = [finding.name for finding in findings if finding.status == Status.FAIL]
    if failed:
        raise MachineError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")


@app.command(rich_help_panel=PEOPLE)
def summary(as_json: JsonOption = False) -> None:
    """Print the report: scores, sizes, controls, and what to do next."""
    from mlembed_core.evaluate.report import table
    from mlembed_core.evaluate.report.summarise import Report

    found = Report.load(Workspace.find().reports / "report.json")
    if as_json:
        _print_json(found.to_json())
    else:
        table.show(found)


@app.command(rich_help_panel=PEOPLE)
def choose(
    max_mb: Annotated[float | None, typer.Option("--max-mb", min=0, help="weights on disk at most, in fp32, in 10⁶ bytes")] = None,
    max_vector_bytes: Annotated[int | None, typer.Option("--max-vector-bytes", min=4, help="a float32 vector at most")] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", min=0, max=1, help="at least this share of the best average")] = None,
    setting: Annotated[str | None, typer.Option("--setting", help="only submodels of this one")] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="which scores count (default: the report's only suite)")] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer which submodel to ship, from the report, and print the command that exports it."""
    from mlembed_core.evaluate.report.choose import Limits
    from mlembed_core.evaluate.report.choose import choose as pick
    from mlembed_core.evaluate.report.summarise import Report

    report = Report.load(Workspace.find().reports / "report.json")
    done = pick(report, Limits(max_mb, max_vector_bytes, min_score, setting), suite=suite)
    _tell(done, as_json=as_json)


@app.command(rich_help_panel=PEOPLE)
def latency(
    every: Annotated[bool, typer.Option("--all", help="every submodel of the report (default: uncut ones and Pareto lines)")] = False,
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads that compute")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Time the report's submodels on this machine, and write its page once more with the figures."""
    from mlembed_core.latency import measure

    _tell(measure(_workspace(), every=every, num_threads=threads), as_json=as_json)


@app.command(rich_help_panel=PEOPLE)
def quantised(
    every: Annotated[bool, typer.Option("--all", help="every submodel of the report (default: uncut ones and Pareto lines)")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what int8 and binary vectors keep of the report's scores, and write its page once more with the figures."""
    from mlembed_core.quantised import measure

    _tell(measure(_workspace(), every=every), as_json=as_json)


def _show_budget(preset: str, rows: int | None, machines: int | None, tflops: float | None, gbits: float | None, *, as_json: bool) -> None:
    from mlembed_core.budget import ASSUMED_GBITS, ASSUMED_TFLOPS, SPLIT_OVER, Cluster, durations, estimate
    from mlembed_core.config.presets import read

    workspace = Workspace.find()
    params = read(workspace.root / "configs" / "presets", preset)
    budget = estimate(params, root=workspace.root, rows=rows)
    cluster = None if machines is None else Cluster(machines, tflops or ASSUMED_TFLOPS, gbits or ASSUMED_GBITS)
    taken = {} if cluster is None else durations(params, cluster, root=workspace.root, rows=rows)
    if as_json:
        _print_json({**budget.as_dict(), "durations": {setting: duration.as_dict() for setting, duration in taken.items()}})
        return
    count = budget.parameters
    typer.echo(f"{preset}: {count.total / 1e6:,.1f} M parameters (table {count.table / 1e6:,.1f}, layers {count.layers / 1e6:,.1f})")
    for setting, parts in budget.gpu.items():
        split = sum(budget.gpu_split[setting].values()) / 2**30
        typer.echo(f"memory per GPU, setting {setting}: {sum(parts.values()) / 2**30:.1f} GiB")
        for part, size in parts.items():
            typer.echo(f"  {size / 2**30:9.2f} GiB  {part}")
        typer.echo(f"  {split:9.2f} GiB  in all, where {SPLIT_OVER} GPUs split the weights (MLEMBED_LAUNCHER=fsdp2)")
    typer.echo(f"disk, for {budget.rows:,} rows (DVC's cache holds a second copy unless the file system shares it)")
    for stage, size in budget.disk.items():
        typer.echo(f"  {size / 2**30:9.2f} GiB  {stage}" + ("  (its files are not there yet)" if not size else ""))
    if cluster is None:
        return
    assumed = [word for word, given in (("TFLOP/s", tflops), ("Gbit/s", gbits)) if given is None]
    typer.echo(
        f"time on {cluster.machines} × {SPLIT_OVER} GPUs at {cluster.tflops:g} TFLOP/s a GPU and {cluster.gbits:g} Gbit/s a machine"
        + (f"; assumed, not measured: {', '.join(assumed)}" if assumed else "")
    )
    for setting, duration in taken.items():
        best, worst = duration.hours_split
        typer.echo(f"  setting {setting}: {duration.steps:,} steps of {duration.flops:.2g} FLOP, {duration.tokens_per_gpu:,} tokens a GPU")
        typer.echo(
            f"    whole weights   {duration.hours:9.1f} h  ({duration.compute:.3f} s compute + {duration.network:.3f} s network a step)"
        )
        typer.echo(f"    split weights   {best:9.1f} … {worst:.1f} h  ({duration.network_split:.3f} s network a step, beside the compute)")


class _Result(Protocol):
    """What a command has to say, for machines and for people."""

    def as_dict(self) -> dict[str, Any]: ...

    @property
    def summary(self) -> str: ...


def _tell(done: _Result, *, as_json: bool) -> None:
    if as_json:
        _print_json(done.as_dict())
    else:
        typer.echo(done.summary)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def main() -> NoReturn:
    """Entry point of the console script."""
    _depend_on_dvc()
    lifeline.hold()
    try:
        status = app(standalone_mode=False)
    except MlembedError as error:
        _fail(str(error), error.exit_code)
    except typer.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted; outs that were complete before are untouched", 130)
    except Exception as error:
        # Click's usage errors (unknown command, missing argument) know how to show themselves.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        raise
    # With standalone_mode off, typer returns the code of an Exit instead of leaving with it.
    sys.exit(status if isinstance(status, int) else 0)


def _depend_on_dvc() -> None:
    """Let a stage die with the DVC that runs it: killed, DVC would leave it running, and the next attempt would write beside it."""
    if "DVC_STAGE" not in os.environ:  # DVC sets it for every command that it runs
        return
    import psutil

    for process in psutil.Process().parents():  # a shell stands in between
        with contextlib.suppress(psutil.Error):
            if any(Path(part).name == "dvc" for part in process.cmdline()[:3]):
                os.environ[lifeline.DIES_WITH] = ",".join(filter(None, [os.environ.get(lifeline.DIES_WITH), str(process.pid)]))
                return


def _fail(message: str, code: int) -> NoReturn:
    typer.secho(f"mlembed: {message}", err=True, fg=typer.colors.RED)
    sys.exit(code)
