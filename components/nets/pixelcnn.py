"""PixelCNN++'s two streams: what lies above a pixel, and what lies above and to its left (van den Oord et al. 2016;
Salimans et al. 2017), shifted and padded so that no weight is masked. One resolution throughout; weights are not
normalised.

`PixelCNN(rows)` answers for all pixels at once. `PixelCNN.next` answers for one pixel of each row and keeps what it
computed (components/sampling/state.py): above-streams a line at a time, left-streams a pixel at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gated(x: Tensor) -> Tensor:
    """(B, 2F, ...) -> (B, F, ...), one half by the sigmoid of the other (van den Oord et al. 2016a, equation 2)."""
    value, gate = x.chunk(2, dim=1)
    return value * gate.sigmoid()


class Block(nn.Module):
    """A gated residual step of both streams: the above-stream first, then the left-stream, which is told of it."""

    recomputable = True

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.above_in = nn.Conv2d(width, width, (2, 3))
        self.above_out = nn.Conv2d(width, 2 * width, (2, 3))
        self.left_in = nn.Conv2d(width, width, (2, 2))
        self.left_out = nn.Conv2d(width, 2 * width, (2, 2))
        self.told = nn.Conv2d(width, width, 1)
        self.label = nn.Embedding(num_classes, 2 * width) if num_classes else None

    def forward(self, above: Tensor, left: Tensor, label: Tensor | None, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, F, H, W) each; `kept`: dropout's factors (B, F, H, W) of the left-stream's middle."""
        h = F.elu(self.above_in(over(F.elu(above))))
        above = above + gated(self.above_out(over(h)))
        h = F.elu(self.left_in(over_left(F.elu(left))) + self.told(F.elu(above)))
        h = h if kept is None else h * kept
        return above, left + gated(self.left_out(over_left(h)) + self.steered(label))

    def steered(self, label: Tensor | None) -> Tensor | float:
        return 0.0 if self.label is None else self.label(label)[:, :, None, None]


def over(x: Tensor) -> Tensor:
    """Padded so that a kernel of (2, 3) sees a pixel's line and the one above."""
    return F.pad(x, (1, 1, 1, 0))


def over_left(x: Tensor) -> Tensor:
    """Padded so that a kernel of (2, 2) sees a pixel, what is left of it, and both above."""
    return F.pad(x, (1, 0, 1, 0))


class PixelCNN(nn.Module):
    """Rows (B, C, H, W) in [-1, 1] -> numbers for each pixel, (B, outputs, H, W), that depend on the pixels before it
    in reading order."""

    def __init__(
        self, shape: tuple[int, int, int], outputs: int, width: int = 32, blocks: int = 6, num_classes: int = 0
    ):
        super().__init__()
        channels, *_ = self.shape = shape
        self.width, self.outputs, inputs = width, outputs, channels + 1  # one channel more tells pixels from padding
        self.above = nn.Conv2d(inputs, width, (2, 3))
        self.left_above = nn.Conv2d(inputs, width, (1, 3))
        self.left = nn.Conv2d(inputs, width, (2, 1))
        self.blocks = nn.ModuleList(Block(width, num_classes) for _ in range(blocks))
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, rows: Tensor, label: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """`kept`: dropout's factors (B, blocks, F, H, W), or None."""
        x = F.pad(rows, (0, 0, 0, 0, 0, 1), value=1.0)
        above = self.above(F.pad(x, (1, 1, 2, 0))[:, :, :-1])  # lines i - 2 and i - 1
        left = self.left_above(F.pad(x, (1, 1, 1, 0))[:, :, :-1]) + self.left(F.pad(x, (1, 0, 1, 0))[:, :, :, :-1])
        for number, block in enumerate(self.blocks):
            above, left = block(above, left, label, None if kept is None else kept[:, number])
        return self.out(F.elu(left))

    # -- one pixel at a time ------------------------------------------------------------------------------------------

    @property
    def next(self) -> NextPixel:
        return NextPixel(self)


