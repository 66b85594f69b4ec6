"""What can go wrong in a step, told so that a person can act: no number, no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from mlembed_core.config.train import TrainParams
from mlembed_core.data.sampler import Batch
from mlembed_core.errors import MachineError, TrainingError

# How torch's CPU allocator says it; on a GPU there is a class of errors for it.
CPU_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "DefaultCPUAllocator")


class FiniteGuard:
    """Decides what becomes of a step whose loss or gradient is not finite.

    Loss and gradient norm are those of the global batch, equal in all processes, and so is the decision.

    Args:
        skipped: steps left out so far, by this run or the one that it resumes; grows.
        allowed: how many may be.
    """

    def __init__(self, skipped: list[int], *, allowed: int, warn: Callable[[str], None]) -> None:
        self._skipped = skipped
        self._allowed = allowed
        self._warn = warn

    def admits(self, batch: Batch, *, step: int, loss: float, norm: float) -> bool:
        """Whether the step may change the weights.

        Raises:
            TrainingError: it may not, and no more steps may be left out; names the step, source and rows.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            return True
        what = f"step {step}: loss {loss}, gradient norm {norm}, source {batch.source.name}"
        if len(self._skipped) >= self._allowed:
            before = f" ({len(self._skipped)} steps were left out before, as train.max_skipped_steps allows)" if self._skipped else ""
            raise TrainingError(
                f"{what}{before}. Lower train.learning_rate, allow some such steps (train.max_skipped_steps), or look at these rows of the "
                f"training cache: {batch.rows.tolist()}"
            )
        self._skipped.append(step)
        left = self._allowed - len(self._skipped)
        self._warn(f"left out {what}, rows {batch.rows.tolist()}; train.max_skipped_steps allows {left} more")
        return False


@contextmanager
def naming_the_knobs(params: TrainParams) -> Iterator[None]:
    """Turn an out-of-memory error of the body into one that says which parameters help.

    Raises:
        MachineError: the body ran out of memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in CPU_OUT_OF_MEMORY)):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MachineError(
            f"out of memory in a training step ({reason}). In configs/params.yaml, train.grad_cache_tokens (now "
            f"{_shown(params.grad_cache_tokens)}; try 4096, then less) and train.bucket_tokens (now {_shown(params.bucket_tokens)}) help "
            f"without changing the gradient; train.batch_size (now {params.batch_size}), fewer hard negatives in train.objectives "
            "and a shorter tokenizer.max_length change it. More processes share the batch, too (MLEMBED_LAUNCHER)."
        ) from error


def _shown(value: int | None) -> str:
    return "null" if value is None else str(value)
