"""Local mteb tasks: questions made from the held-out rows of one source, so that scoring needs no download.

Three forms. *Retrieval*: the query of a test row must find its passage among the passages of the chosen rows. *Bitext mining*: a
text must find its translation among one text per concept, over all languages at once. *Classification*: mteb fits a
nearest-centroid classifier on vectors of the train split's texts and predicts the labels of the test split's.

What mteb would not notice is settled here: a text stands in a pool only once (of two copies, which tie, one would count as wrong),
and no question has two right answers of which only one is known. The order of a pool comes from hashes, so it gives nothing away.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

from datasets import Dataset
from fontTools.unicodedata import script
from mteb.abstasks import AbsTaskBitextMining, AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata
from sklearn.neighbors import NearestCentroid

from mlembed_core.artifacts import manifest_hash, read_manifest
from mlembed_core.config.evaluate import LocalTask, TaskType
from mlembed_core.data.rows import ROWS_FILE, SPLITS, read_rows
from mlembed_core.errors import DataError

COLUMNS = ("query", "passage", "lang", "label", "split")
LOCAL = "local/"  # start of a local task's dataset path, which is never looked up anywhere
UNDETERMINED_SCRIPT = "Zyyy"  # ISO 15924: rows name their language, not its script
NO_SCRIPTS = (UNDETERMINED_SCRIPT, "Zinh", "Zzzz")  # of digits and punctuation, of marks, of what Unicode has not assigned
MANY_LANGUAGES = "mul"  # ISO 639-2


@dataclass(frozen=True)
class Example:
    """What a task needs of a source's row. Texts are stripped, as mteb strips its documents."""

    query: str
    passage: str
    lang: str | None
    label: str | None


@dataclass(frozen=True)
class Retrieval:
    """Queries, documents, and for each query the documents that answer it (indices)."""

    queries: list[str]
    documents: list[str]
    answers: list[list[int]]


@dataclass(frozen=True)
class Bitext:
    """``sources[i]`` translates to ``targets[gold[i]]``; no text stands twice."""

    sources: list[str]
    targets: list[str]
    gold: list[int]


@dataclass(frozen=True)
class LabelledTexts:
    """Texts to fit a classifier on, and texts to predict the label of."""

    train: list[tuple[str, str]]
    test: list[tuple[str, str]]


def local_task(name: str, params: LocalTask, sources: Path) -> AbsTask:
    """The mteb task that ``params`` describes. Its rows are read now, so that bad data is found before a model is loaded.

    Args:
        name: of the task.
        sources: the folder with one folder per source.

    Raises:
        ArtifactError: the source's out is missing or damaged.
        DataError: the source has no rows for such a task; the message says what it lacks.
    """
    folder = sources / params.source
    manifest = read_manifest(folder, made_by=f"mlembed source {params.source}")
    rows = _read_examples(folder)
    where = f"task {name}: {folder / ROWS_FILE}"
    if not rows["test"]:
        found = ", ".join(f"{split} {len(held):,}" for split, held in sorted(rows.items()) if held) or "no rows at all"
        raise DataError(
            f"{where} has no rows with split = test (it has: {found}). Scores need rows that training never saw: give the source's "
            "files a `split` column with some test rows, or name another source in the task."
        )
    base, content, langs = _content(params, rows, where)
    metadata = TaskMetadata(
        name=name,
        description=f"Made from the test split of the source {params.source}.",
        prompt=manifest["params"].get("instruction"),
        dataset={"path": LOCAL + params.source, "revision": manifest_hash(folder)},
        type=base.mteb_type,
        category="t2c" if params.type is TaskType.CLASSIFICATION else "t2t",
        eval_splits=["test"],
        eval_langs=[_language_code(langs)],
        main_score=base.main_metric,
    )
    # mteb's tasks are classes with their metadata on the class, and some of its code relies on that.
    own = {
        "metadata": metadata,
        "content": content,
        "languages_of": _languages(rows["test"]),
        "parameters": params.model_dump(mode="json"),
    }
    return cast("AbsTask", type(name, (base,), own)())


def is_local(metadata: TaskMetadata) -> bool:
    """Whether a task was made here rather than by mteb."""
    return str(metadata.dataset["path"]).startswith(LOCAL)


def retrieval(rows: Sequence[Example], max_queries: int | None = None) -> Retrieval:
    """Queries and documents of the rows, each distinct text once. A query that several rows hold is answered by all their passages.

    Args:
        max_queries: keep this many queries, chosen by hash, and the documents that answer them.
    """
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[row.query].add(row.passage)
    queries = _in_hash_order(answers)[:max_queries]
    documents = _in_hash_order({text for query in queries for text in answers[query]})
    position = {text: index for index, text in enumerate(documents)}
    return Retrieval(queries, documents, [sorted(position[text] for text in answers[query]) for query in queries])


