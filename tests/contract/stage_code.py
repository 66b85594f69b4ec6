"""Which files of the package each stage of ``dvc.yaml`` runs: the closure of its imports. ``--write`` puts the lists into dvc.yaml.

A stage's module is ``mlembed_core/stages/STAGE.py``. Left out: the command line, which only dispatches (it would make every stage
depend on every command), and the package's own ``__init__`` (a lazy face). Imports under ``TYPE_CHECKING`` do not run.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "mlembed_core"
# Files that a stage reads without importing them.
DATA_OF = {"mlembed_core.evaluate.report": ["*.jinja", "*.html", "*.json"], "mlembed_core.data.card": ["card.html.jinja"]}


def stages_in(dvc_yaml: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Stage name → its definition, the body of a foreach or the stage itself."""
    return {name: stage.get("do", stage) for name, stage in dvc_yaml["stages"].items()}


def stage_code(stage: str) -> list[str]:
    """The package's files that the stage runs, as paths from the root, sorted."""
    closure: set[Path] = set()
    _collect(f"{PACKAGE}.stages.{stage}", closure)
    return sorted(path.relative_to(ROOT).as_posix() for path in closure)


def _collect(module: str, closure: set[Path]) -> None:
    path = _file_of(module)
    if path is None or path in closure or module == PACKAGE:
        return
    closure.add(path)
    for pattern in DATA_OF.get(module, []):
        closure.update(path.parent.glob(pattern))
    parts = module.split(".")
    for depth in range(2, len(parts)):
        _collect(".".join(parts[:depth]), closure)  # importing a module runs its packages
    for imported in _imports(path, module):
        _collect(imported, closure)


def _file_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _imports(path: Path, module: str) -> tuple[str, ...]:
    """Modules of the package that the file imports, at the top or inside a function."""
    found: list[str] = []
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _running_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1] + ([base] if base else []))
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(sorted({name for name in found if name.split(".")[0] == PACKAGE}))


def _running_nodes(tree: ast.AST) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        nodes += [child, *_running_nodes(child)]
    return nodes


def main() -> None:
    yaml = YAML()
    yaml.width = 140
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = ROOT / "dvc.yaml"
    document = yaml.load(path.read_text(encoding="utf-8"))
    for name, stage in stages_in(document).items():
        others = [dep for dep in stage.get("deps", []) if not str(dep).startswith(f"{PACKAGE}/")]
        stage["deps"] = sorted([*others, *stage_code(name)])
    if "--write" in sys.argv:
        with path.open("w", encoding="utf-8") as handle:
            yaml.dump(document, handle)
    else:
        yaml.dump(document, sys.stdout)


if __name__ == "__main__":
    main()
