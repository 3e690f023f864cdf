"""Captions that say the same: pairs that a contrast must not count as different, and retrieval not as wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from components.config import Strict
from components.constants import constant
from components.data.randomness import mix

_BASE = 1099511628211  # of the hash of a word's bytes; FNV's prime: odd and large
_BUCKETS = 4096  # of words; two that share one are taken for the same
_SEPARATORS = b" \t\r\n.,:;!?\"'()[]-_/"


class NearDuplicates(Strict):
    """Captions are the same where the words that they share are at least `overlap` of all words that either has (the
    Jaccard index), case and order aside. `without`: words that say nothing, such as those of a variant's colour."""

    overlap: float = Field(1.0, gt=0, le=1)
    without: tuple[str, ...] = ()

    def same(self, one: Tensor, other: Tensor) -> Tensor:
        """Texts' bytes (N, L) and (M, L) int64, zeros where one has ended -> (N, M) boolean."""
        a, b = self._words(one), self._words(other)
        shared = a @ b.T
        union = a.sum(1)[:, None] + b.sum(1) - shared
        return torch.where(union > 0, shared >= self.overlap * union - 1e-6, True)

    def _words(self, tokens: Tensor) -> Tensor:
        """(N, _BUCKETS) float32, 1 where a text has a word of that bucket."""
        found = _buckets(tokens)
        hot = torch.zeros(len(tokens), _BUCKETS + 1, device=tokens.device).scatter_(1, found, 1.0)[:, :_BUCKETS]
        if self.without:
            hot[:, _buckets_of(self.without).to(tokens.device)] = 0
        return hot


def _buckets_of(words: Sequence[str]) -> Tensor:
    rows = [list(word.encode()) for word in words]
    longest = max(map(len, rows))
    found = _buckets(torch.tensor([row + [0] * (longest - len(row)) for row in rows]))
    return found[found < _BUCKETS]


def _buckets(tokens: Tensor) -> Tensor:
    """Bytes (N, L) -> (N, L) int64: the bucket of each word of a text, _BUCKETS where there is none."""
    lower = torch.where((tokens >= ord("A")) & (tokens <= ord("Z")), tokens + 32, tokens)
    is_letter = (lower[..., None] != constant((0, *_SEPARATORS), tokens)).all(-1)
    before = torch.nn.functional.pad(is_letter[:, :-1], (1, 0))
    starts = is_letter & ~before
    word = (starts.cumsum(1) - 1).clamp(min=0)
    place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    first = torch.where(starts, place, 0).cummax(1).values  # where the word of each byte begins
    powers = constant(tuple(_power(exponent) for exponent in range(tokens.shape[1])), tokens)
    terms = torch.where(is_letter, (lower + 1) * powers[place - first], 0)
    hashes = torch.zeros_like(tokens).scatter_add_(1, word, terms)
    held = torch.zeros_like(tokens).scatter_add_(1, word, is_letter.long()) > 0
    return torch.where(held, mix(hashes) & (_BUCKETS - 1), _BUCKETS)


def _power(exponent: int) -> int:
    """_BASE to it, wrapped to a signed 64-bit integer as torch multiplies."""
    value = pow(_BASE, exponent, 1 << 64)
    return value - (1 << 64) if value >= 1 << 63 else value