def bitext(rows: Sequence[Example], max_pairs: int | None = None) -> Bitext:
    """Pairs to mine, turned towards the texts that many pairs share.

    An English name has a translation in each of many languages, so the pairs as they stand would put many right answers into one
    pool. Here the pool holds one text of each concept, the one with the most partners, and every partner asks for it: a question
    per pair and language, one right answer each. A text that fits two members of the pool asks nothing, and neither does a pair of
    equal texts. Pairs that share no text keep their passage in the pool.

    Args:
        max_pairs: keep this many questions, chosen by hash; the pool stays whole.
    """
    partners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.query != row.passage:
            partners[row.query].add(row.passage)
            partners[row.passage].add(row.query)
    passages = {row.passage for row in rows}
    targets: set[str] = set()
    for text in sorted(partners, key=lambda text: (-len(partners[text]), text not in passages, _hash(text))):
        if any(partner not in targets and targets.isdisjoint(partners[partner]) for partner in partners[text]):
            targets.add(text)
    pool = _in_hash_order(targets)
    position = {text: index for index, text in enumerate(pool)}
    known = {text: found for text in partners if text not in targets and len(found := partners[text] & targets) == 1}
    sources = _in_hash_order(known)[:max_pairs]
    return Bitext(sources, pool, [position[next(iter(known[text]))] for text in sources])


def labelled_texts(train: Sequence[Example], test: Sequence[Example], max_texts: int | None = None) -> LabelledTexts:
    """Queries and passages of labelled rows, each distinct text once.

    Left out: a text with several labels (nobody could tell), a test text that stands in the train split (no longer held out), and
    a test text whose label the train split lacks (no classifier could name it).

    Args:
        max_texts: keep this many test texts, chosen by hash.
    """
    label_of, asked = _unambiguous(train), _unambiguous(test)
    known = set(label_of.values())
    held_out = [text for text in _in_hash_order(asked) if text not in label_of and asked[text] in known]
    return LabelledTexts(
        train=[(text, label_of[text]) for text in _in_hash_order(label_of)],
        test=[(text, asked[text]) for text in held_out[:max_texts]],
    )


def _content(params: LocalTask, rows: Mapping[str, Sequence[Example]], where: str) -> tuple[Any, Any, set[str]]:
    """The task's class, its data in mteb's form, and the languages of the rows."""
    test = rows["test"]
    langs = {row.lang for row in test if row.lang is not None}
    match params.type:
        case TaskType.RETRIEVAL:
            return LocalRetrieval, _retrieval_data(retrieval(test, params.max_queries)), langs
        case TaskType.BITEXT_MINING:
            mined = bitext(test, params.max_queries)
            if len(mined.targets) < 2:
                raise DataError(f"{where} holds {len(mined.sources)} pairs of different texts in its test split; bitext mining needs ≥ 2")
            return LocalBitextMining, _bitext_data(mined), langs | {"eng"} if langs else langs
        case TaskType.CLASSIFICATION:
            texts = labelled_texts(rows["train"], test, params.max_queries)
            if len({label for _, label in texts.train}) < 2 or not texts.test:
                raise DataError(
                    f"{where} gives {len(texts.train):,} labelled train texts and {len(texts.test):,} test texts with a label known "
                    "from them; a classification task needs at least two labels in split train, and labelled rows in split test. "
                    "Fill the `label` column, or make this a retrieval task."
                )
            return LocalClassification, _classification_data(texts), langs
    raise AssertionError(params.type)


def question_code(task: Any, text: str) -> str:
    """Language and script of a question of a local task, in mteb's form (``deu-Latn``); ``mul`` where rows of several languages hold it."""
    langs = task.languages_of.get(text, frozenset())
    language = next(iter(langs)) if len(langs) == 1 else MANY_LANGUAGES if langs else "eng"
    return f"{language}-{script_of(text)}"


def script_of(text: str) -> str:
    """The script (ISO 15924) of most of a text's letters, ``Zyyy`` where it has none."""
    counts = Counter(map(_script, text))
    found = [(count, name) for name, count in counts.items() if name not in NO_SCRIPTS]
    return max(found)[1] if found else UNDETERMINED_SCRIPT


@cache
def _script(character: str) -> str:
    return str(script(character))


