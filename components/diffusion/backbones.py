"""Backbones of a denoiser, chosen by `backbone.name`: a block of the config for each, which builds its network.

A backbone answers `net(x, level, context, label)` with x's shape: x (B, C, ...), noise level (B,) in [0, 1000],
context (B, M, context_dim), label (B,) or None.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from components.config import Strict
from components.nets.blocks import norm_groups
from components.nets.unet import UNet2DConditionModel
from components.shapes import refuse_unless_planar


class UNet(Strict):
    """The U-Net of nets/unet.py; `widths` and `attention` by resolution, finest first."""

    name: Literal["unet"] = "unet"
    widths: tuple[int, ...] = Field((64, 128), min_length=1)  # channels
    attention: tuple[bool, ...] = (False, True)  # whether it attends to the condition
    layers: int = Field(1, ge=1)  # residual blocks a resolution
    heads: int = Field(4, ge=1)
    context_dim: int = Field(64, ge=1)
    # the most that a norm has
    norm_groups: int = Field(default_factory=lambda given: norm_groups(given["widths"]), ge=1)

    @model_validator(mode="after")
    def _fits(self) -> UNet:
        if len(self.widths) != len(self.attention):
            raise ValueError(
                f"widths has {len(self.widths)} entries and attention {len(self.attention)}; expected as many"
            )
        if any(width % self.heads for width in self.widths):
            raise ValueError(f"every width must be divisible by heads ({self.heads})")
        return self

    def refuse_unfit(self, shape: tuple[int, ...], name: str) -> None:
        """Raises SamplerError, naming the family, of rows that the net cannot take: a resolution halves the sides."""
        refuse_unless_planar(shape, 2 ** (len(self.widths) - 1), name)

    @property
    def attends(self) -> bool:
        """Whether a context reaches every place."""
        return any(self.attention)

    def build(self, channels: int, num_classes: int) -> nn.Module:
        """`num_classes`: rows of the class embedding, 0 for none."""
        layout = self.model_dump(exclude={"name", "norm_groups"})
        return UNet2DConditionModel(channels, num_classes=num_classes, groups=self.norm_groups, **layout)


Backbone = UNet  # a further one makes this a union that `name` tells apart
