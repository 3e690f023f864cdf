"""The transformer that images, tokens, films and sounds share: RMSNorm, attention with normalised queries and keys,
rotary positions, SwiGLU, and by choice adaLN-zero, cross-attention, a causal mask and kept keys and values.

It knows no task: tokens come embedded, (B, N, width), each with its place (components/nets/rotary.py).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import dot_product_attention
from components.nets.kept import Kept, KeptTokens, new_cache
from components.nets.rotary import SEQUENCE_BASE, Turns, rotary_angles, rotate, turned, turns_of
from components.nets.routing import Passage, Route, of_tokens

EPS = 1e-6
_EPS = torch.tensor(EPS, device="cpu")


class RMSNorm(nn.Module):
    """Divides by the root of the mean square over the last axis (Zhang and Sennrich 2019), in float32."""

    def __init__(self, width: int, affine: bool = True):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return rms_normalised(x, self.weight)


def rms_normalised(x: Tensor, weight: Tensor | None) -> Tensor:
    """x (..., width), times a weight that broadcasts to it, if any."""
    wide = x.float()
    if wide.device.type != "cpu" or torch.is_grad_enabled():
        if weight is None or weight.ndim == 1:
            return F.rms_norm(wide, wide.shape[-1:], weight, EPS).to(x.dtype)
        normalised = F.rms_norm(wide, wide.shape[-1:], None, EPS)
    else:
        # torch's own is a dozen calls there, each of which costs as much as the numbers of a few tokens
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        normalised = wide * torch.addcmul(_EPS, length, length, value=1 / wide.shape[-1]).rsqrt_()
    return (normalised if weight is None else normalised * weight).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention of (B, N, width) over itself, or over a context (B, M, context_dim).

    Queries and keys are normalised (Dehghani et al. 2023, section 2): in bfloat16 their products overflow the softmax
    otherwise. Positions turn those of self-attention alone. Without `answers` there are keys and values alone."""

    def __init__(self, width: int, heads: int, context_dim: int | None = None, answers: bool = True):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False) if answers else None
        self.to_k = nn.Linear(context_dim or width, width, bias=False)
        self.to_v = nn.Linear(context_dim or width, width, bias=False)
        self.norm_q, self.norm_k = RMSNorm(width // heads) if answers else None, RMSNorm(width // heads)
        self.to_out = nn.Linear(width, width, bias=False) if answers else None

    def forward(
        self,
        x: Tensor,
        angles: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        kept: tuple[KeptTokens, int, Turns] | None = None,
    ) -> Tensor:
        """`mask`: boolean, broadcasts to (B, heads, N, M), true where a token attends; `kept`: with the layer's number
        and what turns the tokens, in the place of all other arguments."""
        if kept is not None:
            tokens, layer, turns = kept
            return self.to_out(tokens.attended(layer, *self._following(x, turns)).flatten(2))
        q, k, v = self.projected(x, x if context is None else context, angles)
        return self.to_out(dot_product_attention(q, k, v, mask, causal).transpose(1, 2).flatten(2))

    def _following(self, x: Tensor, turns: Turns) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, N, heads, d) of few tokens, as `projected` makes them by more calls: queries and
        keys are normalised and turned together."""
        both = torch.stack([self.to_q(x), self.to_k(x)], dim=2).unflatten(3, (self.heads, -1))  # (B, N, 2, heads, d)
        weights = torch.stack([self.norm_q.weight, self.norm_k.weight])[:, None]
        q, k = turned(rms_normalised(both, weights), turns).unbind(2)
        return q, k, self.to_v(x).unflatten(2, (self.heads, -1))

    def projected(self, x: Tensor, context: Tensor, angles: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """Queries (B, heads, N, d) of x, if it has any, keys and values (B, heads, M, d) of the context."""
        q = None if self.to_q is None else self.norm_q(self._split(self.to_q(x)))
        k, v = self._split(self.to_k(context)), self._split(self.to_v(context))
        k = self.norm_k(k)
        return (q, k, v) if angles is None else (rotate(q, angles), rotate(k, angles), v)

    def _split(self, values: Tensor) -> Tensor:
        return values.unflatten(2, (self.heads, -1)).transpose(1, 2)


class SwiGLU(nn.Module):
    """Feed-forward gated by a SiLU (Shazeer 2020), as large as one of 4 * width without a gate unless told."""

    def __init__(self, width: int, hidden: int = 0):
        super().__init__()
        hidden = hidden or 8 * math.ceil(width / 3)  # two thirds of 4 * width, a multiple of 8
        self.gate = nn.Linear(width, hidden, bias=False)
        self.value = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.gate(x)) * self.value(x))


class Modulation(nn.Module):
    """adaLN-zero (Peebles and Xie 2023, section 3.2): a condition (B, condition_dim), or one for each of M equal runs
    of tokens (B, M, condition_dim) -> `count` vectors (B, 1 or M, width), all zero at first."""

    modulates = True  # a kind of embedding, for the optimizer

    def __init__(self, condition_dim: int, width: int, count: int):
        super().__init__()
        self.count = count
        self.linear = nn.Linear(condition_dim, count * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        vectors = self.linear(F.silu(condition))
        return (vectors[:, None] if vectors.ndim == 2 else vectors).chunk(self.count, dim=2)


def by_runs(tokens: Tensor, vectors: Tensor) -> Tensor:
    """Tokens (B, N, width) as (B, M, N / M, width), where each of M runs has a vector (B, M, width)."""
    return tokens.unflatten(1, (vectors.shape[1], -1))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, width) under vectors (B, M, width), each of a run of N / M tokens."""
    return (by_runs(x, shift) * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    return (by_runs(x, gate) * gate[:, :, None]).flatten(1, 2)


class Block(nn.Module):
    """Self-attention, cross-attention where there is a `context_dim`, feed-forward; each normalised first and residual.

    With a `condition_dim` shifts, scales and gates of self-attention and feed-forward are made of a condition, and the
    block begins as the identity."""

    recomputable = True  # cheap beside what its activations weigh (training.recompute)

    def __init__(self, width: int, heads: int, condition_dim: int = 0, context_dim: int = 0, hidden: int = 0):
        super().__init__()
        self.modulation = Modulation(condition_dim, width, 6) if condition_dim else None
        self.norm_attention = RMSNorm(width, affine=not condition_dim)
        self.attention = Attention(width, heads)
        self.norm_cross = RMSNorm(width) if context_dim else None
        self.cross = Attention(width, heads, context_dim) if context_dim else None
        self.norm_feed = RMSNorm(width, affine=not condition_dim)
        self.feed = SwiGLU(width, hidden)

    def forward(self, x: Tensor, condition: Tensor | None = None, context: Tensor | None = None, **attention) -> Tensor:
        """`attention`: what Attention.forward takes besides."""
        if self.modulation is None:
            x = self._crossed(x + self.attention(self.norm_attention(x), **attention), context)
            return x + self.feed(self.norm_feed(x))
        shift, scale, gate, shift_feed, scale_feed, gate_feed = self.modulation(condition)
        x = x + gated(self.attention(modulated(self.norm_attention(x), shift, scale), **attention), gate)
        x = self._crossed(x, context)
        return x + gated(self.feed(modulated(self.norm_feed(x), shift_feed, scale_feed)), gate_feed)

    def _crossed(self, x: Tensor, context: Tensor | None) -> Tensor:
        return x if self.cross is None else x + self.cross(self.norm_cross(x), context=context)


class Transformer(nn.Module):
    """Blocks over tokens (B, N, width), and a norm after the last.

    places:     (N, rank) or (B, N, rank), coordinates of the tokens, of any numbers
    condition:  (B, condition_dim), or (B, M, condition_dim) for M equal runs of the tokens, of adaLN-zero
    context:    (B, M, context_dim), of cross-attention
    mask:       boolean, broadcasts to (B, heads, N, N), true where a token attends; with `causal` there is none
    kept:       of a causal net: the tokens are those that follow what is kept, which they attend to and are added to
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        causal: bool = False,
        condition_dim: int = 0,
        context_dim: int = 0,
        hidden: int = 0,
        base: float = SEQUENCE_BASE,
    ):
        super().__init__()
        assert width % (2 * heads) == 0, f"{heads} heads of {width} channels are in no pairs"
        self.causal, self.base, self.heads, self.head_dim = causal, base, heads, width // heads
        self.blocks = nn.ModuleList(Block(width, heads, condition_dim, context_dim, hidden) for _ in range(depth))
        self.norm = RMSNorm(width, affine=not condition_dim)
        self.modulation = Modulation(condition_dim, width, 2) if condition_dim else None
        self._initialise(depth)

    def _initialise(self, depth: int) -> None:
        for block in self.blocks:
            for name, parameter in block.named_parameters():
                if parameter.ndim == 2 and "modulation" not in name:
                    nn.init.xavier_uniform_(parameter)
            if block.modulation is None:
                # Radford et al. 2019, section 2.3: the residual's spread does not grow with the depth
                with torch.no_grad():
                    block.attention.to_out.weight.div_(math.sqrt(2 * depth))
                    block.feed.out.weight.div_(math.sqrt(2 * depth))

    def forward(
        self,
        x: Tensor,
        places: Tensor,
        condition: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        angles = rotary_angles(places, self.head_dim, self.base)
        if kept is not None:
            tokens, turns = kept.tokens(x.shape[1]), turns_of(angles)
            for layer, block in enumerate(self.blocks):
                x = block(x, condition, context, kept=(tokens, layer, turns))
            return self._ended(x, condition)
        for block in self.blocks:
            x = block(x, condition, context, angles=angles, mask=mask, causal=self.causal)
        return self._ended(x, condition)

    def reusing(
        self,
        x: Tensor,
        places: Tensor,
        condition: Tensor | None = None,
        context: Tensor | None = None,
        deep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As forward, and what the middle half of the blocks adds to the tokens (B, N, width), which is `deep` where
        that is given, of an evaluation nearby: those blocks are then left out (Chen et al. 2024, Delta-DiT)."""
        attention = {"angles": rotary_angles(places, self.head_dim, self.base), "causal": self.causal}
        first = max(1, len(self.blocks) // 4)
        last = max(first, len(self.blocks) - first)

        def through(x: Tensor, blocks: nn.ModuleList) -> Tensor:
            for block in blocks:
                x = block(x, condition, context, **attention)
            return x

        before = through(x, self.blocks[:first])
        if deep is None:
            x = through(before, self.blocks[first:last])
            deep = x - before
        else:
            x = before + deep
        return self._ended(through(x, self.blocks[last:]), condition), deep

    def routed(
        self,
        x: Tensor,
        places: Tensor,
        condition: Tensor,
        context: Tensor | None = None,
        route: Route | None = None,
        tap: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` of a net that looks both ways, in training: some tokens may bypass some blocks (`route`), and the
        tokens after `tap` blocks come second."""
        angles = rotary_angles(places, self.head_dim, self.base)
        way = Passage((angles, *(() if route is None else of_tokens(condition, x.shape[1]))), route, tap)
        for number, block in enumerate(self.blocks):
            x = way.before(number, x)
            angles, *of_each = way.beside
            x = way.after(number, block(x, *(of_each or [condition]), context, angles=angles))
        return self._ended(x, condition), way.tapped

    def _ended(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = self.norm(x)
        return x if self.modulation is None else modulated(x, *self.modulation(condition))

    def row_bytes(self, length: int) -> int:
        """Of one row of `allocate`."""
        return 2 * len(self.blocks) * length * self.heads * self.head_dim * self._weight().element_size()

    def allocate(self, rows: int, length: int) -> Tensor:
        """A cache for Kept of `rows` rows of up to `length` tokens, on the net's device."""
        assert self.causal, "a net that looks ahead keeps nothing"
        return new_cache(rows, len(self.blocks), self.heads, length, self._weight())

    def _weight(self) -> Tensor:
        return self.blocks[0].attention.to_k.weight
