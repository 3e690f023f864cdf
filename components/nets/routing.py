"""Tokens that bypass a span of a transformer's blocks in training and join the others after it (Krause et al. 2025,
TREAD): a step costs less, and those that went through learn to do without them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Route(NamedTuple):
    """The blocks from number `first` up to `last` see the tokens `through` (B, n) int64, ascending, alone."""

    first: int
    last: int
    through: Tensor


def those_through(numbers: Tensor, share: float) -> Tensor:
    """Of numbers (B, N), the places (B, n) of the largest, ascending: all but `share` of them, one at least. Of equal
    numbers the first ones stay out."""
    bypassing = min(int(share * numbers.shape[1]), numbers.shape[1] - 1)
    return numbers.argsort(dim=1, stable=True)[:, bypassing:].sort(dim=1).values


def taken(x: Tensor, through: Tensor) -> Tensor:
    """Of tokens (B, N, D), or what all rows share, (N, D): those that go through, (B, n, D)."""
    if x.ndim == 2:
        return x[through]
    return x.gather(1, through[:, :, None].expand(-1, -1, x.shape[2]))


def returned(whole: Tensor, part: Tensor, through: Tensor) -> Tensor:
    """All tokens (B, N, D) again, those (B, n, D) that went through in their places."""
    return whole.scatter(1, through[:, :, None].expand(-1, -1, whole.shape[2]), part.to(whole.dtype))


def of_tokens(condition: Tensor, num_tokens: int) -> tuple[Tensor, ...]:
    """What a condition tells of tokens one by one: (B, N, D), of (B, M, D) for M equal runs of them; nothing of (B, D)
    for them all."""
    return () if condition.ndim == 2 else (condition.repeat_interleave(num_tokens // condition.shape[1], dim=1),)


class Passage:
    """Tokens on their way through blocks, all of them or, within a route's span, those that go through.

    `beside`: what belongs to tokens, (N, D) or (B, N, D) each, and goes with them. `tap`: after how many blocks they
    are kept besides as `tapped`; 0 for never."""

    def __init__(self, beside: tuple[Tensor, ...], route: Route | None = None, tap: int = 0):
        self.beside, self.tapped = beside, None
        self._all, self._route, self._tap = beside, route, tap
        self._whole: Tensor | None = None

    def before(self, number: int, x: Tensor) -> Tensor:
        """The tokens (B, N, D) that a block sees."""
        route = self._route
        if route is None or number != route.first:
            return x
        self._whole, self.beside = x, tuple(taken(one, route.through) for one in self._all)
        return taken(x, route.through)

    def after(self, number: int, x: Tensor) -> Tensor:
        """The tokens that go on from a block."""
        route = self._route
        if route is not None and number + 1 == route.last:
            x, self.beside = returned(self._whole, x, route.through), self._all
        if number + 1 == self._tap:
            self.tapped = x
        return x
