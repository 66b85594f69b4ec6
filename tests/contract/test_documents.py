"""The documents name only what exists: make targets, commands, files; and nothing of the machine they were written on."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from docs.write_parameters import PAGE, page
from mlembed_core.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_and_files_exist(document):
    text = document.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    code = "\n".join(block or inline for block, inline in re.findall(r"```bash\n(.*?)```|`([^`\n]+)`", text, flags=re.DOTALL))
    assert set(re.findall(r"(?:^|\s)make ([a-z-]+)", code)) <= targets
    assert set(re.findall(r"(?:^|\s)mlembed ([a-z]+)", code)) <= set(get_command(app).commands)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_the_reference_of_the_parameters_is_that_of_the_schema():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.write_parameters --write"


def test_every_link_inside_the_reference_leads_somewhere():
    headings = {re.sub(r"[^\w-]", "", line[3:].strip().lower().replace(" ", "-")) for line in page().splitlines() if line.startswith("## ")}
    links = set(re.findall(r"\]\(#([^)]+)\)", page()))
    assert links
    assert links <= headings
    for key in (
        "train.objectives.KIND",
        "settings.NAME.mel",
        "suites.NAME (type: local).tasks.NAME",
        "sources.NAME.origin (type: hub)",
        "gate",
    ):
        assert f"## `{key}`" in page()


def test_nothing_tells_where_it_was_written():
    """No absolute path of a home or work folder, and no registry's address, in any tracked file."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    forbidden = re.compile(r"/(?:root|home/\w+|work)/\w|(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com)\b")
    found = []
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".json", ".lock", ".jinja", ""}:
            found += [f"{name}: {match.group()}" for match in forbidden.finditer(path.read_text(encoding="utf-8", errors="replace"))]
    assert [line for line in found if not line.startswith("tests/contract/test_documents.py")] == []
