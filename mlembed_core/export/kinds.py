"""What exports and vectors can be, in words that the command line can offer without loading torch."""

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


class VectorType(StrEnum):
    """Of the vectors that are written or searched."""

    FLOAT32 = "float32"
    INT8 = "int8"  # a quarter of the size
    BINARY = "binary"  # a thirty-second
