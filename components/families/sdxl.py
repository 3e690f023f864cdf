"""Stable Diffusion XL (Podell et al. 2024), small and from scratch: two text encoders, conditioning on sizes and crops,
and a refiner for the last noise.

One encoder is trained along, the other is the text tower of a CLIP that `inputs` gives, trained on the same captions
and kept; the U-Net attends to both, by channel, and is told the second one's pooled embedding. The refiner knows the
CLIP alone, learns low noise alone, and takes over at the setting `refiner_start`. What diffusers' own folders import as
is `stable_diffusion`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.conditioning.embedding import scaled
from components.conditioning.size_embedding import POOLED, SIZES, Place, SizeEmbedding, SizeSettings, rows_of
from components.conditioning.sizes import refuse_without_crops, told_sizes
from components.conditioning.text import JoinedTexts
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo, DataOutline, RunInfo
from components.diffusion import config as diffusion
from components.diffusion import reuse
from components.diffusion.backbones import Backbone, UNet
from components.diffusion.building import conditioner_of
from components.diffusion.denoiser import Denoiser
from components.diffusion.guidance import Condition, Denoise, Guidance, relay
from components.errors import ConfigError
from components.families import clip as clip_family
from components.families.base import Family, Losses, Phase, Role, Tiny
from components.families.latent_diffusion import Model as Diffusion
from components.families.latent_diffusion import text_of
from components.sampling.requests import Request
from components.sampling.trajectories import Call
from components.training.optimizers import OptimizerConfig

CLIP, REFINER = clip_family.ROLE, "refiner"
KNOWN = "known"  # the CLIP's tokens, an input of the net


class RefinerConfig(Strict):
    """A net of its own for the last `share` of the times, at which noise is lowest; it attends to the CLIP alone."""

    share: float = Field(0.2, gt=0, lt=1)  # 200 of 1,000 as published
    backbone: Backbone = UNet()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup=50)


class Config(diffusion.Config):
    conditioning: Literal["text"] = "text"  # text: the encoder that is trained along, beside the CLIP
    refiner: RefinerConfig | None = None
    crops: bool = True  # trains on crops drawn anew, of all buckets
    size_width: int = Field(64, ge=2)  # of each number's embedding; 256 as published

    @model_validator(mode="after")
    def _has_own_text(self) -> Config:
        if self.text.encoder != "own":
            raise ValueError("text.encoder: the other encoder is the CLIP of inputs; expected own")
        nets = (self.backbone, *([] if self.refiner is None else [self.refiner.backbone]))
        if self.align is not None or any(getattr(net, "route", None) is not None for net in nets):
            raise ValueError("align, backbone.route: levers of latent_diffusion's transformers; expected neither")
        return self


class Settings(SizeSettings, diffusion.Settings):
    """`refiner_start`: the share of the schedule's times after which the refiner takes over; 1: never; None: as soon as
    it knows the noise."""

    refiner_start: float | None = Field(None, gt=0, le=1)


class Model(Diffusion):
    Config = Config
    Settings = Settings

    def __init__(self, config: Config, data: DataInfo):
        self.clip = clip_family.kept_clip(data, "sdxl")
        if config.text.length != self.clip.config.text.length:
            expected = self.clip.config.text.length
            raise ConfigError(f"sdxl: text.length: expected {expected}, the CLIP's, found {config.text.length}")
        refuse_without_crops("sdxl", data)
        super().__init__(config, data)
        clip = self.clip.nets[CLIP]
        self.nets[CLIP] = clip
        self.pretrained = (*self.pretrained, CLIP)
        self.kept = (*self.kept, CLIP)
        self.calls = {**self.calls, CLIP: clip.texts}
        if config.refiner is not None:
            config.refiner.backbone.refuse_unfit(data.shape, "sdxl")
            self.nets[REFINER] = self._build_refiner(config, data)
            self.calls |= reuse.calls(REFINER, self.nets[REFINER])
            self.kept = (*self.kept, REFINER)
            self.phases = (*self.phases, Phase("refine", REFINER, self.refine, config.refiner.optimizer))

    def build(self, config: Config, data: DataInfo) -> Denoiser:
        own, known = config.text.width, self.clip.config.text.width
        _refuse_other_width("backbone", config.backbone, own + known, f"the widths of both encoders, {own} and {known}")
        backbone = config.backbone.build(data.shape, 0)
        conditioner = JoinedTexts(conditioner_of(config, data, own).text)
        return Denoiser(conditioner, backbone, config.tells_uncertainty, further=self._sizes_of(config, backbone))

    def _build_refiner(self, config: Config, data: DataInfo) -> Denoiser:
        layout, known = config.refiner.backbone, self.clip.config.text.width
        _refuse_other_width("refiner.backbone", layout, known, "the CLIP's width")
        backbone = layout.build(data.shape, 0)
        return Denoiser(None, backbone, config.tells_uncertainty, further=self._sizes_of(config, backbone))

    def _sizes_of(self, config: Config, backbone: nn.Module) -> SizeEmbedding:
        return SizeEmbedding(self.clip.config.dim, config.size_width, backbone.embedding_dim)

    @classmethod
    def roles(cls, config: Config) -> dict[str, Role]:
        return {CLIP: Role(family="clip", needed=True, kept=True)}

    def receive(self, role: str, given: Family | nn.Module) -> None:
        assert role == CLIP, f"sdxl takes no {role}"
        self.nets[CLIP].load_state_dict(given.nets[CLIP].state_dict())

    @classmethod
    def why_not(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        start, refiner = settings.refiner_start, config.refiner
        if start is not None and start < 1 and refiner is None:
            return "refiner_start: this model has no refiner; expected model.refiner"
        if start is not None and refiner is not None and start < 1 - refiner.share - 1e-9:
            known = f"the last {refiner.share:g} of the way alone"
            return f"refiner_start: the refiner knows {known}; expected {1 - refiner.share:g} or more"
        return super().why_not(config, settings, data)

    # -- training -----------------------------------------------------------------------------------------------------

    def begin(self, first: Callable[[], Batch]) -> None:
        """Takes note of the height and width that most files have."""
        raw, _ = told_sizes(first(), flips=False)
        for name in ("denoiser", REFINER, *self.early):
            if name in self.nets:
                self.nets[name].further.usual.copy_(raw.median(dim=0).values)

    def _training_condition(self, batch: Batch, label_dropout: float) -> Condition:
        told = super()._training_condition(batch, label_dropout)
        with torch.no_grad():
            known = self.nets[CLIP].texts(told["tokens"])
        return {**told, KNOWN: known["tokens"], POOLED: scaled(known["pooled"])}

    def _training_further(self, batch: Batch, flips: bool) -> Condition:
        raw, crop = told_sizes(batch, flips)
        stored = batch.columns[self.medium.column if self.autoencoder is None else "mean"]
        drawn = rows_of(self.space.drawn(tuple(stored.shape[2:])), raw)
        return {SIZES: torch.cat([raw, crop, drawn], dim=1)}

    def refine(self, net: nn.Module, batch: Batch) -> Losses:
        """The loss of the refiner, at low noise alone."""
        batch = replace(batch, draws=batch.draws.fold(REFINER))
        times = self.config.refiner.share * batch.draws.uniform("time").double()
        told = dict(self._told(batch))
        told.pop("tokens")
        told["context"] = told.pop(KNOWN)
        return self._loss_at(self._sigma(times), net, batch, told)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def _heard(self, net: str, tokens: Tensor, groups: int) -> Generator[Call, Tensor, list[Condition]]:
        known = yield Call(CLIP, {"tokens": tokens})
        own = yield Call(text_of(net), {"tokens": tokens})
        contexts = torch.cat([own.to(known["tokens"].dtype), known["tokens"]], dim=2).chunk(groups)
        pooled = scaled(known["pooled"]).chunk(groups)
        return [{"context": one, POOLED: other} for one, other in zip(contexts, pooled, strict=True)]

    def _conditions(self, request: Request, guidance: Guidance) -> Generator[Call, Tensor, tuple[Condition, Condition]]:
        towards, away = yield from super()._conditions(request, guidance)
        sides = self.space.drawn(self._shape(request)[1:])
        wanted, unwanted = (rows_of((*told, *sides), request.seeds) for told in request.settings.told(self._usual))
        return {**towards, SIZES: wanted}, {**away, SIZES: wanted if guidance.guide is not None else unwanted}

    @property
    def _usual(self) -> Place:
        """Height and width of most files, or of what it draws while it has seen none."""
        known = tuple(int(value) for value in self.nets["denoiser"].further.usual.tolist())
        return known if all(known) else self.row_shape[1:]

    def _denoise(
        self, request: Request, guidance: Guidance, sigmas: Sequence[float]
    ) -> Generator[Call, Tensor, Denoise]:
        conditions = yield from self._conditions(request, guidance)
        every = request.settings.reuse
        base = self.preconditioner.guided(*conditions, guidance, every)
        refiner, start = self.config.refiner, request.settings.refiner_start
        if refiner is None or start == 1:
            return base
        width = self.clip.config.text.width
        alone = [{**told, "context": told["context"][:, :, -width:]} for told in conditions]
        refine = replace(self.preconditioner, net=REFINER).guided(*alone, replace(guidance, guide=None), every)
        return relay(base, refine, self.preconditioner, 1 - refiner.share if start is None else start)


def _refuse_other_width(key: str, backbone: Backbone, expected: int, what: str) -> None:
    if backbone.context_dim != expected:
        raise ConfigError(f"sdxl: {key}.context_dim: expected {expected}, {what}, found {backbone.context_dim}")


# -- the tiny configuration ------------------------------------------------------------------------------------------

_IMAGES = DataInfo(shape=(1, 16, 16), classes=("nought", "one", "two"), caption_length=12, crops=((16, 16), (8, 16)))
_TINY_CLIP = clip_family.Config(**clip_family.TINY.config).model_dump(mode="json")
_TINY_UNET = {"widths": (8, 8), "heads": 2}


TINY = Tiny(
    {
        "backbone": {**_TINY_UNET, "context_dim": 16},
        "text": {"length": 12, "width": 8, "layers": 1, "heads": 2},
        "refiner": {"share": 0.4, "backbone": {**_TINY_UNET, "context_dim": 8}},
        "size_width": 4,
    },
    data=_IMAGES.model_copy(update={"inputs": {CLIP: RunInfo(family="clip", config=_TINY_CLIP, data=_IMAGES)}}),
    settings={"num_inference_steps": 3},
    prepare=lambda family: clip_family.give_tiny_weights(family.nets[CLIP]),
)
