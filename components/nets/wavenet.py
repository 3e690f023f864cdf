"""WaveNet (van den Oord et al. 2016b): causal dilated convolutions of gated units, residual and skip connections.

`WaveNet(...)` answers for all samples of waves at once; `WaveNet.next` answers for one sample of each row and keeps, in
a queue a layer, what later samples look back at (Le Paine et al. 2016; components/sampling/state.py). A convolution of
two taps is two matrices here, one for the present and one for what lies `dilation` samples back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.companding import CODES, codes_of, companded
from components.constants import constant


class Layer(nn.Module):
    """A gated unit: x (B, T, W) and what steers it (B, T, 2W) -> (B, T, W) for the next layer, (B, T, S) to skip."""

    recomputable = True

    def __init__(self, width: int, skip: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.now = nn.Linear(width, 2 * width)
        self.before = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width + skip)

    def forward(self, x: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        past = F.pad(x, (0, 0, self.dilation, 0))[:, : x.shape[1]]
        return self.step(x, past, told)

    def step(self, x: Tensor, past: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        value, gate = (self.now(x) + self.before(past) + told).chunk(2, dim=-1)
        found, skipped = self.out(value.tanh() * gate.sigmoid()).tensor_split([x.shape[-1]], dim=-1)
        return (x + found) * math.sqrt(0.5), skipped


class WaveNet(nn.Module):
    """Samples of clips (B, T) in [-1, 1] -> numbers (B, T, outputs) of those that follow, each of what lies before it.

    Rows are steered by ids (B, K), such as of a class and a speaker, and by their place: every `block` samples have an
    embedding, `blocks` in all, so that the net knows how far a clip is. `ids`: how many there are of each of the K
    kinds. Dilations go 1, 2, 4, ... `depth` times, over again `cycles` times.
    """

    def __init__(
        self,
        outputs: int,
        width: int,
        skip: int,
        depth: int,
        cycles: int,
        ids: Sequence[int],
        block: int,
        blocks: int,
        told: int = 64,
    ):
        super().__init__()
        self.width, self.block, self.num_blocks = width, block, blocks
        self.dilations = [2**level for _ in range(cycles) for level in range(depth)]
        self.sample = nn.Embedding(CODES + 1, width)  # the last: before the clip
        self.loudness = nn.Linear(1, width, bias=False)
        self.ids = nn.ModuleList(nn.Embedding(count, told) for count in ids)
        self.place = nn.Embedding(blocks, told)
        self.tell = nn.Sequential(nn.SiLU(), nn.Linear(told, told), nn.SiLU())
        self.told = nn.Linear(told, len(self.dilations) * 2 * width, bias=False)
        self.layers = nn.ModuleList(Layer(width, skip, dilation) for dilation in self.dilations)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(skip, skip), nn.ReLU(), nn.Linear(skip, outputs))
        for embedding in (*self.ids, self.place, self.sample):
            nn.init.normal_(embedding.weight, std=0.5)

    @property
    def receptive_field(self) -> int:
        """How many samples before it a sample depends on."""
        return sum(self.dilations) + 1

    def forward(self, before: Tensor, ids: Tensor, first: Tensor | None = None) -> Tensor:
        """`before` (B, T): the sample before each that is asked for, from the beginning of block `first` (B,) of the
        clip on, 0 if None. Where that is negative there is nothing, in every layer."""
        count = -(-before.shape[1] // self.block)
        start = torch.zeros(len(before), dtype=torch.int64, device=before.device) if first is None else first
        blocks = start[:, None] + torch.arange(count, device=before.device)
        positions = start[:, None] * self.block + torch.arange(before.shape[1], device=before.device)
        inside = None if first is None else (positions >= 0).unsqueeze(2)
        x = self._heard(before, positions > 0)
        told = self._told(ids, blocks.clamp(0, self.num_blocks - 1))[:, :, None]
        skipped: Tensor | float = 0.0
        for layer, steering in zip(self.layers, told.chunk(len(self.layers), dim=3), strict=True):
            x = x if inside is None else x * inside
            spread = steering.expand(-1, -1, self.block, -1).flatten(1, 2)[:, : x.shape[1]]
            x, skip = layer(x, spread)
            skipped = skipped + skip
        return self._answer(skipped)

    def _heard(self, waves: Tensor, exists: Tensor) -> Tensor:
        codes = codes_of(waves).masked_fill(~exists, CODES)
        return self.sample(codes) + self.loudness((companded(waves) * exists).unsqueeze(-1))

    def _told(self, ids: Tensor, blocks: Tensor) -> Tensor:
        """Ids (B, kinds) and blocks (B, N) -> (B, N, layers * 2W)."""
        known = self.place(blocks)
        for kind, embed in enumerate(self.ids):
            known = known + embed(ids[:, kind, None])
        return self.told(self.tell(known))

    def _answer(self, skipped: Tensor) -> Tensor:
        return self.head(skipped * math.sqrt(1 / len(self.layers))).float()

    # -- one sample at a time -----------------------------------------------------------------------------------------

    @property
    def next(self) -> NextSample:
        return NextSample(self)


class NextSample:
    """A WaveNet that keeps rows between calls: asked for samples in their order, each with the one before it.

    A layer of dilation d has a ring of d + 1 inputs, and place t of it is t modulo d + 1: what a call writes, it may
    write again. The rings lie one after the other, (slots, rings, W)."""

    def __init__(self, net: WaveNet):
        self.net = net
        sizes = [dilation + 1 for dilation in net.dilations]
        self.rings = sum(sizes)
        self._sizes, self._starts = tuple(sizes), tuple(sum(sizes[:number]) for number in range(len(sizes)))

    @property
    def row_bytes(self) -> int:
        return 4 * self.rings * self.net.width

    def allocate(self, rows: int) -> Tensor:
        return self.net.loudness.weight.new_zeros(rows, self.rings, self.net.width)

    def __call__(self, *, position: Tensor, before: Tensor, ids: Tensor, cache: Tensor, slot: Tensor) -> Tensor:
        """`position`: (B,) int64 of the sample asked for; `before`: (B,) in [-1, 1], the sample before it, which
        position 0 has none of; `ids`: (B, K) -> (B, outputs)."""
        net = self.net
        x = net._heard(before, position > 0)
        told = net._told(ids, position[:, None] // net.block)[:, 0].chunk(len(net.layers), dim=1)
        sizes, starts = (constant(values, position) for values in (self._sizes, self._starts))
        now = starts + position[:, None] % sizes  # (B, layers)
        past = starts + (position[:, None] + 1) % sizes  # a ring ahead is `dilation` back
        known = (position[:, None] >= sizes - 1).unsqueeze(2).to(x.dtype)
        kept = cache[slot[:, None], past] * known
        inputs = []
        skipped: Tensor | float = 0.0
        for number, layer in enumerate(net.layers):
            inputs.append(x)
            x, skip = layer.step(x, kept[:, number], told[number])
            skipped = skipped + skip
        cache[slot[:, None], now] = torch.stack(inputs, 1).to(cache.dtype)
        return net._answer(skipped)
