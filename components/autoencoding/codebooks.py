"""The codebooks that an autoencoder may have in the place of its Gaussian posterior: the blocks of `model.codebook`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from components.config import Strict, named_block
from components.errors import SamplerError
from components.nets.autoencoder.codebook import Codebook
from components.nets.autoencoder.finite_scalars import FiniteScalars
from components.nets.autoencoder.scales import Scales


class OnePerPlace(Strict):
    """Of codebooks that give each place of the latents a code."""

    def token_shape(self, latents: tuple[int, ...]) -> tuple[int, ...]:
        """Of a row's tokens, of latents (C, ...)."""
        return (1, *latents[1:])


class CodebookConfig(OnePerPlace):
    """Of vector quantisation; see nets/autoencoder/codebook.py."""

    name: Literal["ema"] = "ema"
    size: int = Field(512, ge=2)
    decay: float = Field(0.99, gt=0, lt=1)
    commitment: float = Field(0.25, gt=0)  # weight of the encoder's distance to its codes
    restart_below: float = Field(0.03, ge=0)  # uses a batch
    normalised: bool = False  # latents and codes have unit length

    def build(self, channels: int) -> Codebook:
        return Codebook(self.size, channels, self.decay, self.restart_below, self.normalised)


class FiniteScalarsConfig(OnePerPlace):
    """Of finite scalar quantisation; see nets/autoencoder/finite_scalars.py."""

    name: Literal["fsq"]
    levels: tuple[Annotated[int, Field(ge=3)], ...] = Field((8, 6, 5), min_length=1)  # of each latent channel

    def build(self, channels: int) -> FiniteScalars:
        return FiniteScalars(self.levels)


class ScalesConfig(Strict):
    """Of residual quantisation scale by scale; see nets/autoencoder/scales.py."""

    name: Literal["scales"]
    # of the grids, the latents' last
    sides: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 3, 4), min_length=1)
    size: int = Field(512, ge=2)  # codes, which all grids share
    decay: float = Field(0.99, gt=0, lt=1)
    commitment: float = Field(0.25, gt=0)  # weight of the encoder's distance to what all grids say together
    restart_below: float = Field(0.03, ge=0)  # uses a batch, of all grids

    @model_validator(mode="after")
    def _rises(self) -> ScalesConfig:
        if any(one >= other for one, other in pairwise(self.sides)):
            raise ValueError(f"sides: expected ever larger grids, found {list(self.sides)}")
        return self

    def build(self, channels: int) -> Scales:
        return Scales(Codebook(self.size, channels, self.decay, self.restart_below), self.sides)

    def token_shape(self, latents: tuple[int, ...]) -> tuple[int, ...]:
        """Of a row's tokens, of latents (C, s, s). Raises SamplerError unless the last grid is as large."""
        if latents[1:] != (self.sides[-1],) * 2:
            raise SamplerError(
                f"vae: codebook.sides: expected squares of latents, the last of them {self.sides[-1]}, found latents "
                f"of {latents[1]}x{latents[2]}"
            )
        return (1, sum(side**2 for side in self.sides))


CodebookKind = Annotated[
    Annotated[CodebookConfig, Tag("ema")]
    | Annotated[FiniteScalarsConfig, Tag("fsq")]
    | Annotated[ScalesConfig, Tag("scales")],
    named_block("ema"),
]
