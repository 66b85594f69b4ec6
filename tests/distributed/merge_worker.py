"""What the test of a merge runs in each of several processes: a small training that ends in one, and what each process then holds.

``FOLDER/better`` says how held-out rows fare with the merged weights; the loss itself is asked for in all processes all the same.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from mlembed_core import lifeline
from mlembed_core.stages.train import check_world_size
from mlembed_core.train import loop, sharding
from tests.distributed.worker import problem, train_and_keep

OPTIONS = {"num_steps": 10, "checkpoint_every": 3, "kept_checkpoints": 4, "merge": {"method": "slerp", "last": 3}}


def main() -> None:
    base = Path(sys.argv[1])
    lifeline.hold()
    torch.set_num_threads(1)
    accelerator = Accelerator()
    check_world_size()
    losses = iter([1.0, 0.5 if (base / "better").read_text() == "True" else 1.5])
    held_out_loss, merge_checkpoints = loop._Run._held_out_loss, loop._Run.merge_checkpoints

    def told(run: loop._Run) -> float:
        held_out_loss(run)
        return next(losses)

    def merged(run: loop._Run, params: object) -> None:
        merge_checkpoints(run, params)
        held = {name: sharding.whole(value).clone() for name, value in run.network.state_dict().items()}
        save_file(held, base / f"held-{accelerator.process_index}.safetensors")

    loop._Run._held_out_loss, loop._Run.merge_checkpoints = told, merged
    network, cache, _, axes, params = problem(base / "cache", batch_size=8, **OPTIONS)
    network = network.float()
    train_and_keep(base, network, cache, axes=axes, params=params, accelerator=accelerator)


if __name__ == "__main__":
    main()
