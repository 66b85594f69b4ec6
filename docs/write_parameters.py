"""The reference of ``configs/params.yaml``, from its schema: ``python -m docs.write_parameters --write`` writes ``docs/parameters.md``.

Without ``--write`` it prints. Keys, types, bounds, defaults and words are those of the pydantic models, so there is nothing to keep in
step by hand; a contract test holds the page to them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlembed_core.config.params import Params

PAGE = Path(__file__).parent / "parameters.md"
HEAD = """# Parameters

Every key of [configs/params.yaml](../configs/params.yaml), the one file that can change a result. Written by
`python -m docs.write_parameters --write` from the schema that reads the file; an unknown key or a value out of bounds stops every
command, with its path. `mlembed preset NAME` puts a preset of [configs/presets](../configs/presets) in its place. `NAME` stands for names
that you choose (a-z, 0-9 and _; a task's may have capitals), `KIND` for retrieval, clustering or classification.
"""
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
ANY = "NAME"  # a key that the user chooses
Fragment = Mapping[str, Any]  # of a JSON schema


def page() -> str:
    """The whole page: a section for each part of the file, in the order in which one comes upon them."""
    schema = Params.model_json_schema()
    waiting: list[tuple[str, Fragment]] = [("", schema)]
    seen: dict[str, str] = {}  # model → the path that it is told of at; another path to it is a link
    sections = [HEAD]
    while waiting:
        path, model = waiting.pop(0)
        for key, field in model["properties"].items():
            for child, name in _sections(f"{path}.{key}".lstrip("."), field, schema["$defs"]):
                if name not in seen:
                    seen[name] = child
                    waiting.append((child, schema["$defs"][name]))
        sections.append(_section(path, model, schema["$defs"], seen))
    return "\n".join(sections)


def _section(path: str, model: Fragment, models: Fragment, seen: Mapping[str, str]) -> str:
    heading = f"## {f'`{path}`' if path else 'The file'}"
    words = " ".join(str(model.get("description", "")).split())
    rows = [
        f"| `{key}` | {_type(field, models, seen)} | {_default(key, field, model)} | {_cell(field.get('description', ''))} |"
        for key, field in model["properties"].items()
    ]
    return "\n".join([heading, "", *([words, ""] if words else []), "| key | value | default | |", "|---|---|---|---|", *rows, ""])


def _sections(path: str, field: Fragment, models: Fragment) -> Iterator[tuple[str, str]]:
    """(path, model) of every part of the file below a field; kinds of one part are told apart by their ``type``."""
    if name := _model(field, models):
        kind = models[name]["properties"].get("type", {}).get("const")
        yield (f"{path} (type: {kind})" if kind else path), name
    for part in (*field.get("anyOf", ()), *field.get("oneOf", ())):
        yield from _sections(path, part, models)
    if "items" in field:
        yield from _sections(f"{path}[]", field["items"], models)
    if values := _values(field):
        yield from _sections(f"{path}.{_keys(field) or ANY}", values, models)


def _model(field: Fragment, models: Fragment) -> str | None:
    """The name of the section that a field refers to; enums are referred to as well, and are none."""
    name = str(field.get("$ref", "")).rpartition("/")[2]
    return name if name and "properties" in models[name] else None


def _values(field: Fragment) -> Fragment | None:
    """What a mapping's values are, where that is said; its keys may be of a pattern."""
    for values in (field.get("additionalProperties"), *field.get("patternProperties", {}).values()):
        if isinstance(values, Mapping):
            return values
    return None


def _keys(field: Fragment) -> str:
    """What the keys of a mapping stand for, where they are not free."""
    return str(field.get("propertyNames", {}).get("$ref", "")).rpartition("/")[2].upper()


def _type(field: Fragment, models: Fragment, seen: Mapping[str, str]) -> str:
    """A field's type and bounds, for a cell."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        if _model(field, models):
            return f"[{_cell(seen[name])}](#{_anchor(seen[name])})"
        return _type(models[name], models, seen)
    if parts := [*field.get("anyOf", ()), *field.get("oneOf", ())]:
        return " or ".join(_type(part, models, seen) for part in parts)
    for word in ("enum", "const"):
        if word in field:
            return ", ".join(f"`{value}`" for value in (field[word] if word == "enum" else [field[word]]))
    if field.get("type") == "array":
        return _array(field, models, seen)
    if field.get("type") == "object":
        values = _values(field)
        return f"mapping of {_keys(field) or ANY} to {_type(values, models, seen)}" if values else "mapping of anything"
    bounds = " and ".join(f"{sign} {field[word]:g}" for word, sign in BOUNDS if word in field)
    pattern = f" of the form `{_cell(field['pattern'])}`" if "pattern" in field else ""
    return f"{TYPES[field['type']]}{f' {bounds}' if bounds else ''}{pattern}"


def _array(field: Fragment, models: Fragment, seen: Mapping[str, str]) -> str:
    if "prefixItems" in field:
        return ", ".join(_type(part, models, seen) for part in field["prefixItems"])
    least = f", at least {field['minItems']}" if field.get("minItems") else ""
    return f"list of {_type(field['items'], models, seen)}{least}"


def _default(key: str, field: Fragment, model: Fragment) -> str:
    if key in model.get("required", ()):
        return "**required**"
    value = field.get("default", {})
    if isinstance(value, dict):
        return ""
    return f"`{_cell(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}`"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _anchor(heading: str) -> str:
    """As GitHub makes one of a heading: letters, digits and _ stay, spaces become hyphens."""
    return "".join(letter for letter in heading.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"to docs/{PAGE.name}, instead of printing")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