class NextPixel:
    """A PixelCNN that keeps rows between calls: asked for pixels in reading order, each with the one before it.

    The cache holds channels last, with a line and a column of zeros around: pixels (slots, H + 2, W + 2, C + 1), and
    each block's four inputs (slots, blocks + 1, 4, H + 2, W + 2, F): of the above-stream, of its middle, of the
    left-stream, of its middle."""

    def __init__(self, net: PixelCNN):
        self.net = net
        _, self.height, self.line = net.shape

    @property
    def row_bytes(self) -> int:
        kept = (len(self.net.blocks) + 1) * 4 * self.net.width + self.net.shape[0] + 1
        return 4 * kept * (self.height + 2) * (self.line + 2)

    def allocate(self, rows: int) -> dict[str, Tensor]:
        like, sides = self.net.out.weight, (self.height + 2, self.line + 2)
        return {
            "pixels": like.new_zeros(rows, *sides, self.net.shape[0] + 1),
            "inputs": like.new_zeros(rows, len(self.net.blocks) + 1, 4, *sides, self.net.width),
        }

    def __call__(
        self,
        *,
        position: Tensor,
        previous: Tensor,
        cache: dict[str, Tensor],
        slot: Tensor,
        label: Tensor | None = None,
    ) -> Tensor:
        """`position`: (B,) int64 in reading order, of the pixel asked for; `previous`: (B, C) in [-1, 1], the pixel
        before it, which position 0 has none of -> (B, outputs)."""
        line, column = position // self.line, position % self.line
        self._keep(cache, slot, position, previous)
        (begins,) = (column == 0).nonzero(as_tuple=True)
        if len(begins):
            self._above(cache, slot[begins], line[begins])
        return self._left(cache, slot, line, column, label)

    def _keep(self, cache: dict[str, Tensor], slot: Tensor, position: Tensor, previous: Tensor) -> None:
        (known,) = (position > 0).nonzero(as_tuple=True)
        at = position[known] - 1
        one = previous.new_ones(len(known), 1)
        cache["pixels"][slot[known], at // self.line + 2, at % self.line + 1] = torch.cat([previous[known], one], 1)

    def _above(self, cache: dict[str, Tensor], slot: Tensor, line: Tensor) -> None:
        """The above-streams of whole lines."""
        pixels, inputs = cache["pixels"], cache["inputs"]

        def lines(kept: Tensor, first: Tensor) -> Tensor:
            """(B, channels, 2, W + 2), the lines `first` and the next."""
            at = torch.stack([first, first + 1], 1)
            return kept[slot[:, None], at].permute(0, 3, 1, 2)

        def keep(number: int, which: int, values: Tensor) -> Tensor:
            inputs[slot, number, which, line + 2, 1:-1] = values[:, :, 0].transpose(1, 2)
            return lines(inputs[:, number, which], line + 1)

        above = self.net.above(lines(pixels, line))
        for number, block in enumerate(self.net.blocks):
            middle = F.elu(block.above_in(keep(number, 0, F.elu(above))))
            above = above + gated(block.above_out(keep(number, 1, middle)))
        keep(len(self.net.blocks), 0, F.elu(above))

    def _left(
        self, cache: dict[str, Tensor], slot: Tensor, line: Tensor, column: Tensor, label: Tensor | None
    ) -> Tensor:
        """The left-streams of single pixels, and the answer."""
        pixels, inputs = cache["pixels"], cache["inputs"]

        def patch(kept: Tensor, top: Tensor, first: Tensor, height: int, width: int) -> Tensor:
            """(B, channels, height, width) from the line `top` and the column `first` on."""
            rows = top[:, None] + torch.arange(height, device=top.device)
            columns = first[:, None] + torch.arange(width, device=top.device)
            return kept[slot[:, None, None], rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)

        def keep(number: int, which: int, values: Tensor) -> Tensor:
            inputs[slot, number, which, line + 2, column + 1] = values[:, :, 0, 0]
            return patch(inputs[:, number, which], line + 1, column, 2, 2)

        left = self.net.left_above(patch(pixels, line + 1, column, 1, 3))
        left = left + self.net.left(patch(pixels, line + 1, column, 2, 1))
        for number, block in enumerate(self.net.blocks):
            above = inputs[slot, number + 1, 0, line + 2, column + 1][:, :, None, None]
            middle = F.elu(block.left_in(keep(number, 2, F.elu(left))) + block.told(above))
            left = left + gated(block.left_out(keep(number, 3, middle)) + block.steered(label))
        return self.net.out(F.elu(left))[:, :, 0, 0]
