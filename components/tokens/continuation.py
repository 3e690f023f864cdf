"""The next tokens of sequences by a causal net that keeps its rows between calls."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from components.nets.token_transformer import CausalTokenTransformer
from components.tokens.draws import RowDraws


class Continuation:
    """What answers a sampler's calls: the net's `next`, with the cache that it keeps its rows in, and the draw from its
    logits, of all rows of a call at once."""

    def __init__(self, net: CausalTokenTransformer, following: Callable[..., Tensor] | None = None):
        """`following`: what gives the logits in the place of the net's `next`."""
        self._net, self._next = net, following or net.next

    def recorded(self, record: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Continuation:
        """The same by a recording of the net; what is drawn, the host decides."""
        return Continuation(self._net, record(self._net.next))

    @property
    def row_bytes(self) -> int:
        return self._net.row_bytes

    def allocate(self, rows: int) -> Tensor:
        return self._net.allocate(rows)

    def __call__(self, ids: Tensor, position: Tensor, cache: Tensor, slot: Tensor, **draws: Tensor) -> Tensor:
        """Tokens (B,) after ids (B, n); `draws`: of RowDraws."""
        return RowDraws(**draws).tokens(self._next(ids=ids, position=position, cache=cache, slot=slot))
