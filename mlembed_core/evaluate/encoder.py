"""Many submodels as mteb encoders, over one encoding per rank.

A cut in depth or in dim is a part of the full model's states, so within a task every distinct text is encoded once per rank, and
each submodel reads its vectors out of that. The rank changes the token table and with it everything above: it needs a pass of its
own. Vectors that would give a wrong score (not finite, of length zero, all alike) are an error here, for mteb scores them in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from numpy.typing import NDArray

from mlembed_core.config.grid import Shape, Submodel
from mlembed_core.errors import EvaluationError
from mlembed_core.evaluate.tasks import is_local
from mlembed_core.prompts import query_prompt

Vectors = NDArray[Any]
# Unit vectors that differ by less than this in every coordinate are one vector up to float32 rounding in batches of other sizes.
SAME_VECTOR = 1e-6


class ExitStates(Protocol):
    """What the store needs of :class:`mlembed_core.model.encoder.Encoder`."""

    shape: Shape

    def exit_states(
        self, texts: Sequence[str], *, rank: int, layers: Sequence[int], batch_tokens: int = ...
    ) -> Float32[Vectors, "exit text hidden"]: ...


class StateStore:
    """The pooled states of a task's texts, encoded when they are first asked for and shared by all submodels.

    Memory: 4 · hidden bytes per text, rank and exit named. Call :meth:`clear` after each task.
    """

    def __init__(self, encoder: ExitStates, submodels: Sequence[Submodel], *, batch_tokens: int) -> None:
        self._encoder = encoder
        self._batch_tokens = batch_tokens
        self._exits = {
            rank: sorted({submodel.layers for submodel in submodels if submodel.rank == rank}) for rank in {sub.rank for sub in submodels}
        }
        self.clear()

    def clear(self) -> None:
        """Forget all texts."""
        self._rows: dict[int, dict[str, int]] = {rank: {} for rank in self._exits}
        self._states: dict[int, Float32[Vectors, "exit text hidden"]] = {
            rank: np.empty((len(exits), 0, self._encoder.shape.dim), dtype=np.float32) for rank, exits in self._exits.items()
        }

    def states(self, texts: Sequence[str], submodel: Submodel) -> Float32[Vectors, "text dim"]:
        """The states of ``texts`` at the submodel's exit, cut to its dim, not of unit length.

        Raises:
            EvaluationError: the encoder gave an array of another shape than asked for.
        """
        rank = submodel.rank
        rows = self._rows[rank]
        # dict.fromkeys: distinct, in the order of the call, so that the same calls make the same batches.
        fresh = [text for text in dict.fromkeys(texts) if text not in rows]
        if fresh:
            self._states[rank] = np.concatenate([self._states[rank], self._encode(fresh, rank)], axis=1)
            rows.update(zip(fresh, range(len(rows), len(rows) + len(fresh)), strict=True))
        exit_index = self._exits[rank].index(submodel.layers)
        return self._states[rank][exit_index, [rows[text] for text in texts], : submodel.dim]

    def _encode(self, texts: Sequence[str], rank: int) -> Float32[Vectors, "exit text hidden"]:
        exits = self._exits[rank]
        states = self._encoder.exit_states(texts, rank=rank, layers=exits, batch_tokens=self._batch_tokens)
        expected = (len(exits), len(texts), self._encoder.shape.dim)
        if states.shape != expected:
            raise EvaluationError(
                f"at rank {rank} the encoder gave states of shape {states.shape} for {len(texts)} texts, expected {expected} "
                "(exits, texts, hidden size). The scores would belong to other texts; nothing was recorded."
            )
        return states


class SubmodelEncoder(AbsEncoder):  # type: ignore[misc]  # mteb is not type-checked here
    """One submodel, as mteb's ``EncoderProtocol`` wants it.

    Args:
        setting: what the model is called; mteb knows it as ``mlembed/<setting>``.
        revision: the hash of the weights. With the submodel's name it makes mteb's identity of a result, so that neither another
            cut nor a retrained model can get an old score.
        instructions: put an instruction before queries in mteb's own tasks; for models that were trained with instructions.
        prompts: what stands before texts in mteb's own tasks, by mteb's keys and in its order (task, type of task, ``query`` or
            ``document``); for models that bring prompts of their own. None: none but the instructions.
    """

    def __init__(
        self,
        store: StateStore,
        submodel: Submodel,
        *,
        setting: str,
        revision: str,
        instructions: bool = False,
        prompts: dict[str, str] | None = None,
    ) -> None:
        self.model_prompts = prompts
        self.submodel = submodel
        self.setting = setting
        self._store = store
        self._instructions = instructions
        self.mteb_model_meta = model_meta(
            f"mlembed/{setting}",
            f"{revision}-{submodel.name}",
            embed_dim=submodel.dim,
            use_instructions=instructions,
            similarity_fn_name=ScoringFunction.COSINE,
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> Float32[Vectors, "text dim"]:
        """Unit vectors of the texts in ``inputs`` (batches with a list of texts under ``text``).

        Raises:
            EvaluationError: a vector that cannot be right; the message names model, task, split and text.
        """
        prompt = self._prompt(task_metadata, prompt_type)
        texts = [prompt + text for batch in inputs for text in batch["text"]]
        states = self._store.states(texts, self.submodel)
        where = f"{self.setting} {self.submodel.name} on task {task_metadata.name} (split {hf_split}, subset {hf_subset})"
        check_vectors(states, texts, width=self.submodel.dim, where=where)
        vectors: Vectors = states / np.linalg.norm(states, axis=1, keepdims=True)
        check_distinct(vectors, texts, where=where)
        return vectors

    def _prompt(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str:
        """What stands before a text: the model's own prompt where it brings some, else our template around the instruction."""
        if self.model_prompts and not is_local(task_metadata):
            key = self.get_prompt_name(task_metadata, prompt_type)
            return self.model_prompts[key] if key is not None else ""
        return query_prompt(self._instruction(task_metadata, prompt_type))

    def _instruction(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str | None:
        """The instruction before a text. Documents take none; local tasks take their source's; mteb's tasks go by mteb's order."""
        if prompt_type is PromptType.document:
            return None
        if is_local(task_metadata):
            return task_metadata.prompt  # type: ignore[no-any-return]
        return self.get_instruction(task_metadata, prompt_type) if self._instructions else None


def model_meta(name: str, revision: str, **facts: Any) -> ModelMeta:
    """The description by mteb of a model that exists only here."""
    return ModelMeta.create_empty(overwrites={"name": name, "revision": revision, **facts})


def check_vectors(vectors: Vectors, texts: Sequence[str], *, width: int, where: str) -> None:
    """Refuse vectors of the wrong number or width, and any that is not finite or has no length.

    Raises:
        EvaluationError: naming the first text concerned.
    """
    if vectors.shape != (len(texts), width):
        raise EvaluationError(
            f"{where}: vectors of shape {vectors.shape} for {len(texts)} texts and {width} dimensions; nothing was recorded"
        )
    for problem, wrong in (
        ("a value that is not finite", ~np.isfinite(vectors).all(axis=1)),
        ("length zero", ~vectors.any(axis=1)),
    ):
        if wrong.any():
            first = int(wrong.argmax())
            raise EvaluationError(
                f"{where}: {int(wrong.sum()):,} of {len(texts):,} vectors have {problem}, the first is text "
                f"{first}: {texts[first][:80]!r}. "
                "mteb would score them as if nothing were wrong. Train again from a checkpoint before the weights broke "
                "(models/*/loss_curve.csv shows where)."
            )


def check_distinct(vectors: Vectors, texts: Sequence[str], *, where: str) -> None:
    """Refuse unit vectors that are all alike although the texts are not.

    Raises:
        EvaluationError: the encoder tells no two texts apart.
    """
    if len(set(texts)) > 1 and np.ptp(vectors, axis=0).max() < SAME_VECTOR:
        raise EvaluationError(
            f"{where}: all {len(texts):,} vectors are the same, though {len(set(texts)):,} texts differ. The model has collapsed, or the "
            "tokenizer is not the one it was trained with."
        )
