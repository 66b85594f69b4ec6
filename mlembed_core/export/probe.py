"""The process behind ``export/verify.py``: ``python -m mlembed_core.export.probe READER …`` recomputes golden vectors.

It loads its libraries, then reads the export's folder and a folder for its answers (READER.npy each) from stdin, a line each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlembed_core.export.formats import is_factorised, open_encoder, register
from mlembed_core.export.golden import DOCUMENTS, QUERIES, read_golden
from mlembed_core.export.verify import Reader


def with_mlembed(folder: Path) -> NDArray[Any]:
    """By this project's encoder."""
    _, facts = read_golden(folder)
    encoder = open_encoder(folder)
    return np.concatenate([encoder.encode_documents(DOCUMENTS), encoder.encode_queries(QUERIES, instruction=facts["instruction"])])


def with_sentence_transformers(folder: Path) -> NDArray[Any]:
    """By the stock library, in float32, without trusting code in the folder."""
    import torch
    from sentence_transformers import SentenceTransformer

    if is_factorised(folder):
        register()
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})
    documents = model.encode(list(DOCUMENTS), show_progress_bar=False)
    return np.concatenate([documents, model.encode(list(QUERIES), prompt_name="query", show_progress_bar=False)])


READERS = {Reader.MLEMBED: with_mlembed, Reader.SENTENCE_TRANSFORMERS: with_sentence_transformers}


def main() -> None:
    readers = [Reader(name) for name in sys.argv[1:]]
    if Reader.SENTENCE_TRANSFORMERS in readers:
        import sentence_transformers  # noqa: F401  # slow to load: now, while the caller is still at work
    folder, answers = (Path(line) for line in sys.stdin.read().splitlines())
    if wrong := answer(readers, folder, answers):
        sys.exit(wrong)


def answer(readers: Sequence[Reader], folder: Path, answers: Path) -> str | None:
    """Write each reader's vectors to ``answers/READER.npy``; what is wrong, or None."""
    for reader in readers:
        try:
            np.save(answers / f"{reader}.npy", READERS[reader](folder), allow_pickle=False)
        except Exception as error:  # of whatever library reads it
            return f"{reader}: {type(error).__name__}: {' '.join(str(error).split())}"
    return None


def answer_on(line: Connection, other_end: Connection, readers: Sequence[Reader]) -> None:
    """The same in a fork: the two folders come over ``line``, and what is wrong goes back over it (nothing: empty)."""
    other_end.close()  # the fork's copy would keep the line open when the other process dies
    try:
        folder, answers = (Path(name) for name in line.recv_bytes().decode().splitlines())
    except EOFError:
        return
    line.send_bytes((answer(readers, folder, answers) or "").encode())


if __name__ == "__main__":
    main()
