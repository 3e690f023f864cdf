"""Keys and values that causal transformers keep between calls, in a cache whose slots trajectories lease
(components/sampling/state.py): how those of a call are written, and how its tokens attend to all that are kept.

A CPU reads them where they lie, since a copy costs there as much as the attention. A GPU copies the call's rows, so
that one recording (components/cuda_graphs.py) answers every call of as many.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from components.nets.blocks import dot_product_attention

MOST_SLOTS = 2  # that are read in place for each row of a call; beyond it a copy of the rows costs less


def new_cache(rows: int, depth: int, heads: int, length: int, weight: Tensor) -> Tensor:
    """Zeros for Kept, of a net with this weight (heads * head_dim, ...). What a layer keeps lies together."""
    head_dim = weight.shape[0] // heads
    return weight.new_zeros(depth, 2, rows, heads, length, head_dim).movedim(2, 0)


class Kept(NamedTuple):
    """The cache of a net, and a call's rows in it.

    cache:     (slots, depth, 2, heads, length, head_dim), of `new_cache`
    slot:      (B,) int64
    position:  (B,) int64, how many tokens of each row are kept already: where the call's first one stands
    """

    cache: Tensor
    slot: Tensor
    position: Tensor

    def positions(self, count: int) -> Tensor:
        """Of a call's tokens, (B, count)."""
        return self.position[:, None] + torch.arange(count, device=self.position.device)

    def tokens(self, count: int) -> KeptTokens:
        """For `count` tokens of each row."""
        positions, span = self.positions(count), self._span()
        rows, cache = (self.slot, self.cache) if span is None else (span.place, self.cache[span.first : span.end])
        seen_from = positions if span is None else span.scattered(positions)
        seen = torch.arange(cache.shape[4], device=positions.device) <= seen_from[:, None, :, None]
        if seen.device.type == "cpu":
            seen = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
            if count == 1:
                seen = seen.repeat_interleave(cache.shape[3], dim=0)[:, 0]
        layers = [layer.unbind(1) for layer in cache.unbind(1)]
        heads = torch.arange(cache.shape[3], device=rows.device)
        at = ((rows[:, None, None] * len(heads) + heads) * cache.shape[4] + positions[:, :, None]).flatten()
        return KeptTokens(layers, at, rows, span, seen)

    def _span(self) -> Span | None:
        """None on a GPU, which nobody waits for to know the slots, and if too many others lie between."""
        if self.slot.device.type != "cpu":
            return None
        first, last = (int(bound) for bound in self.slot.aminmax())
        if last - first >= MOST_SLOTS * len(self.slot):
            return None
        place = self.slot - first
        return Span(first, last + 1, place, torch.equal(place, torch.arange(last - first + 1)))


class Span(NamedTuple):
    """Slots from `first` up to `end`, all of a call's among them: row i at `place` (B,) of them, which is i itself if
    they are `in_order`."""

    first: int
    end: int
    place: Tensor
    in_order: bool

    def scattered(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) as ones of the span, zeros between them."""
        if self.in_order:
            return rows
        return rows.new_zeros(self.end - self.first, *rows.shape[1:]).index_copy_(0, self.place, rows)

    def gathered(self, rows: Tensor) -> Tensor:
        """The way back."""
        return rows if self.in_order else rows.index_select(0, self.place)


class KeptTokens(NamedTuple):
    """Kept, for N tokens of each of its rows.

    layers:  keys and values (S, heads, length, head_dim) of each layer, of the span or of all slots
    at:      (B * N * heads,), where the tokens' stand, of S * heads * length
    rows:    (B,), of S
    span:    what is read in place; None: the rows are copied
    seen:    what each token attends to, itself and all before it: a mask of `dot_product_attention` or, of one token a
             row on a CPU, what is added to its products, (S * heads, 1, length). What lies beyond is masked and not cut
             off, so that rows at any positions share a call and none depends on the others
    """

    layers: list[tuple[Tensor, Tensor]]
    at: Tensor
    rows: Tensor
    span: Span | None
    seen: Tensor

    def attended(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keeps a call's keys and values, and lets its queries attend to all that is kept of its rows: (B, N, heads, d)
        each, and the answer."""
        keys, values = self.layers[layer]
        for kept, new in ((keys, k), (values, v)):
            kept.view(-1, kept.shape[3]).index_copy_(0, self.at, new.reshape(-1, kept.shape[3]).to(kept.dtype))
        if self.span is None:
            return self._answers(q, keys.index_select(0, self.rows), values.index_select(0, self.rows))
        return self.span.gathered(self._answers(self.span.scattered(q), keys, values))

    def _answers(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if self.seen.ndim == 4:
            keys, values = keys.to(q.dtype), values.to(q.dtype)
            return dot_product_attention(q.transpose(1, 2), keys, values, self.seen).transpose(1, 2)
        # torch's kernel is made for many queries; for one a row, products by themselves take two thirds of its time
        queries, keys, values = (x.float().reshape(len(self.seen), -1, x.shape[3]) for x in (q, keys, values))
        products = torch.baddbmm(self.seen, queries, keys.transpose(1, 2), alpha=q.shape[3] ** -0.5)
        return torch.bmm(products.softmax(-1), values).view(q.shape).to(q.dtype)
