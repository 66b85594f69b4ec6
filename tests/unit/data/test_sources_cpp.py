"""The line scanner of C++ headers: what a comment describes, and what is no description."""

from __future__ import annotations

import pytest

from mlembed_core.data.sources.embedded.base import plain
from mlembed_core.data.sources.embedded.cpp import build_comment_to_declaration, describe, scan

HEADER = r"""
// Copyright (c) Somebody. Licensed under a licence of many words.
#pragma once

namespace c10 {

/// Returns the number of elements that this tensor has.
/// \param x not of interest
int64_t numel(const Tensor& x);

/**
 * @brief A vector that keeps small things inline.
 */
template <typename T,
          size_t N = 4>
class SmallVector : public Base<T> {
 public:
  // Appends a value to the end of the vector "{".
  void push_back(T value) {
    // a note inside of a function is no description
    auto slot = grow();
    *slot = value;
  }

  // This comment stands alone and describes nothing at all.

  size_t size_;
};

const char* brace = "{";  // a brace in a string opens nothing

// The largest size that anybody may ever ask for.
constexpr size_t kMax = 10;

} // namespace c10
"""


def scanned() -> dict[str, str]:
    return {describe(comment): declaration for comment, declaration in scan(HEADER.splitlines())}


def test_comments_are_paired_with_the_declaration_below_them() -> None:
    found = scanned()
    assert found["Returns the number of elements that this tensor has."] == "int64_t numel(const Tensor& x);"
    assert found["The largest size that anybody may ever ask for."] == "constexpr size_t kMax = 10;"
    assert found['Appends a value to the end of the vector "{".'].splitlines()[0] == "void push_back(T value) {"


def test_a_long_declaration_gives_its_first_lines() -> None:
    lines = scanned()["A vector that keeps small things inline."].splitlines()
    assert lines[:3] == ["template <typename T,", "          size_t N = 4>", "class SmallVector : public Base<T> {"]
    assert len(lines) <= 12
    assert not any(line.lstrip().startswith("//") for line in lines)


def test_comments_inside_functions_and_those_that_stand_alone_are_left_out() -> None:
    assert not any("no description" in comment or "stands alone" in comment for comment in scanned())


@pytest.mark.parametrize(
    "comment",
    [
        ["// Copyright 2020 The Authors of all this. All rights reserved."],
        ["// TODO(somebody): make this a little faster some day"],
        ["// auto x = compute(a, b); and then another statement;"],
        ["// aten::add.Tensor(Tensor self, Tensor other) -> Tensor"],
        ["// too short"],
        ["// ======================================="],
        ["// See https://example.org/docs for what this function does"],
        ["// Größe des Tensors in Bytes und in Elementen"],
        ["// x + y * z == (a << 3) | 0xFF && !(b ^ c) of the bits"],
    ],
)
def test_what_describes_nothing_is_left_out(comment: list[str]) -> None:
    assert describe(comment) == ""


def test_details_and_pointers_to_pages_are_cut_off() -> None:
    comment = ["/// Applies dropout to the whole input tensor. See https://pytorch.org/x about it.", "/// @param p the rate"]
    assert describe(comment) == "Applies dropout to the whole input tensor."


def test_unbalanced_braces_are_survived() -> None:
    assert list(scan(["}", "}", "// a comment of some five words", "int f();"])) == [(["// a comment of some five words"], "int f();")]


def test_the_worst_lines_take_one_pass() -> None:
    """Inputs that make a backtracking pattern take minutes; this test hangs rather than fails if one comes back."""
    for line in ("// " + "*" * 100_000, '"' + "\\" * 99_999, "{" * 100_000, "// " + "See " * 30_000, "/" * 100_000, "// " + "@c " * 30_000):
        for comment, _ in scan([line, "int f();"]):
            describe(comment)


def test_rows_leak_nothing() -> None:
    built = build_comment_to_declaration(5, 200)
    assert len(built.rows) == 200
    train = {plain(t) for row in built.rows if row.split == "train" for t in (row.query, row.passage, *row.negatives)}
    test = {plain(t) for row in built.rows if row.split == "test" for t in (row.query, row.passage)}
    assert test
    assert not train & test
    assert [part.name for part in built.parts] == ["torch", "pyarrow"]