def _languages(rows: Sequence[Example]) -> dict[str, frozenset[str]]:
    """Text → the languages of the rows that hold it."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.lang is not None:
            found[row.query].add(row.lang)
            found[row.passage].add(row.lang)
    return {text: frozenset(langs) for text, langs in found.items()}


class _Local:
    """The part that local tasks share: their data is already here."""

    content: ClassVar[Any]
    languages_of: ClassVar[dict[str, frozenset[str]]]
    parameters: ClassVar[dict[str, Any]]
    dataset: Any
    data_loaded: bool

    def load_data(self, **_: Any) -> None:
        """Hand mteb the data; nothing is downloaded."""
        self.dataset = self.content
        self.data_loaded = True


class LocalRetrieval(_Local, AbsTaskRetrieval):  # type: ignore[misc]  # mteb is not type-checked here
    """Retrieval scored by mteb; main score nDCG@10."""

    mteb_type = "Retrieval"
    main_metric = "ndcg_at_10"
    k_values = (1, 3, 5, 10, 20, 100)  # of the usual ones all but 1000, which is the whole of such a corpus


class LocalBitextMining(_Local, AbsTaskBitextMining):  # type: ignore[misc]
    """Bitext mining scored by mteb; main score accuracy, the share of texts whose nearest neighbour is their translation."""

    mteb_type = "BitextMining"
    main_metric = "accuracy"


class TextTable:
    """Texts with labels, in lists: what mteb's classification uses of a ``datasets.Dataset``, whose columns it would read row by
    row, which takes longer than all the rest of a small task.
    """

    def __init__(self, rows: Sequence[tuple[str, int]]) -> None:
        self._rows = rows
        self._columns: dict[str, list[Any]] = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, column: str) -> list[Any]:
        return self._columns[column]

    def select(self, indices: Iterable[int]) -> TextTable:
        """The rows at ``indices``, in that order."""
        return TextTable([self._rows[index] for index in indices])


class LocalClassification(_Local, AbsTaskClassification):  # type: ignore[misc]
    """Classification scored by mteb; main score accuracy.

    The classifier is the nearest centroid, fitted on mteb's eight texts a label. With a label per language, mteb's own choice, a
    logistic regression at its default penalty, is held back by that penalty on so few texts of unit length (accuracy .70 against
    .76 for the untrained embedded model). And mteb averages ten fits, since its tasks have few labels; here one fit sees
    thousands of texts, and all models the same ones.
    """

    mteb_type = "Classification"
    main_metric = "accuracy"
    evaluator_model = NearestCentroid()
    n_experiments = 1
    samples_per_label = 8


def _retrieval_data(content: Retrieval) -> dict[str, Any]:
    query_ids = [f"query-{index}" for index in range(len(content.queries))]
    document_ids = [f"document-{index}" for index in range(len(content.documents))]
    relevant = {query_id: {document_ids[index]: 1 for index in found} for query_id, found in zip(query_ids, content.answers, strict=True)}
    split = {
        "queries": Dataset.from_dict({"id": query_ids, "text": content.queries}),
        "corpus": Dataset.from_dict({"id": document_ids, "text": content.documents}),
        "relevant_docs": relevant,
        "top_ranked": None,
    }
    return {"default": {"test": split}}


def _bitext_data(content: Bitext) -> dict[str, Any]:
    # With `gold`, mteb lets the two sides differ in length. It encodes them in any order; they share no text, so that the vectors
    # do not depend on it.
    gold = list(enumerate(content.gold))
    return {"default": {"test": {"sentence1": content.sources, "sentence2": content.targets, "gold": gold}}}


def _classification_data(content: LabelledTexts) -> dict[str, Any]:
    labels = {label: index for index, label in enumerate(sorted({label for _, label in content.train}))}

    return {
        "default": {
            "train": TextTable([(text, labels[label]) for text, label in content.train]),
            "test": TextTable([(text, labels[label]) for text, label in content.test]),
        }
    }


def _read_examples(folder: Path) -> dict[str, list[Example]]:
    """The rows of a source by split; those of no split under ``"unsplit"``."""
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    table = read_rows(folder, COLUMNS)
    for query, passage, lang, label, split in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True):
        examples.setdefault(split or "unsplit", []).append(Example(query.strip(), passage.strip(), lang, label))
    return examples


def _unambiguous(rows: Sequence[Example]) -> dict[str, str]:
    """Text → its label, for texts with just one."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.label is not None:
            labels[row.query].add(row.label)
            labels[row.passage].add(row.label)
    return {text: next(iter(found)) for text, found in labels.items() if len(found) == 1}


def _language_code(langs: set[str]) -> str:
    """The language-Script code of a pool, as mteb wants it. Rows without a language (code, prose about code) are English here."""
    if not langs or langs == {"eng"}:
        return "eng-Latn"
    return f"{MANY_LANGUAGES if len(langs) > 1 else next(iter(langs))}-{UNDETERMINED_SCRIPT}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _in_hash_order(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=_hash)
