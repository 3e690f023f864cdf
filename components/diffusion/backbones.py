"""Backbones of a denoiser, chosen by `backbone.name`: a block of the config for each, which builds its network.

A backbone answers `net(x, level, context, label, added)` with x's shape: x (B, C, ...), noise level (B,) in [0, 1000],
context (B, M, context_dim) or None, label (B,) or None, and what is added to the embedding of level and label,
(B, net.embedding_dim) or None. Built with `given_channels`, it is told as many channels of x besides those that it
answers about. One that says `reuses` takes `deep` and `tells_deep` besides, as nets/unet.py has them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, field_validator, model_validator
from torch import nn

from components.config import Strict, named_block
from components.errors import SamplerError
from components.nets.blocks import norm_groups
from components.nets.dit import DiT as DiTNet
from components.nets.dit import patch_sides
from components.nets.unet import UNet2DConditionModel
from components.shapes import refuse_unless_planar, shape_text


class UNet(Strict):
    """The U-Net of nets/unet.py; `widths` and `attention` by resolution, finest first."""

    name: Literal["unet"] = "unet"
    widths: tuple[int, ...] = Field((64, 128), min_length=1)  # channels
    attention: tuple[bool, ...] = (False, True)  # whether it attends to the condition
    layers: int = Field(1, ge=1)  # residual blocks a resolution
    heads: int = Field(4, ge=1)
    context_dim: int = Field(64, ge=1)
    # the most groups of channels that a norm has, each of which is normalised by itself
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

    @property
    def reuses(self) -> bool:
        """Whether it has a deep part, whose features neighbouring evaluations can share."""
        return len(self.widths) > 1

    @property
    def class_dim(self) -> int:
        """Of the token that tells the class, beside the label; 0 where the label says it all."""
        return self.context_dim

    def build(self, shape: tuple[int, ...], num_classes: int, given_channels: int = 0) -> nn.Module:
        """For rows of `shape`. `num_classes`: rows of the class embedding, 0 for none."""
        layout = self.model_dump(exclude={"name", "norm_groups"}) | {"given_channels": given_channels}
        return UNet2DConditionModel(shape[0], num_classes=num_classes, groups=self.norm_groups, **layout)


class DiT(Strict):
    """The transformer of nets/dit.py, for rows of one to three sides. A text is attended to; a class, as the noise
    level, modulates the blocks."""

    name: Literal["dit"]
    patch: int | tuple[int, ...] = 1  # side of a token, in cells, or its sides: of films in time, height and width
    width: int = Field(192, ge=2)
    depth: int = Field(6, ge=1)  # blocks
    heads: int = Field(4, ge=1)
    context_dim: int = Field(64, ge=1)  # of a text's tokens

    @field_validator("patch")
    @classmethod
    def _has_sides(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if min(patch_sides(value, 1), default=0) < 1:
            raise ValueError("expected sides greater than or equal to 1")
        return value

    @model_validator(mode="after")
    def _fits(self) -> DiT:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be divisible by twice the heads ({2 * self.heads})")
        return self

    def refuse_unfit(self, shape: tuple[int, ...], name: str) -> None:
        """Raises SamplerError, naming the family, of rows that the net cannot take."""
        _, *sides = shape
        patch = patch_sides(self.patch, len(sides))
        fits = 1 <= len(sides) <= 3 and len(patch) == len(sides)
        if not fits or any(side % part for side, part in zip(sides, patch, strict=True)):
            told = self.patch if isinstance(self.patch, int) else shape_text(self.patch)
            raise SamplerError(
                f"{name}: expected one to three sides that are multiples of backbone.patch ({told}), "
                f"found {shape_text(tuple(sides))}"
            )
        if self.width < 2 * self.heads * len(sides):
            raise SamplerError(f"{name}: backbone.width: expected {2 * len(sides)} channels a head or more")

    @property
    def attends(self) -> bool:
        return True

    @property
    def reuses(self) -> bool:
        return self.depth > 2

    @property
    def class_dim(self) -> int:
        return 0

    def build(self, shape: tuple[int, ...], num_classes: int, given_channels: int = 0) -> nn.Module:
        """As of UNet; what has no classes has texts."""
        channels, *sides = shape
        layout = self.model_dump(include={"patch", "width", "depth", "heads"}) | {"given_channels": given_channels}
        context_dim = 0 if num_classes else self.context_dim
        return DiTNet(channels, len(sides), num_classes=num_classes, context_dim=context_dim, **layout)


Backbone = Annotated[Annotated[UNet, Tag("unet")] | Annotated[DiT, Tag("dit")], named_block("unet")]
