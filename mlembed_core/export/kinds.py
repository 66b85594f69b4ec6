"""What an export can be, in words that the command line can offer without loading torch."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """Of the token table."""

    COMPAT = "compat"  # multiplied out: a stock model
    FACTORISED = "factorised"  # two factors: small on disk and in memory


class StoredType(StrEnum):
    """Of the weights on disk."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
