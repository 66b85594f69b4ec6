"""Text to token ids: the byte-level BPE that we train, the folder form of any tokenizer, and batched encoding.

Every tokenizer of the pipeline appends one EOS itself, by its post-processor, so that stock tools get the same ids as we do.
The EOS is what a model pools: it stays last when a text is cut, and the empty text is the EOS alone.

The trained tokenizer forgets what a small model has no parameters for: case, white space and how a word is glued to its
neighbours. ``parseHTTPHeader``, ``parse_http_header`` and ``Parse HTTP header`` have the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mlembed_core.artifacts import write_json
from mlembed_core.errors import ArtifactError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

EOS = "<|endoftext|>"
PAD = "<|pad|>"

# Between the words of an identifier: before a capital that follows a small letter, and before the last capital of a run of
# capitals that goes on in small letters (HTTPServer).
CAMEL_CASE = r"(?<=\p{Ll})(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll})"
# A piece is a run of letters with their marks, one digit, or a run of anything else. White space and `_` belong to no piece.
PIECE = r"[\p{L}\p{M}]+|\p{N}|[^\s_\p{L}\p{M}\p{N}]+"
# Texts whose whole encodings (some 100 bytes a token) are in memory at once, and how long they may be.
ENCODE_BATCH = 512
ENCODE_CHARACTERS = 2_000_000
MIN_FREQUENCY = 2  # a pair seen once is no word part, but an accident of one text


def train_tokenizer(texts: Iterable[Sequence[str]], *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE learned from ``texts``; the same texts give the same tokenizer in any order and with any thread count.

    Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (ACL 2016), over bytes, so that there is no
    unknown character.

    Args:
        texts: lists of texts, each list handed to the library at once.
        vocab_size: tokens at most, the 256 bytes and the special tokens included; little text gives fewer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(CAMEL_CASE), " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return append_eos(tokenizer, EOS)


def append_eos(tokenizer: Tokenizer, eos: str) -> Tokenizer:
    """``tokenizer``, or a copy of it that ends every text with ``eos`` where it does not do so yet. A BOS stays.

    Raises:
        ArtifactError: ``eos`` is not in the vocabulary, or there is a post-processor that leaves no place for it.
    """
    eos_id = tokenizer.token_to_id(eos)
    if eos_id is None:
        raise ArtifactError(
            f"the tokenizer names {eos!r} as its end of text, but its vocabulary lacks that token. "
            f"Add it to added_tokens in {TOKENIZER_FILE}, or name another eos_token in {CONFIG_FILE}."
        )
    if _last_id(tokenizer, "") == _last_id(tokenizer, "a") == eos_id:
        return tokenizer
    state = json.loads(tokenizer.to_str())
    state["post_processor"] = _ending_in(eos, eos_id, state["post_processor"])
    return Tokenizer.from_str(json.dumps(state))


def _ending_in(eos: str, eos_id: int, standing: dict[str, Any] | None) -> dict[str, Any]:
    """The post-processor ``standing`` (in the form of ``tokenizer.json``) with ``eos`` at the end of each text.

    A template that stands is extended: two of them in a row would put the second one's tokens around the first one's.
    """
    match standing:
        case None:
            standing = {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {},
            }
            return _ending_in(eos, eos_id, standing)
        case {"type": "TemplateProcessing"}:
            end = {"SpecialToken": {"id": eos, "type_id": 0}}
            tokens = standing["special_tokens"] | {eos: {"id": eos, "ids": [eos_id], "tokens": [eos]}}
            return standing | {"single": [*standing["single"], end], "pair": [*standing["pair"], end], "special_tokens": tokens}
        case {"type": "ByteLevel"}:  # touches offsets alone
            return {"type": "Sequence", "processors": [standing, _ending_in(eos, eos_id, None)]}
        case {"type": "Sequence", "processors": [*first, {"type": "TemplateProcessing"} as template]}:
            return {"type": "Sequence", "processors": [*first, _ending_in(eos, eos_id, template)]}
        case _:
            raise ArtifactError(
                f"the tokenizer's post-processor ({standing['type']}) does not end a text with {eos!r}, and cannot be extended. "
                f"Write it as TemplateProcessing in {TOKENIZER_FILE}, or name what it does end with as eos_token in {CONFIG_FILE}."
            )


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, special_tokens: Mapping[str, str], max_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``, as transformers reads them.

    Args:
        special_tokens: role → token, ``eos_token`` and ``pad_token`` among them.
        max_length: tokens of one text, EOS included; where stock tools cut.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / TOKENIZER_FILE), pretty=True)
    write_json(
        folder / CONFIG_FILE,
        {
            # The generic class takes tokenizer.json as it is. Those named after a model rebuild parts of it, the EOS among them.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            **special_tokens,
        },
    )


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in a ``tokenizer.json``, cutting and padding switched off (many published files have them baked in).

    Raises:
        ArtifactError: the file is missing or damaged; the message names it.
    """
    if not file.is_file():
        raise ArtifactError(f"there is no tokenizer in {file.parent} (no {file.name}). `mlembed tokenizer` makes the pipeline's own.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise ArtifactError(
            f"{file} is no tokenizer of the `tokenizers` library ({error}). Fetch or make it again (`dvc checkout`, `mlembed tokenizer`)."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder that stage ``tokenizer`` wrote, or of a model's folder.

    Raises:
        ArtifactError: no such file, a damaged one, or a tokenizer that does not end every text with one and the same token.
    """
    tokenizer = read_tokenizer(folder / TOKENIZER_FILE)
    last = _last_id(tokenizer, "")
    if last is None or last != _last_id(tokenizer, "a"):
        raise ArtifactError(
            f"{folder / TOKENIZER_FILE} does not append an EOS to every text, and the last token is what a model pools. "
            "Name the folder as a local tokenizer in configs/params.yaml and run `mlembed tokenizer`, which adds it."
        )
    return tokenizer


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, unpadded, at most ``max_length``, the EOS always last.

    Equal to encoding one by one, and to a stock tokenizer that cuts at ``max_length``.

    Args:
        tokenizer: as :func:`load_tokenizer` gives it; not changed.
        max_length: EOS included, ≥ 1.
    """
    return [cut(ids, max_length) for lists in uncut_ids(tokenizer, texts) for ids in lists]


def uncut_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[list[int]]]:
    """All token ids of each text, EOS included, some texts at a time, encoded on all cores."""
    start = characters = 0
    for stop, text in enumerate(texts, start=1):
        characters += len(text)
        if stop - start == ENCODE_BATCH or characters >= ENCODE_CHARACTERS or stop == len(texts):
            yield [encoding.ids for encoding in tokenizer.encode_batch_fast(texts[start:stop])]
            start, characters = stop, 0


def cut(ids: list[int], max_length: int) -> list[int]:
    """``ids`` in at most ``max_length`` tokens, with its last one kept.

    Done here rather than by the library, where the limit is a state of the tokenizer and the cut-off rest is built as well.
    """
    return ids if len(ids) <= max_length else ids[: max_length - 1] + ids[-1:]


def _last_id(tokenizer: Tokenizer, text: str) -> int | None:
    ids = tokenizer.encode(text).ids
    return int(ids[-1]) if ids else None
