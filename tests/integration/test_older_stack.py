"""Exports in the older stack, sentence-transformers 5 and transformers 4.57, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlembed_core.export.kinds import Format, StoredType
from mlembed_core.export.slice import take_out
from mlembed_core.export.verify import TOLERANCE, Probe
from tests.unit.export.conftest import mel_model  # noqa: F401  # a fixture

ROOT = Path(__file__).resolve().parents[2]
TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
OLDER = [TORCH, "transformers==4.57.3", "sentence-transformers==5.1.2"]
INSTALL_S, ENCODE_S = 900, 120

# What a user of that stack writes; of this project only the texts.
ENCODE = """
import json, sys
import numpy as np, sentence_transformers, torch, transformers
from mlembed_core.export.golden import DOCUMENTS, QUERIES
from transformers import AutoModel

gaps = {}
for folder in sys.argv[1:]:
    golden = np.load(folder + "/golden.npy")
    model = sentence_transformers.SentenceTransformer(
        folder, device="cpu", trust_remote_code="factorised" in folder, model_kwargs={"torch_dtype": torch.float32}
    )
    found = np.concatenate([model.encode(list(DOCUMENTS)), model.encode(list(QUERIES), prompt_name="query")])
    gaps[folder] = float(np.abs(found - golden).max())
print(json.dumps({"versions": [transformers.__version__, sentence_transformers.__version__], "gaps": gaps}))
"""


@pytest.fixture(scope="module")
def older_python(tmp_path_factory):
    venv = tmp_path_factory.mktemp("older") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=INSTALL_S)
    done = subprocess.run(
        [venv / "bin" / "pip", "install", "--quiet", *OLDER], capture_output=True, text=True, timeout=INSTALL_S, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"the older stack cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return venv / "bin" / "python"


@pytest.mark.slow
def test_the_older_stack_gives_the_golden_vectors(mel_model, older_python, tmp_path):  # noqa: F811
    folders = []
    for form in Format:
        for dtype in (StoredType.FP32, StoredType.BF16):
            folder = tmp_path / f"{form}-{dtype}"
            with Probe() as probe:
                take_out(mel_model, folder, probe, layers=2, dim=8, rank=4, form=form, dtype=dtype, instruction="Find it.")
            folders.append(str(folder))
    done = subprocess.run(
        [older_python, "-c", ENCODE, *folders],
        capture_output=True,
        text=True,
        timeout=ENCODE_S,
        check=False,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [version.split(".")[0] for version in result["versions"]] == ["4", "5"]
    assert max(result["gaps"].values()) < TOLERANCE, result
