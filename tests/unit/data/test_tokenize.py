"""Text to token ids: what the tokenizer of the embedded preset does, and that every tokenizer ends every text with one EOS."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mlembed_core.data.tokenize import EOS, PAD, append_eos, load_tokenizer, read_tokenizer, save_tokenizer, token_ids, train_tokenizer
from mlembed_core.errors import ArtifactError

TEXTS = [
    "Return the number of bytes that the header takes.",
    "def parseHTTPHeader(line_number, max_length=1024):\n    return line_number",
    "Αφγανιστάν",
    "अफ़ग़ानिस्तान",
    "アフガニスタン・イスラム共和国",
    "Afghanistan time, Afghani, Afghanistan",
    "کابل‌ها",
    "template <typename T> void push_back(const T& value);",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXTS * 2, TEXTS], vocab_size=400)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, out, special_tokens={"eos_token": EOS, "pad_token": PAD}, max_length=16)
    return out


def visible(text: str) -> str:
    """What of a text the tokenizer keeps: no white space, no `_`, one case (camelCase splits only add white space)."""
    # Unicode's White_Space, which unlike Python's has no separators among the control characters.
    return "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c != "_" and (not c.isspace() or c in "\x1c\x1d\x1e\x1f"))


def test_an_empty_text_is_the_eos_alone(tokenizer: Tokenizer) -> None:
    assert token_ids(tokenizer, ["", " \n\t_ "], 8) == [[tokenizer.token_to_id(EOS)]] * 2


@given(st.lists(st.text(max_size=60), max_size=6), st.integers(1, 12))
def test_a_batch_has_the_ids_of_single_texts_and_eos_stays_last(tokenizer: Tokenizer, texts: list[str], max_length: int) -> None:
    batch = token_ids(tokenizer, texts, max_length)
    assert batch == [token_ids(tokenizer, [text], max_length)[0] for text in texts]
    for text, ids in zip(texts, batch, strict=True):
        whole = tokenizer.encode(text).ids
        assert len(ids) == min(len(whole), max_length)
        assert ids[-1] == whole[-1] == tokenizer.token_to_id(EOS)
        assert ids[:-1] == whole[: len(ids) - 1]


def test_a_large_batch_has_the_ids_of_single_texts(tokenizer: Tokenizer) -> None:
    texts = [f"{text} {number}" for number in range(200) for text in TEXTS]  # more than the library gets at once
    assert token_ids(tokenizer, texts, 12) == [token_ids(tokenizer, [text], 12)[0] for text in texts]


def test_cutting_equals_the_library_s_own(tokenizer: Tokenizer) -> None:
    library = Tokenizer.from_str(tokenizer.to_str())
    for max_length in (2, 5, 9):
        library.enable_truncation(max_length)
        assert token_ids(tokenizer, TEXTS, max_length) == [encoding.ids for encoding in library.encode_batch(TEXTS)]


# Left out: what Python lower-cases by its neighbours, and characters younger than Unicode 3.2, of which Python's tables and the library's
# do not know the same ones (U+10781 has a compatible form in Python 3.11's, and none in the library's).
SETTLED = st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="İΣ").filter(
    lambda character: unicodedata.ucd_3_2_0.category(character) != "Cn"
)


@given(st.text(alphabet=SETTLED, max_size=80))
def test_decoding_gives_back_all_that_is_not_white_space_or_case(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = token_ids(tokenizer, [text], 10_000)
    decoded = tokenizer.decode(ids)
    assert decoded == visible(text)
    assert token_ids(tokenizer, [decoded], 10_000)[0][-1] == ids[-1]


@pytest.mark.parametrize(
    "spelling", ["parseHTTPHeader", "parse_http_header", "ParseHttpHeader", "  PARSE\tHTTP\n__HEADER ", "ｐａｒｓｅ HTTP header"]
)
def test_spellings_of_one_name_have_the_same_ids(tokenizer: Tokenizer, spelling: str) -> None:
    assert token_ids(tokenizer, [spelling], 99) == token_ids(tokenizer, ["parse http header"], 99)


@pytest.mark.parametrize(("text", "pieces"), [("utf16", "utf 1 6"), ("a+=b);", "a += b );"), ("x2024", "x 2 0 2 4"), ("f(x)", "f ( x )")])
def test_letters_digits_and_punctuation_share_no_token(tokenizer: Tokenizer, text: str, pieces: str) -> None:
    alone = [token_ids(tokenizer, [piece], 99)[0][:-1] for piece in pieces.split()]
    assert token_ids(tokenizer, [text], 99)[0][:-1] == [token for ids in alone for token in ids]


def test_a_word_has_no_variant_for_its_place(tokenizer: Tokenizer) -> None:
    word = token_ids(tokenizer, ["header"], 99)[0][:-1]
    assert token_ids(tokenizer, ["the header"], 99)[0][-1 - len(word) : -1] == word


def test_marks_stay_with_their_letters(tokenizer: Tokenizer) -> None:
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("हिन्दी भाषा")]
    assert len(pieces) == 2


SCRIPT = """
import hashlib, sys
from mlembed_core.data.tokenize import train_tokenizer
texts = [f"{a} {b} {i} über {a}{b}" for i in range(300) for a, b in (("alpha", "beta"), ("gamma", "δέλτα"), ("tau", "हिन्दी"))]
if sys.argv[1] == "backwards":
    texts = texts[::-1]
