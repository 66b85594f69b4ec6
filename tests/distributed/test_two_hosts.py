"""Two hosts with a cable between them: network namespaces, each with its own interface and launcher; gradients as of one process.

Needs the right to make namespaces (root, or CAP_NET_ADMIN and CAP_SYS_ADMIN) and `ip` of iproute2.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlembed_core.artifacts import Workspace
from mlembed_core.train.launch import LAUNCHER, launch
from tests.distributed.test_two_processes import TOLERANCE, deviation, read
from tests.distributed.worker import BATCH_SIZES, STEPS, VARIANTS, write_cache

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 600
START = "import sys; from pathlib import Path; from mlembed_core.artifacts import Workspace; from mlembed_core.train.launch import launch; "
START += "launch(Workspace(Path(sys.argv[1])), sys.argv[2], module='tests.distributed.worker')"

pytestmark = pytest.mark.slow


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


@pytest.fixture
def hosts():
    """Name → address of two namespaces that reach each other over a pair of virtual interfaces."""
    names = [f"mlembed{os.getpid()}{letter}" for letter in "ab"]
    ends = [f"mle{os.getpid()}{letter}"[-15:] for letter in "ab"]  # the kernel allows 15 characters
    addresses = ["10.213.77.1", "10.213.77.2"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, addresses, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield list(zip(names, ends, strict=True)), addresses[0]
    except FileNotFoundError:
        pytest.skip("`ip` (iproute2) is not installed")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def tree_with_the_profile(folder):
    """A workspace with the profile for many nodes, for two machines with one CPU process each."""
    (folder / "configs" / "accelerate").mkdir(parents=True)
    shutil.copyfile(ROOT / "configs" / "params.yaml", folder / "configs" / "params.yaml")
    text = (ROOT / "configs" / "accelerate" / "many_nodes.yaml").read_text()
    assert "use_cpu: false" in text
    (folder / "configs" / "accelerate" / "many_nodes.yaml").write_text(text.replace("use_cpu: false", "use_cpu: true"))
    return folder


def test_two_hosts_compute_the_gradient_of_one_process(hosts, tmp_path, monkeypatch):
    (names, main_address), base = hosts, tmp_path / "base"
    (base / "cache").mkdir(parents=True)
    write_cache(base / "cache")
    monkeypatch.setenv(LAUNCHER, "cpu")
    launch(Workspace(ROOT), str(base), module="tests.distributed.worker")

    processes = []
    for rank, (name, interface) in enumerate(names):
        environment = {
            **os.environ,
            LAUNCHER: "many_nodes",
            "MLEMBED_NUM_MACHINES": "2",
            "MLEMBED_NUM_PROCESSES": "2",
            "MLEMBED_MACHINE_RANK": str(rank),
            "MLEMBED_MAIN_PROCESS_IP": main_address,
            "GLOO_SOCKET_IFNAME": interface,
            "PYTHONPATH": str(ROOT),
        }
        tree = tree_with_the_profile(tmp_path / f"host{rank}")
        command = ["ip", "netns", "exec", name, sys.executable, "-c", START, str(tree), str(base)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [process.communicate(timeout=WAIT_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)

    for variant, batch_size, step in [(variant, size, step) for variant in VARIANTS for size in BATCH_SIZES for step in STEPS]:
        if variant != "without_gradient":
            loss, gradients = read(base, variant, 2, batch_size, step)
            expected_loss, expected = read(base, "plain", 1, batch_size, step)
            assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
            assert deviation(gradients, expected) < TOLERANCE
