"""What may happen to a row that the recipe forbids: a policy per check."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from mlembed_core.config.base import Section


class Check(StrEnum):
    """The checks that each row has to pass, in this order: a row counts under the first that it fails."""

    BROKEN_UNICODE = "broken_unicode"
    EMPTY_QUERY = "empty_query"
    EMPTY_PASSAGE = "empty_passage"
    TOO_LONG = "too_long"
    QUERY_EQUALS_PASSAGE = "query_equals_passage"
    PASSAGE_AMONG_NEGATIVES = "passage_among_negatives"
    UNKNOWN_LABEL = "unknown_label"
    TOO_FEW_NEGATIVES = "too_few_negatives"
    DUPLICATE = "duplicate"


class Policy(StrEnum):
    """Of one check."""

    ERROR = "error"  # the stage stops and names file, place and text
    DROP = "drop"  # the row is left out and counted
    KEEP = "keep"  # the row is counted and stays


NeverKept = Literal[Policy.ERROR, Policy.DROP]  # such a row cannot be trained on, or teaches the wrong thing


class RowChecks(Section):
    """A policy per check, and their limits."""

    broken_unicode: NeverKept = Field(Policy.DROP, description="bytes that are no UTF-8, a NUL, or the sign for lost characters")
    empty_query: NeverKept = Policy.DROP
    empty_passage: NeverKept = Policy.DROP
    too_long: Policy = Field(Policy.DROP, description="query or passage; longer negatives are left out of their row")
    query_equals_passage: Policy = Policy.DROP
    passage_among_negatives: NeverKept = Policy.DROP
    unknown_label: Policy = Field(Policy.ERROR, description="none of the source's labels; only where it lists them")
    too_few_negatives: Policy = Field(Policy.KEEP, description="fewer than num_negatives that differ")
    duplicate: Policy = Field(Policy.DROP, description="query and passage of an earlier row of the source")
    max_characters: PositiveInt = Field(200_000, description="of a text; the tokenizer reads all of it to keep the first max_length tokens")
    max_dropped: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of dropped rows above which the stage stops: so many bad rows mean a wrong file"
    )

    def policy(self, check: Check) -> Policy:
        policy: Policy = getattr(self, check.value)
        return policy