lists = (texts[start : start + 70] for start in range(0, len(texts), 70))
print(hashlib.sha256(train_tokenizer(lists, vocab_size=320).to_str().encode()).hexdigest())
"""


def test_training_is_the_same_under_any_hash_seed_thread_count_and_order() -> None:
    def train(order: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, order], env=os.environ | environment, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    first = train("forwards", PYTHONHASHSEED="1", RAYON_NUM_THREADS="1")
    assert first == train("forwards", PYTHONHASHSEED="2", RAYON_NUM_THREADS="4", LC_ALL="C", TZ="Asia/Tokyo")
    assert first == train("backwards", TOKENIZERS_PARALLELISM="false")


def test_the_vocabulary_holds_all_bytes_and_no_more_than_asked(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 400
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())


def test_transformers_reads_the_folder_and_gives_the_same_ids(folder: Path) -> None:
    from transformers import AutoTokenizer

    stock, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    texts = [*TEXTS, "", "a literal <|endoftext|> inside", "<|pad|>"]
    assert stock(texts)["input_ids"] == token_ids(ours, texts, 10_000)
    assert stock(texts, truncation=True)["input_ids"] == token_ids(ours, texts, 16)  # model_max_length is what was saved
    assert (stock.eos_token, stock.pad_token, stock.padding_side) == (EOS, PAD, "right")
    padded = stock(["", "header"], padding=True)
    assert set(padded) == {"input_ids", "attention_mask"}
    assert padded["attention_mask"][0][0] == 1
    assert padded["attention_mask"][0][-1] == 0


def test_saving_is_the_same_to_the_byte(folder: Path, tmp_path: Path) -> None:
    save_tokenizer(load_tokenizer(folder), tmp_path, special_tokens={"pad_token": PAD, "eos_token": EOS}, max_length=16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert hashlib.sha256((tmp_path / name).read_bytes()).digest() == hashlib.sha256((folder / name).read_bytes()).digest()


def plain(post_processor: object | None = None) -> Tokenizer:
    """A tokenizer from elsewhere: words, with a BOS and an EOS in its vocabulary."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if post_processor is not None:
        made.post_processor = post_processor
    return made


BOS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 1)])


@pytest.mark.parametrize(
    ("post_processor", "ids"),
    [
        (None, [3, 4, 2]),
        (BOS, [1, 3, 4, 2]),
        (processors.Sequence([processors.ByteLevel(trim_offsets=False), BOS]), [1, 3, 4, 2]),
        (processors.ByteLevel(trim_offsets=False), [3, 4, 2]),
        (processors.RobertaProcessing(("</s>", 2), ("<s>", 1), trim_offsets=False, add_prefix_space=False), [1, 3, 4, 2]),
    ],
    ids=["none", "bos", "offsets_and_bos", "offsets", "both_already"],
)
def test_eos_is_added_where_it_is_missing(post_processor: object | None, ids: list[int], tmp_path: Path) -> None:
    save_tokenizer(append_eos(plain(post_processor), "</s>"), tmp_path, special_tokens={"eos_token": "</s>"}, max_length=8)
    loaded = load_tokenizer(tmp_path)
    assert token_ids(loaded, ["a b"], 4) == [ids]
    (long,) = token_ids(loaded, ["a b a b b a"], 4)
    assert long == ([1, 3, 4, 2] if ids[0] == 1 else [3, 4, 3, 2])
    assert token_ids(loaded, [""], 4) == [[1, 2] if ids[0] == 1 else [2]]


def test_a_post_processor_without_a_place_for_eos_is_refused() -> None:
    bert = processors.BertProcessing(("a", 3), ("b", 4))
    with pytest.raises(ArtifactError, match=r"BertProcessing.*'</s>'"):
        append_eos(plain(bert), "</s>")


def test_an_eos_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"'<eos>'.*vocabulary lacks"):
        append_eos(plain(), "<eos>")


@pytest.mark.parametrize("post_processor", [None, BOS], ids=["none", "bos"])
def test_a_tokenizer_without_eos_is_not_loaded(post_processor: object | None, tmp_path: Path) -> None:
    plain(post_processor).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json does not append an EOS"):
        load_tokenizer(tmp_path)


def test_cutting_and_padding_baked_into_a_file_are_switched_off(tokenizer: Tokenizer, tmp_path: Path) -> None:
    baked = Tokenizer.from_str(tokenizer.to_str())
    baked.enable_truncation(3)
    baked.enable_padding(length=9)
    baked.save(str(tmp_path / "tokenizer.json"))
    assert token_ids(load_tokenizer(tmp_path), TEXTS, 50) == token_ids(tokenizer, TEXTS, 50)


def test_a_missing_or_damaged_file_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no tokenizer in .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    damaged = tmp_path / "tokenizer.json"
    damaged.write_text((folder / "tokenizer.json").read_text()[:-500])
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is no tokenizer"):
        read_tokenizer(damaged)
    damaged.write_text(json.dumps({"model": "none"}))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is no tokenizer"):
        read_tokenizer(damaged)
