"""The transformer whose two kinds of rows, an image's tokens and a text's, share one attention, each with weights and
adaLN of its own (Esser et al. 2024, section 4, MM-DiT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.nets.blocks import TimestepEmbedding, dot_product_attention
from components.nets.rotary import GRID_BASE, rotary_angles
from components.nets.routing import Passage, Route, of_tokens
from components.nets.transformer import Attention, Modulation, RMSNorm, SwiGLU, gated, modulated


class Stream(nn.Module):
    """What one kind of rows has in a block, for x (B, N, width). Without `answers` the rows are seen and end there."""

    def __init__(self, width: int, heads: int, answers: bool = True):
        super().__init__()
        self.modulation = Modulation(width, width, 6 if answers else 2)
        self.norm_attention = RMSNorm(width, affine=False)
        self.attention = Attention(width, heads, answers=answers)
        self.norm_feed = RMSNorm(width, affine=False) if answers else None
        self.feed = SwiGLU(width) if answers else None

    def projected(
        self, x: Tensor, vectors: tuple[Tensor, ...], angles: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, N, d) each. `vectors`: what the modulation makes of the condition."""
        x = modulated(self.norm_attention(x), *vectors[:2])
        return self.attention.projected(x, x, angles)

    def moved(self, x: Tensor, seen: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        """The rows after what attention has `seen` (B, heads, N, d) and the feed-forward."""
        _, _, gate, shift, scale, gate_feed = vectors
        x = x + gated(self.attention.to_out(seen.transpose(1, 2).flatten(2)), gate)
        return x + gated(self.feed(modulated(self.norm_feed(x), shift, scale)), gate_feed)


class JointBlock(nn.Module):
    """Attention of all rows to all, then each kind's feed-forward. `last`: of the text nothing is asked any more."""

    recomputable = True  # cheap beside what its activations weigh (training.recompute)

    def __init__(self, width: int, heads: int, last: bool = False):
        super().__init__()
        self.image, self.text = Stream(width, heads), Stream(width, heads, answers=not last)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        condition: Tensor,
        of_text: Tensor,
        angles: Tensor,
        there: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """An image's tokens (B, N, width) and a text's (B, M, width), of which `there` (B, M) are seen. `condition`: of
        the image's rows, as Modulation takes it; `of_text`: (B, width)."""
        num_tokens, length = x.shape[1], text.shape[1]
        vectors, text_vectors = self.image.modulation(condition), self.text.modulation(of_text)
        q, k, v = self.image.projected(x, vectors, angles)
        text_q, text_k, text_v = self.text.projected(text, text_vectors)
        seen_by_all = torch.cat([there, there.new_ones(len(x), num_tokens)], dim=1)[:, None, None]  # (B, 1, 1, M + N)
        queries = q if text_q is None else torch.cat([text_q, q], dim=2)
        seen = dot_product_attention(
            queries, torch.cat([text_k, k], dim=2), torch.cat([text_v, v], dim=2), mask=seen_by_all
        )
        if text_q is not None:
            text = self.text.moved(text, seen[:, :, :length], text_vectors)
        return self.image.moved(x, seen[:, :, -num_tokens:], vectors), text


class JointTransformer(nn.Module):
    """Joint blocks over an image's tokens x (B, N, width), and a norm after the last; the text's end with them.

    places:     (N, rank), coordinates of the image's tokens; the text's rows are turned by none, its encoder knew them
    condition:  (B, width), or (B, M, width) for M equal runs of the image's tokens
    context:    (B, L, context_dim), the text; a row of zeros is none, whatever stands in it is seen by nothing. The
                mean of the rows modulates the blocks along with the condition.
    route:      in training, of the image's tokens; `routed` answers second what these are after `tap` blocks
    """

    def __init__(self, width: int, depth: int, heads: int, context_dim: int):
        super().__init__()
        assert width % (2 * heads) == 0, f"{heads} heads of {width} channels are in no pairs"
        self.head_dim = width // heads
        self.embed_text = nn.Linear(context_dim, width)
        self.pooled = TimestepEmbedding(context_dim, width)
        self.blocks = nn.ModuleList(JointBlock(width, heads, last=number + 1 == depth) for number in range(depth))
        self.norm, self.modulation = RMSNorm(width, affine=False), Modulation(width, width, 2)
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim == 2 and "modulation" not in name:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, places: Tensor, condition: Tensor, context: Tensor) -> Tensor:
        return self.routed(x, places, condition, context)[0]

    def routed(
        self,
        x: Tensor,
        places: Tensor,
        condition: Tensor,
        context: Tensor,
        route: Route | None = None,
        tap: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        there = context.any(dim=2)  # (B, L)
        mean = context.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        told, of_text = self.pooled(mean), condition if condition.ndim == 2 else condition.mean(1)
        of_text = of_text + told
        condition = condition + (told if condition.ndim == 2 else told[:, None])
        text = self.embed_text(context)
        angles = rotary_angles(places, self.head_dim, GRID_BASE)
        way = Passage((angles, *(() if route is None else of_tokens(condition, x.shape[1]))), route, tap)
        for number, block in enumerate(self.blocks):
            x = way.before(number, x)
            angles, *of_each = way.beside
            x, text = block(x, text, *(of_each or [condition]), of_text, angles, there)
            x = way.after(number, x)
        return modulated(self.norm(x), *self.modulation(condition)), way.tapped
