"""The words of a text, for methods that know texts by their words: TF-IDF and BM25, as controls of a score and to mine negatives."""

from __future__ import annotations

from tokenizers import Regex, normalizers, pre_tokenizers

from mlembed_core.data.tokenize import CAMEL_CASE

_normalise = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(CAMEL_CASE), " "), normalizers.Lowercase()])
_split_words = pre_tokenizers.Split(Regex(r"[\p{L}\p{M}\p{N}]+"), behavior="removed", invert=True)


def words(text: str) -> list[str]:
    """Runs of letters (with their marks) and digits, in lower case, identifiers taken apart."""
    return [word for word, _ in _split_words.pre_tokenize_str(_normalise.normalize_str(text))]
