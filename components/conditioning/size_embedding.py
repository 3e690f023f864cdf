"""Conditioning on how an image came about: height and width of its file, where it was cut, the size that is wanted, and
a pooled text beside them (Podell et al. 2024, sections 2.1 and 2.2).

A net that is told these keeps small files and cut-off heads apart from what is wanted: in sampling it is asked for
large files, not cut.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from components.config import Strict
from components.constants import constant
from components.nets.unet import AddedEmbedding

POOLED, SIZES = "pooled", "sizes"  # inputs of a net
NUM_SIZES = 6  # height and width of the file, top and left of the cut, height and width that are wanted

MOST_SIDE = 16_384  # pixels that a request may tell

Place = tuple[int, int]  # pixels, of height and of width


def _within(least: int) -> AfterValidator:
    """Refuses places of numbers below `least` or above MOST_SIDE."""

    def check(place: Place) -> Place:
        if not all(least <= number <= MOST_SIDE for number in place):
            raise ValueError(f"expected height and width of {least} to {MOST_SIDE} pixels")
        return place

    return AfterValidator(check)


FileSize = Annotated[Place, _within(1)]


class SizeSettings(Strict):
    """What a request tells the net of sizes, by the names and with the meaning that diffusers has for them: height
    first."""

    original_size: FileSize | None = None  # of the file that the image would come from; None: what is usual
    # pixels of the resized image above, and to the left, of what is drawn
    crops_coords_top_left: Annotated[Place, _within(0)] = (0, 0)
    negative_original_size: FileSize | None = None  # what guidance leads away from, as small files; None: the same

    def told(self, usual: Place) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """File and cut, four numbers, of what is wanted and of what is not."""
        wanted = self.original_size or usual
        return tuple(
            (*original, *self.crops_coords_top_left) for original in (wanted, self.negative_original_size or wanted)
        )


class SizeEmbedding(nn.Module):
    """Hands a denoiser a pooled text `pooled` (B, pooled_dim) and `sizes` (B, NUM_SIZES): each embedded like a time,
    `width` channels, and added to the noise level's embedding. `usual`: height and width of most files trained on."""

    names = (POOLED, SIZES)

    def __init__(self, pooled_dim: int, width: int, embedding_dim: int):
        super().__init__()
        self.embedding = AddedEmbedding(pooled_dim, NUM_SIZES, width, embedding_dim)
        self.register_buffer("usual", torch.zeros(2))

    def forward(self, x: Tensor, condition: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        added = self.embedding(condition.pop(POOLED), condition.pop(SIZES))
        condition["added"] = condition.get("added", 0) + added
        return x, condition


def rows_of(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """The same numbers for each row, (B, len(numbers)) float32 on the device of `like` (B, ...)."""
    return constant(numbers, like.new_empty(0, dtype=torch.float32)).expand(len(like), -1)
