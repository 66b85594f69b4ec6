"""Two processes that agree in nothing but the installed packages write the same bytes for every embedded source."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from mlembed_core.data.sources.embedded import BUILDERS

SCRIPT = """
import sys
from pathlib import Path
from mlembed_core.artifacts import Workspace
from mlembed_core.stages import source
for name in sys.argv[2:]:
    source.run(Workspace(Path(sys.argv[1])), name)
"""
# ASCII as the default encoding shows every file that is opened without saying which.
ENVIRONMENTS = (
    {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONHASHSEED": "2", "TZ": "America/Lima", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "PYTHONUTF8": "1"},
)


def start(root: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    (root / "configs").mkdir(parents=True)
    sources = {
        name: {"kind": "retrieval", "num_negatives": 3, "origin": {"type": "embedded", "builder": name, "max_rows": 60}}
        for name in BUILDERS
    }
    (root / "configs" / "params.yaml").write_text(json.dumps({"sources": sources}), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), *BUILDERS],
        env={**os.environ, **environment},
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
    )


def hashes(root: Path) -> dict[str, str]:
    files = sorted((root / "data").rglob("*"))
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


def test_bytes_are_equal_under_other_hash_seeds_time_zones_and_locales(tmp_path: Path) -> None:
    roots = [tmp_path / "first", tmp_path / "some other place" / "second"]
    processes = [start(root, environment) for root, environment in zip(roots, ENVIRONMENTS, strict=True)]
    for process in processes:
        _, complaints = process.communicate(timeout=240)
        assert process.returncode == 0, complaints
    first, second = map(hashes, roots)
    assert len(first) == 2 * len(BUILDERS)  # rows and manifest of each
    assert first == second
