"""How the report says things: numbers with units, names of cuts, tasks and controls, and the findings in plain sentences.

Pictures, page and terminal table share these, so that one thing has one name everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlembed_core.config.grid import Submodel
from mlembed_core.evaluate.report.summarise import (
    Comparison,
    ControlSummary,
    Cost,
    SettingSummary,
    SubmodelSummary,
    SuiteSummary,
    best_submodel,
    smallest_within,
    whole_controls,
)

CONTROL_NAMES = {"untrained": "untrained", "word_tfidf": "word TF-IDF", "char_tfidf": "char TF-IDF", "bm25": "BM25"}
NONE = "–"
KEPT_SHARE = 0.9  # the share of the best average for which the smallest submodel is named
MAX_TASKS_NAMED = 6  # in one sentence


def score(value: float | None) -> str:
    """``0.603``, or a dash where there is none."""
    return NONE if value is None else f"{value:.3f}"


def percent(share: float | None) -> str:
    """``85 %``, or a dash where there is none."""
    return NONE if share is None else f"{100 * share:.0f} %"


def quantity(value: float, unit: str) -> str:
    """``11.4 MB``: three significant digits and a decimal prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            scaled = value / factor
            digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
            number = f"{scaled:.{digits}f}"
            return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {prefix}{unit}"
    return f"{value:g} {unit}"


def amount(value: float, cost: Cost) -> str:
    """A cost with its unit. Vectors are counted in whole bytes: powers of two look odd in thousands."""
    return f"{value:,.0f} B" if cost is Cost.VECTOR else quantity(value, "FLOP" if cost is Cost.FLOPS else "B")


def cut(submodel: SubmodelSummary, shape: Submodel) -> str:
    """The axes that were cut, e.g. ``2 layers · dim 64``; ``uncut`` for the full model."""
    parts = []
    if submodel.layers < shape.layers:
        parts.append(f"{submodel.layers} layer{'s' if submodel.layers > 1 else ''}")
    if submodel.dim < shape.dim:
        parts.append(f"dim {submodel.dim}")
    if submodel.rank < shape.rank:
        parts.append(f"rank {submodel.rank}")
    return " · ".join(parts) or "uncut"


def control(entry: ControlSummary) -> str:
    """A control's name for people; an untrained model is the uncut one unless it says otherwise."""
    return CONTROL_NAMES.get(entry.name, entry.name.replace("_", " "))


def task(name: str) -> str:
    """``Docstring to code`` for ``DocstringToCode``: breaks where a narrow column needs it. Names with underscores stay as they are."""
    if "_" in name or not re.search(r"[a-z][A-Z]", name):
        return name
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|.", name)
    return " ".join([words[0], *(word if word.isupper() and len(word) > 1 else word.lower() for word in words[1:])])


def listing(items: Sequence[str], joint: str = "and") -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {joint} {items[-1]}"


def findings(suite: SuiteSummary) -> list[str]:
    """What a reader should take home, one sentence each, made from the numbers alone."""
    best = best_submodel(suite)
    shapes = {setting.name: setting.shape for setting in suite.settings}
    sentences = [
        f"The highest average is {score(best.average)}: {best.setting}, {cut(best, shapes[best.setting])}, "
        f"with {quantity(best.bytes, 'B')} of weights."
    ]
    small = smallest_within(suite, KEPT_SHARE)
    if small.bytes < best.bytes:
        sentences.append(
            f"The smallest with at least {percent(KEPT_SHARE)} of that has {quantity(small.bytes, 'B')}: {small.setting}, "
            f"{cut(small, shapes[small.setting])}, average {score(small.average)}."
        )
    for other in suite.settings[1:]:
        sentences += [_comparison(suite.settings[0], other), _certainty(suite, other)]
    controls = whole_controls(suite)
    sentences += [_control_finding(entry, suite) for entry in controls if any(entry.wins.values())]
    losing = [_subject(entry) for entry in controls if not any(entry.wins.values())]
    if losing:
        ours = "an uncut model" if len(suite.settings) > 1 else f"the uncut {suite.settings[0].name}"
        sentences.append(f"Nowhere does {listing(losing, 'or')} score higher than {ours}.")
    return [sentence for sentence in sentences if sentence]


def _comparison(first: SettingSummary, other: SettingSummary) -> str:
    """How two settings do when cut in the same way, all equal cuts counted."""
    cuts = {cut(submodel, first.shape): submodel for submodel in first.submodels}
    pairs = [(cut(submodel, other.shape), submodel, cuts.get(cut(submodel, other.shape))) for submodel in other.submodels]
    same = [(name, theirs.average, ours.average) for name, theirs, ours in pairs if ours is not None]
    really_cut = [item for item in same if item[0] != "uncut"]
    if not really_cut:
        return ""
    ahead = sum(theirs > ours for _, theirs, ours in really_cut)
    name, theirs, ours = max(really_cut, key=lambda item: abs(item[1] - item[2]))
    sentence = (
        f"Cut in the same way, {other.name} scores higher than {first.name} at {ahead} of {len(really_cut)} cuts; "
        f"the largest difference is at {name}, {score(theirs)} to {score(ours)}"
    )
    for uncut, theirs_full, ours_full in same:
        if uncut == "uncut":
            sentence += f". Uncut it is {score(theirs_full)} to {score(ours_full)}"
    return sentence + "."


