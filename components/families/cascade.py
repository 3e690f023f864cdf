"""Cascaded diffusion in pixels, as Imagen (Ho et al. 2022, "Cascaded Diffusion Models"; Saharia et al. 2022): a base
draws small images, up to three stages enlarge them, each a net of its own under the same class or text.

All stages train at once, on the same rows, each at its own size. A stage sees the smaller image under noise of a level
drawn for each row and told to it; in sampling the level is the setting `augmentation` of its block.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from components.composite.base import Composite, chosen, named
from components.conditioning.low_resolution import LOW, LOW_LEVEL, LowResolution, enlarged, noised, reduced
from components.conditioning.text import cut
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo, DataOutline
from components.data.randomness import Draws
from components.diffusion import config as diffusion
from components.diffusion.building import build_denoiser
from components.diffusion.denoiser import Denoiser
from components.diffusion.guidance import Condition, Guidance
from components.errors import ConfigError, DataError
from components.families.base import Early, Losses, Tiny
from components.families.latent_diffusion import Model as Diffusion
from components.metrics.held_out import DENOISING
from components.sampling.requests import BLEND, Conditions, Request
from components.sampling.trajectories import Call, Trajectory
from components.shapes import refuse_unless_planar
from components.spaces import Pixels

BASE, UPS = "base", ("up1", "up2", "up3")


class UpConfig(diffusion.Config):
    """A stage that enlarges. The whole smaller image is in its input, so that a fine resolution can go without
    attention; with `crop` it trains on squares of that side, since its net takes any."""

    factor: int = Field(2, ge=2)  # of both sides
    most_augmentation: float = Field(0.5, gt=0, le=1)  # levels are drawn up to it: higher ones are never used
    crop: int | None = Field(None, ge=8)  # pixels of its own size

    @property
    def numbers(self) -> tuple[str, ...]:
        return (LOW_LEVEL,)


class Config(Strict):
    """The last stage makes images of the data's size, each other one smaller by the factors of those after it."""

    base: diffusion.Config = diffusion.Config()
    up1: UpConfig = UpConfig()
    up2: UpConfig | None = None
    up3: UpConfig | None = None

    @property
    def ups(self) -> dict[str, UpConfig]:
        found = {name: getattr(self, name) for name in UPS}
        return {name: config for name, config in found.items() if config is not None}


class UpSettings(diffusion.Settings):
    """`augmentation`: the noise put on what the stage before has drawn; 0 trusts it to the last pixel."""

    augmentation: float = Field(0.2, ge=0, le=1)


class Settings(Strict):
    """A block a stage; later stages go by `up1` unless they have one."""

    base: diffusion.Settings = diffusion.Settings()
    up1: UpSettings = UpSettings()
    up2: UpSettings | None = None
    up3: UpSettings | None = None

    def of(self, stage: str) -> diffusion.Settings:
        return getattr(self, stage) or self.up1


class ReducedPixels(Pixels):
    """The space of images averaged down from the data's, or of squares cut out of them, `crop` pixels a side."""

    def __init__(self, data: DataInfo, crop: int | None = None):
        super().__init__(data)
        self.sides, self.crop = data.shape[1:], crop

    def whole(self, batch: Batch, flips: bool) -> Tensor:
        return reduced(super().clean(batch, flips), self.sides)

    def clean(self, batch: Batch, flips: bool) -> Tensor:
        return self.cropped(self.whole(batch, flips), batch.draws)

    def cropped(self, images: Tensor, draws: Draws) -> Tensor:
        """Each row's own square, the same of all that is cut for it."""
        if self.crop is None:
            return images
        within = torch.arange(self.crop, device=images.device)
        starts = (draws.integers(f"crop {axis}", side - self.crop + 1) for axis, side in enumerate(self.sides))
        down, right = (start[:, None] + within for start in starts)  # (B, crop) each
        rows = torch.arange(len(images), device=images.device)[:, None, None]
        return images.movedim(1, 3)[rows, down[:, :, None], right[:, None, :]].movedim(3, 1)


class Stage(Diffusion):
    """A stage by itself: diffusion of images averaged down to `data.shape`, its draws its own."""

    name = BASE

    def space_of(self, data: DataInfo) -> ReducedPixels:
        return ReducedPixels(data)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        return super().loss(net, replace(batch, draws=batch.draws.fold(self.name)))


