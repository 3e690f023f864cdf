"""Backbones of a denoiser, chosen by `backbone.name`: a block of the config for each, which builds its network.

A backbone answers `net(x, level, context, label, added)` with x's shape: x (B, C, ...), noise level (B,) in [0, 1000],
context (B, M, context_dim) or None, label (B,) or None, and what is added to the embedding of level and label,
(B, net.embedding_dim) or None. Built with `given_channels`, it is told as many channels of x besides those that it
answers about. One of `blocks` takes, in training, `routed` numbers of its tokens and `tap`, as nets/dit.py says.
One that says `reuses` takes `deep` and `tells_deep`, as nets/unet.py has them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, field_validator, model_validator
from torch import nn

from components.config import Strict, named_block
from components.errors import SamplerError
from components.nets.blocks import norm_groups
from components.nets.dit import DiT as DiTNet
from components.nets.dit import MMDiT as MMDiTNet
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

    @property
    def hides_padding(self) -> bool:
        """Whether a text ends where it ends, and rows of zeros behind it are seen by nothing."""
        return False

    @property
    def blocks(self) -> int:
        """That a token goes through one after the other; 0 of a net whose resolutions differ."""
        return 0

    def build(self, shape: tuple[int, ...], num_classes: int, given_channels: int = 0) -> nn.Module:
        """For rows of `shape`. `num_classes`: rows of the class embedding, 0 for none."""
        layout = self.model_dump(exclude={"name", "norm_groups"}) | {"given_channels": given_channels}
        return UNet2DConditionModel(shape[0], num_classes=num_classes, groups=self.norm_groups, **layout)


class Route(Strict):
    """Tokens that bypass blocks in training, which ones is drawn for each row and step (Krause et al. 2025, TREAD)."""

    share: float = Field(0.5, gt=0, lt=1)  # of a row's tokens
    blocks: tuple[int, int] = (1, 5)  # counted from 0: from the first of these up to the second
    steps: int | None = Field(None, ge=1)  # of training; after them all tokens go through all blocks

    @model_validator(mode="after")
    def _fits(self) -> Route:
        first, last = self.blocks
        if not 0 <= first < last:
            raise ValueError(f"blocks: expected 0 <= first < second, found {list(self.blocks)}")
        return self


class DiT(Strict):
    """The transformer of nets/dit.py, for rows of one to three sides. A text is attended to; a class, as the noise
    level, modulates the blocks."""

    name: Literal["dit"]
    patch: int | tuple[int, ...] = 1  # side of a token, in cells, or its sides: of films in time, height and width
    width: int = Field(192, ge=2)
    depth: int = Field(6, ge=1)  # blocks
    heads: int = Field(4, ge=1)
    context_dim: int = Field(64, ge=1)  # of a text's tokens
    route: Route | None = None  # tokens that bypass blocks in training

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
        if self.route is not None and self.route.blocks[1] >= self.depth:
            raise ValueError(
                f"route.blocks: expected a block after the span, the second below depth ({self.depth}), "
                f"found {list(self.route.blocks)}"
            )
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

    @property
    def hides_padding(self) -> bool:
        return False

    @property
    def blocks(self) -> int:
        return self.depth

    def build(self, shape: tuple[int, ...], num_classes: int, given_channels: int = 0) -> nn.Module:
        """As of UNet; what has no classes has texts."""
        context_dim = 0 if num_classes else self.context_dim
        return self._built(
            DiTNet, shape, num_classes=num_classes, context_dim=context_dim, given_channels=given_channels
        )

    def _built(self, kind: type[DiTNet], shape: tuple[int, ...], **layout: int) -> DiTNet:
        channels, *sides = shape
        sizes = self.model_dump(include={"patch", "width", "depth", "heads"})
        route = None if self.route is None else (self.route.share, *self.route.blocks)
        return kind(channels, len(sides), **sizes, **layout, route=route)


class MMDiT(DiT):
    """The transformer of nets/dit.py whose text has rows and weights of its own beside the image's. A class is a row
    too, and modulates."""

    name: Literal["mmdit"]

    @property
    def class_dim(self) -> int:
        return self.context_dim

    @property
    def reuses(self) -> bool:
        return False  # blocks in the middle move the text along

    @property
    def hides_padding(self) -> bool:
        return True

    def build(self, shape: tuple[int, ...], num_classes: int, given_channels: int = 0) -> nn.Module:
        return self._built(
            MMDiTNet, shape, num_classes=num_classes, context_dim=self.context_dim, given_channels=given_channels
        )


Backbone = Annotated[
    Annotated[UNet, Tag("unet")] | Annotated[DiT, Tag("dit")] | Annotated[MMDiT, Tag("mmdit")], named_block("unet")
]
