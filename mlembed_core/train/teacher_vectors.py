"""A teacher's vectors of all texts of a training cache: encoded once, kept on disk, read by memory map in every step.

They lie in ``.work/teacher/KEY/``, where the key names everything that shapes them; settings and seeds that share a teacher share them::

    vectors.bin   float32   (text, hidden)   states at the last exit, cut to the student's width, not of unit length
    done.bin      uint8     (block)          1 where a block's vectors are on disk

Texts are encoded in blocks of neighbours, always the same ones: which process does a block, and after how many kills, changes no bit.

Shapes: ``text`` texts of the cache, ``hidden`` D of the student.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mlembed_core.artifacts import hash_of, sha256_file
from mlembed_core.config.base import Precision
from mlembed_core.config.train import TrainParams
from mlembed_core.data.store import TrainingCache
from mlembed_core.errors import MachineError, TrainingInterruptedError
from mlembed_core.model.attention import choose_attention
from mlembed_core.model.network import Network
from mlembed_core.progress import Reporter
from mlembed_core.train.distributed import largest, rank, world_size
from mlembed_core.train.teacher import Teacher

BLOCK_TEXTS = 4096  # 16 MB at hidden 1024: what a kill costs at most, and few enough calls
VECTORS, DONE = "vectors.bin", "done.bin"
LIBRARIES = ("torch", "transformers")
BYTES = 4


@dataclass(frozen=True)
class TeacherVectors:
    """What a teacher said of all texts.

    Attributes:
        values: a view into the file.
    """

    values: Float[NDArray[np.float32], "text hidden"]

    def of(self, texts: NDArray[np.int64], device: torch.device) -> Float[Tensor, "text hidden"]:
        """The vectors of some texts, by their ids in the cache."""
        return torch.from_numpy(self.values[texts]).to(device)


def taught_by(
    teacher: Teacher | None,
    cache: TrainingCache,
    folder: Path,
    *,
    made_of: str,
    hidden: int,
    max_gib: float,
    params: TrainParams,
    accelerator: Accelerator,
    stop_requested: Callable[[], bool],
) -> Network | TeacherVectors | None:
    """What the teacher says of all texts, where that fits into the bound; else the teacher itself, to be asked in every step.

    Args:
        folder: of the vectors of all teachers.
        made_of: the hash of the training cache.
        hidden: of the student.

    Raises:
        MachineError, TrainingInterruptedError: see :func:`encode_all`.
    """
    if teacher is None:
        return None
    size = cache.num_texts * hidden * BYTES / 2**30
    if not 0 < size <= max_gib:
        if max_gib:
            accelerator.print(f"the teacher's vectors of all texts take {size:.2f} GiB, the bound is {max_gib}: it runs in every step")
        return teacher.network
    shapes = {"teacher": teacher.sha256, "cache": made_of, "hidden": hidden, "device": accelerator.device.type}
    shapes |= {"precision": params.precision.value, "max_tokens": params.bucket_tokens, "num_threads": params.num_threads}
    place(teacher.network, device=accelerator.device, precision=params.precision)
    return encode_all(
        teacher.network,
        cache,
        folder / _key(shapes),
        hidden=hidden,
        max_tokens=params.bucket_tokens,
        precision=params.precision,
        stop_requested=stop_requested,
    )


def place(teacher: Network, *, device: torch.device, precision: Precision) -> None:
    """Put a teacher where it works."""
    choose_attention(teacher.backbone, device=device, precision=precision)
    teacher.to(device)


def encode_all(
    teacher: Network,
    cache: TrainingCache,
    folder: Path,
    *,
    hidden: int,
    max_tokens: int | None,
    precision: Precision,
    stop_requested: Callable[[], bool] = lambda: False,
) -> TeacherVectors:
    """The vectors in ``folder``, those that are missing encoded now; with several processes each does its share.

    Args:
        teacher: in its place, in evaluation mode.
        hidden: of the student.
        max_tokens: encoded at a time.
        stop_requested: asked before each block; one process that says yes stops them all.

    Raises:
        MachineError: too little room on the disk.
        TrainingInterruptedError: told to stop; what is encoded is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device, num_blocks = next(teacher.parameters()).device, -(-cache.num_texts // BLOCK_TEXTS)
    row, stopped = hidden * BYTES, False
    with _File(folder / VECTORS, cache.num_texts * row) as vectors, _File(folder / DONE, num_blocks) as done:

        def fill(blocks: Iterable[int]) -> None:
            missing = [block for block in blocks if not done.read(1, block)[0]]
            _check_room(vectors.path, len(missing) * BLOCK_TEXTS * row)
            with Reporter("teacher's vectors", len(missing), "blocks", shown=rank() == 0) as reporter:
                for block in takewhile(lambda _: not stop_requested(), missing):
                    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is Precision.BF16):
                        states = _encode(teacher, cache, block, hidden, max_tokens)
                    vectors.write(states.tobytes(), block * BLOCK_TEXTS * row)
                    vectors.sync()  # before it is said to be there
                    done.write(b"\x01", block)
                    reporter.advance()

        # The second turn finds work only where nodes have disks of their own: what the processes of others wrote is not there.
        for blocks in (range(rank(), num_blocks, world_size()), range(num_blocks)):
            if not stopped:
                fill(blocks)
            # Asked in all processes: none goes on before all are through, and they stop together.
            stopped = bool(largest(int(stop_requested()), device=device))
    if stopped:
        raise TrainingInterruptedError(f"told to stop while the teacher's vectors were encoded; what is done is kept in {folder}")
    return TeacherVectors(np.memmap(folder / VECTORS, dtype="<f4", mode="r", shape=(cache.num_texts, hidden)).view(np.ndarray))


def _key(shapes: dict[str, object]) -> str:
    """16 hex digits that name vectors: by what shapes them, the network's code and its libraries."""
    code = {path.name: sha256_file(path) for path in sorted((Path(__file__).parents[1] / "model").glob("*.py"))}
    return hash_of({"shapes": shapes, "code": code, "libraries": {name: version(name) for name in LIBRARIES}})[:16]


@torch.no_grad()
def _encode(
    teacher: Network, cache: TrainingCache, block: int, hidden: int, max_tokens: int | None
) -> Float[NDArray[np.float32], "text hidden"]:
    texts = range(block * BLOCK_TEXTS, min((block + 1) * BLOCK_TEXTS, cache.num_texts))
    states = np.empty((len(texts), hidden), dtype="<f4")
    for rows, pooled in teacher.by_bucket([cache.tokens(text) for text in texts], [teacher.num_layers], max_tokens=max_tokens):
        states[rows] = pooled[0, :, :hidden].float().cpu().numpy()
    return states


def _check_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise MachineError(
            f"the teacher's vectors take {size / 2**30:.1f} GiB more in {path}, where {free / 2**30:.1f} GiB are free. Free some space, or "
            "lower settings.*.distillation.max_cache_gib: with 0 the teacher runs in every step."
        )


class _File:
    """A file of a given size, zeros where nothing was written, that several processes write different places of."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._handle, size)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._handle, size, offset)

    def write(self, data: bytes, offset: int) -> None:
        while data:  # the system may take less than it is given
            written = os.pwrite(self._handle, data, offset)
            data, offset = data[written:], offset + written

    def sync(self) -> None:
        os.fsync(self._handle)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
