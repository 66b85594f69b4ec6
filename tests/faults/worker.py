"""A small training that can be told to die: ``KILL=PLACE:N`` sends SIGKILL to this process when it comes to a place the N-th time.

It trains the problem of the two-process test and writes weights and curves to its folder; state lies there too.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from mlembed_core import lifeline
from mlembed_core.data.sampler import Sampler
from mlembed_core.stages.train import check_world_size, reporting
from mlembed_core.train import resume
from mlembed_core.train.control import StopRequest
from tests.distributed.worker import problem, train_and_keep

NUM_STEPS = 40
# Where a process dies: before a batch is drawn, before and within a pass through the network, before the weights change; within a save
# with half of the files written, with all of them but no name, with the name, and while older states are removed.
PLACES = ("loader", "forward", "backward", "optimizer", "files", "synced", "renamed", "removing")
KILL, KILL_RANK, PAUSE = "MLEMBED_TEST_KILL", "MLEMBED_TEST_KILL_RANK", "MLEMBED_TEST_PAUSE"


class Reaper:
    """Counts how often each place is come to, and kills the process at the chosen one."""

    def __init__(self) -> None:
        place, _, number = os.environ.get(KILL, ":0").partition(":")
        mine = os.environ.get("RANK", "0") == os.environ.get(KILL_RANK, "0")
        self._place, self._left = place if mine else "", int(number)

    def at(self, place: str) -> None:
        if place == self._place:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def before(self, owner: object, name: str, place: str) -> None:
        """Come to ``place`` before every call of ``owner.name``."""
        function = getattr(owner, name)

        def called(*arguments, **options):
            self.at(place)
            return function(*arguments, **options)

        setattr(owner, name, called)

    def after(self, owner: object, name: str, place: str) -> None:
        function = getattr(owner, name)

        def called(*arguments, **options):
            result = function(*arguments, **options)
            self.at(place)
            return result

        setattr(owner, name, called)


def arm(reaper: Reaper, network) -> None:
    reaper.before(Sampler, "batch", "loader")
    network.register_forward_pre_hook(lambda *_: reaper.at("forward"))
    network.embedding.v.register_hook(lambda _: reaper.at("backward"))
    reaper.before(torch.optim.AdamW, "step", "optimizer")
    reaper.after(resume, "save_file", "files")
    reaper.before(os, "replace", "synced")
    reaper.after(os, "replace", "renamed")
    remove = shutil.rmtree

    def removing(path, **options):
        if Path(path).name.startswith("step-"):
            for number, file in enumerate(sorted(Path(path).glob("*"))):
                if number == 1:
                    reaper.at("removing")
                file.unlink()
        remove(path, **options)

    resume.shutil.rmtree = removing


def main() -> None:
    base = Path(sys.argv[1])
    lifeline.hold()
    torch.set_num_threads(1)
    accelerator = Accelerator()
    (base / f"pid-{os.getpid()}").touch()
    with reporting(), StopRequest() as stop_requested:
        check_world_size()
        network, cache, _, axes, params = problem(
            base / "cache", batch_size=8, num_steps=NUM_STEPS, checkpoint_every=2, log_every=1, mask_similar_margin=0.2
        )
        network = network.float()
        arm(Reaper(), network)
        train_and_keep(
            base,
            network,
            cache,
            axes=axes,
            params=params,
            accelerator=accelerator,
            log=lambda *_: time.sleep(float(os.environ.get(PAUSE, "0"))),
            stop_requested=stop_requested,
        )


if __name__ == "__main__":
    main()