class Up(Stage):
    """A stage that enlarges images."""

    Config = UpConfig
    Settings = UpSettings

    def __init__(self, config: UpConfig, data: DataInfo, name: str):
        if config.crop is not None and config.crop > min(data.shape[1:]):
            raise ConfigError(f"cascade: {name}.crop: expected at most {min(data.shape[1:])}, found {config.crop}")
        if config.crop is not None:
            config.backbone.refuse_unfit((data.shape[0], config.crop, config.crop), f"cascade: {name}.crop")
        self.name, self.low_sides = name, tuple(side // config.factor for side in data.shape[1:])
        super().__init__(config, data)
        self.accepts = (self.accepts - {"source", BLEND}) | {LOW}

    def space_of(self, data: DataInfo) -> ReducedPixels:
        return ReducedPixels(data, self.config.crop)

    def build(self, config: UpConfig, data: DataInfo) -> Denoiser:
        return build_denoiser(config, data, LowResolution(), given_channels=data.shape[0])

    def _training_further(self, batch: Batch, flips: bool) -> Condition:
        level = self.config.most_augmentation * batch.draws.uniform("augmentation")
        low = self._low(reduced(self.space.whole(batch, flips), self.low_sides), level, batch.draws)
        return {LOW: self.space.cropped(low, batch.draws), LOW_LEVEL: level}

    def _low(self, images: Tensor, level: Tensor, draws: Draws) -> Tensor:
        """Smaller images in [-1, 1] as the net is told them: normalised first, then enlarged, then noised."""
        low = enlarged(self.space.normalise(images), self.data.shape[1:])
        return noised(low, level, draws.normal("low", self.data.shape))

    def _conditions(self, request: Request, guidance: Guidance) -> Generator[Call, Tensor, tuple[Condition, Condition]]:
        towards, away = yield from super()._conditions(request, guidance)
        level = torch.full(request.seeds.shape, request.settings.augmentation, device=request.seeds.device)
        low = self._low(request.conditions.low, level, Draws.of_seeds(request.seeds))
        told = {LOW: low, LOW_LEVEL: level}
        return {**towards, **told}, {**away, **told}


class Model(Composite):
    Config = Config
    Settings = Settings
    held_out = DENOISING

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        if data.autoencoder is not None:
            raise DataError("cascade: works on images themselves; expected data: data/images/train, found latents")
        refuse_unless_planar(data.shape, math.prod(up.factor for up in config.ups.values()), "cascade")
        shape, stages = data.shape, {}
        for name, up in reversed(config.ups.items()):
            stages[name] = Up(up, data.model_copy(update={"shape": shape}), name)
            shape = (shape[0], *(side // up.factor for side in shape[1:]))
        stages[BASE] = Stage(config.base, data.model_copy(update={"shape": shape}))
        self.adopt(**dict(reversed(stages.items())))
        self.phases = tuple(phase for name in self.parts for phase in self.phases_of(name))
        steering = self.parts[BASE].accepts - {"source", BLEND}
        self.accepts = frozenset({*steering, "size"})

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Of every stage, the largest first."""
        return tuple(part.data.shape[1:] for part in reversed(self.parts.values()))

    @classmethod
    def early_nets(cls, config: Config) -> dict[str, Early]:
        stages = {BASE: config.base, **config.ups}
        return {
            named(name, net): early._replace(net=named(name, early.net))
            for name, stage in stages.items()
            for net, early in Diffusion.early_nets(stage).items()
        }

    @classmethod
    def why_not(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        for name in UPS:
            if getattr(config, name) is None and name != UPS[0] and getattr(settings, name) is not None:
                return f"{name}: this cascade has no such stage; expected settings of {', '.join([BASE, *config.ups])}"
        for name, stage in {BASE: config.base, **config.ups}.items():
            if reason := Diffusion.why_not(stage, settings.of(name), data):
                return f"{name}.{reason}"
        return None

    @classmethod
    def unheard(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        for name, stage in {BASE: config.base, **config.ups}.items():
            if reason := Diffusion.unheard(stage, chosen(settings.of(name)), data):
                return f"{name}.{reason}"
        return None

    @staticmethod
    def _block(settings: Settings, name: str) -> Any:
        return settings.of(name)

    def _trajectory(self, request: Request) -> Trajectory:
        size = request.conditions.size
        sides = self.row_shape[1:] if size is None else tuple(size[0].tolist())
        images = None
        for name, part in self.parts.items():
            own = {key: value for key, value in request.conditions.parts().items() if key in part.accepts}
            # of its own, else every stage would begin with the noise that the one before began with
            seeds = request.seeds if images is None else Draws.of_seeds(request.seeds).fold(name).keys
            conditions, last = Conditions(**own, low=images), part.data.shape[1:] == sides
            images = yield from self.part(name, replace(request, seeds=seeds), conditions, shows=last)
            if last:
                break
        return images

    def held_out_losses(self, columns: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """The mean over the stages."""
        parts = self.parts.items()
        return torch.stack([part.held_out_losses(columns, draws.fold(name)) for name, part in parts]).mean(0)

    @property
    def caption_limits(self) -> Mapping[str, int]:
        return {
            key.replace("model.", f"model.{name}.", 1): length
            for name, part in self.parts.items()
            for key, length in part.caption_limits.items()
        }

    def prompts_of(self, captions: Sequence[str]) -> tuple[str, ...]:
        length = min(self.caption_limits.values(), default=0)
        return cut(captions, length) if length else tuple(captions)


_TINY = {"backbone": {"widths": (8, 8), "heads": 2, "context_dim": 8}}
TINY = Tiny(
    {"base": _TINY, "up1": {**_TINY, "crop": 8}},
    settings={"base": {"num_inference_steps": 3}, "up1": {"num_inference_steps": 2, "dynamic_threshold": 0.9}},
)
