"""Captions and prompts as bytes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from components.conditioning.text import cut, longer_than, texts_of_column, tokens_of, tokens_of_column

TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)


def column(texts: list[str], width: int = 0) -> torch.Tensor:
    rows = [text.encode() for text in texts]
    width = max([width, 1, *map(len, rows)])
    return torch.tensor([list(row.ljust(width, b"\0")) for row in rows], dtype=torch.uint8)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 20))
def test_captions_are_cut_between_characters_as_prompts_are(texts, length):
    tokens = tokens_of_column(column(texts), length)
    assert torch.equal(tokens, tokens_of(cut(texts, length), length))


@pytest.mark.parametrize("width", [5, 6, 9])
def test_what_fits_stays_and_what_does_not_ends_with_a_whole_character(width):
    texts = ["abcde", "abcdé"[:4], "", "é" * 2]
    assert texts_of_column(tokens_of_column(column(texts, width), 5).byte()) == tuple(texts)
    longer = ["abcdé", "日本", "ab🐟", "abcdef"]
    tokens = tokens_of_column(column(longer, 9), 5)
    assert [bytes(row.byte().tolist()).rstrip(b"\0") for row in tokens] == [b"abcd", "日".encode(), b"ab", b"abcde"]
    assert longer_than(column([*texts, *longer], 9), 5) == 4 and longer_than(column(texts, width), 5) == 0