def _certainty(suite: SuiteSummary, other: SettingSummary) -> str:
    """At how many equal cuts the difference from the first setting is more than chance."""
    found = [item for item in suite.comparisons if item.setting == other.name and item.against == suite.settings[0].name]
    if not found:
        return ""
    higher, lower = sum(item.low > 0 for item in found), sum(item.high < 0 for item in found)
    certain = [f"{word} at {count}" for word, count in (("higher", higher), ("lower", lower)) if count]
    return (
        f"Question by question, {other.name} is {' and '.join(certain)} of {len(found)} equal cuts, the uncut model among them, with "
        f"{percent(found[0].level)} confidence{_undecided(len(found) - higher - lower)}."
        if certain
        else f"Question by question, none of the {len(found)} differences at equal cuts is certain."
    )


def _undecided(count: int) -> str:
    return f"; {count} {'is' if count == 1 else 'are'} undecided" if count else ""


def difference(value: float) -> str:
    """``+0.068``, with a true minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def interval(item: Comparison) -> str:
    """``0.053 … 0.082``."""
    return f"{item.low:.3f} … {item.high:.3f}".replace("-", "−")


def system(label: str) -> str:
    """A column of the tables by language: a control by its name for people."""
    return CONTROL_NAMES.get(label, label)


def _subject(entry: ControlSummary) -> str:
    return "the untrained model" if entry.name == "untrained" else control(entry)


def _control_finding(entry: ControlSummary, suite: SuiteSummary) -> str:
    """Where a control, which wins somewhere, beats all uncut models, and where only some of them."""
    names = list(entry.wins)
    keys = ["average", *(item.name for item in suite.tasks)]
    beats_all = [key for key in keys if all(key in entry.wins[name] for name in names)]
    subject = _subject(entry)
    everyone = f"the uncut {names[0]}" if len(names) == 1 else f"{'both' if len(names) == 2 else 'all'} uncut models"
    text = f"{subject[0].upper()}{subject[1:]} scores higher than {everyone} {_where(entry, suite, beats_all) if beats_all else 'nowhere'}"
    for name in names:
        more = [key for key in keys if key in entry.wins[name] and key not in beats_all]
        if more:
            text += f"; higher than {name} alone {_where(entry, suite, more, [name])}"
    return text + "."


def _where(entry: ControlSummary, suite: SuiteSummary, keys: Sequence[str], against: Sequence[str] = ()) -> str:
    """``on average (0.638 to 0.610) and on Cldr bitext (0.365 to 0.277)``: the control's score, then our best uncut one."""
    references = [setting.submodel(setting.reference) for setting in suite.settings if not against or setting.name in against]
    parts = []
    if "average" in keys:
        parts.append(f"on average ({score(entry.average)} to {score(max(item.average for item in references))})")
    tasks = [key for key in keys if key != "average"]
    named = [
        f"{task(key)} ({score(entry.scores[key])} to {score(max(item.scores[key] for item in references))})"
        for key in tasks[:MAX_TASKS_NAMED]
    ]
    if len(tasks) > MAX_TASKS_NAMED:
        named.append(f"{len(tasks) - MAX_TASKS_NAMED} more")
    if tasks:
        parts.append(f"on {len(tasks)} of {len(suite.tasks)} tasks: {listing(named)}")
    return " and ".join(parts)


def task_type(name: str) -> str:
    """``Bitext mining`` for ``BitextMining`` and ``bitext_mining``."""
    words = task(name).replace("_", " ")
    return words[0].upper() + words[1:]


def sizes(values: Sequence[int]) -> str:
    """``8, 16, 32``."""
    return ", ".join(str(value) for value in values) or NONE


def search_command(submodel: SubmodelSummary, shape: Submodel) -> str:
    """How to try a submodel from the command line."""
    flags = [f" --{axis} {size}" for axis, size in _cut_axes(submodel, shape)]
    return f'mlembed search "what you look for" --model models/{submodel.setting}{"".join(flags)}'


def load_call(submodel: SubmodelSummary, shape: Submodel) -> str:
    """How to load a submodel in Python."""
    arguments = [f", {axis}={size}" for axis, size in _cut_axes(submodel, shape)]
    return f'mlembed_core.load("models/{submodel.setting}"{"".join(arguments)})'


def _cut_axes(submodel: SubmodelSummary, shape: Submodel) -> list[tuple[str, int]]:
    sizes_of = {axis: (getattr(submodel, axis), getattr(shape, axis)) for axis in ("layers", "dim", "rank")}
    return [(axis, size) for axis, (size, full) in sizes_of.items() if size < full]
