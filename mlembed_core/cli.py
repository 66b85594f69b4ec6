"""The command line, ``mlembed``: one command per stage (as ``dvc.yaml`` calls them), and the commands for people.

Imports stand inside the commands: ``mlembed --help`` must not wait for torch. Errors of the project's own family are printed
without a traceback and set the exit code (see ``errors.py``).
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import MlembedError

app = typer.Typer(
    name="mlembed",
    help="Train, score, ship and promote a family of multilingual text-embedding models (3D-ML).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
STAGES = "Stages (dvc.yaml calls these)"


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
def train(setting: Annotated[str, typer.Argument(help="a key of `settings`")]) -> None:
    """Train one setting through `accelerate launch` (profile: MLEMBED_LAUNCHER, a file of configs/accelerate)."""
    from mlembed_core.train.launch import launch

    launch(_workspace(), setting)


@app.command(rich_help_panel=STAGES)
def evaluate(
    setting: Annotated[str, typer.Argument(help="a key of `settings`")],
    suite: Annotated[str, typer.Argument(help="a key of `suites`")],
) -> None:
    """Score one setting's submodels on one suite with mteb."""
    from mlembed_core.stages import evaluate as stage

    stage.run(_workspace(), setting, suite)


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


def main() -> NoReturn:
    """Entry point of the console script."""
    try:
        app(standalone_mode=False)
    except MlembedError as error:
        _fail(str(error), error.exit_code)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
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
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    typer.secho(f"mlembed: {message}", err=True, fg=typer.colors.RED)
    sys.exit(code)
