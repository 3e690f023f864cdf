"""Stable Diffusion 1 and 2 (Rombach et al. 2022) and XL (Podell et al. 2024): latent diffusion of texts by pretrained
encoders, as pipelines.export imports it from a folder of diffusers."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from components.conditioning.size_embedding import POOLED, SIZES, SizeSettings, rows_of
from components.conditioning.sizes import told_sizes
from components.conditioning.text import texts_of_column
from components.config import Strict
from components.data.crops import RAW_SIZE
from components.data.dataset import Batch
from components.data.info import DataInfo, DataOutline
from components.diffusion import config as diffusion
from components.diffusion import reuse, schedules
from components.diffusion.building import STEERING
from components.diffusion.denoiser import Denoiser
from components.diffusion.guidance import Condition, Denoise, Guidance, Preconditioner, relay
from components.errors import ConfigError, DataError
from components.families.base import Family, Phase, Tiny
from components.families.latent_diffusion import Model as LatentDiffusion
from components.nets.low_rank import Adapted, Adapter, AdapterConfig
from components.nets.text_encoders import LIBRARIES, Encoded, EncoderLayout, TextEncoders
from components.nets.unet import UNet2DConditionModel
from components.sampling.blends import lerp
from components.sampling.requests import BLEND, Request
from components.sampling.trajectories import Call
from components.shapes import per_row, refuse_unless_planar
from components.spaces import Latents
from components.training.optimizers import OptimizerConfig

NO_ADAPTER = "none"
AESTHETIC = 6.0, 2.5  # the scores that the refiner is told of what is wanted and what not (its authors' defaults)


class UNetLayout(Strict):
    """See nets/unet.py; what may differ by resolution has a value for each. `added`: the widths of the pooled text, the
    number of sizes that the net is told, and the width of each."""

    name: Literal["unet"] = "unet"
    widths: tuple[int, ...] = Field(min_length=1)
    attention: tuple[bool, ...]
    layers: int = Field(ge=1)
    heads: tuple[int, ...]
    depth: tuple[int, ...]
    context_dim: int = Field(ge=1)
    linear: bool = False
    norm_groups: int = Field(32, ge=1)
    added: tuple[int, int, int] | None = None

    def build(self, channels: int) -> Denoiser:
        """Of texts and, where it has room for them, sizes, which come in the backbone's own terms."""
        layout = self.model_dump(exclude={"name", "norm_groups"})
        return Denoiser(None, UNet2DConditionModel(channels, groups=self.norm_groups, **layout))

    @property
    def reuses(self) -> bool:
        return len(self.widths) > 1

    @model_validator(mode="after")
    def _fits(self) -> UNetLayout:
        for name in ("attention", "heads", "depth"):
            if len(getattr(self, name)) != len(self.widths):
                raise ValueError(f"{name}: expected a value for each of {len(self.widths)} widths")
        return self


class Config(Strict):
    backbone: UNetLayout
    refiner: UNetLayout | None = None  # a second net's, for the lower noise levels; it knows the last encoder alone
    text: tuple[EncoderLayout, ...] = Field(min_length=1, max_length=2)
    objective: Literal["epsilon", "v", "x0"] = "epsilon"
    schedule: schedules.ScheduleConfig = schedules.ScheduleConfig(name="scaled_linear")
    latent_mean: tuple[float, ...]  # by channel; what the U-Nets see has none of it and unit spread
    latent_std: tuple[float, ...]
    zeros_for_nothing: bool = False  # no negative prompt is zeros, and not the empty text
    # of the first U-Net, by name: where there are some, they are what is trained (components/nets/low_rank.py)
    adapters: dict[str, AdapterConfig] = {}

    # of fine-tuning, as in diffusion/config.py
    times: diffusion.Times = diffusion.Times(density="uniform")
    weighting: diffusion.Weighting = diffusion.Weighting()
    flips: bool = False
    label_dropout: float = Field(0.1, ge=0, le=1)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, weight_decay=0.01, warmup=500)
    alignment: ClassVar[None] = None  # these nets have no tokens that go through blocks alike

    @field_validator("adapters")
    @classmethod
    def _has_names(cls, adapters: dict[str, AdapterConfig]) -> dict[str, AdapterConfig]:
        for name in adapters:
            if not name.replace("_", "").isalnum() or name == NO_ADAPTER:
                raise ValueError(f"a name is letters, digits and _, and not {NO_ADAPTER}; found {name!r}")
        return adapters

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.weighting.name == "learned":
            raise ValueError(
                "weighting: learned needs a part that these U-Nets do not have; expected uniform or min_snr"
            )
        return self


class Settings(SizeSettings, diffusion.Settings):
    """`refiner_start`: the share of the schedule's times after which the refiner takes over; 1: never. `adapter`: which
    of the model's is on, or none; left out it is the only one that there is. `adapter_scale`: how much of it."""

    solver: Literal[tuple(diffusion.SOLVERS)] = "dpmpp_2m"
    num_inference_steps: int = Field(25, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=0, le=50)
    guidance: Literal["classifier_free"] = "classifier_free"
    refiner_start: float = Field(0.8, gt=0, le=1)
    adapter: str | None = None
    adapter_scale: float = Field(1.0, ge=-10, le=10)


class Model(LatentDiffusion):
    Config = Config
    Settings = Settings
    accepts = frozenset({"source", BLEND, *STEERING["text"]})
    libraries = LIBRARIES
    num_previewed = 4

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        if data.autoencoder is None:
            raise DataError("stable_diffusion: expected a latent data set, as `encode` writes it; found images")
        for net in filter(None, (config.backbone, config.refiner)):
            refuse_unless_planar(data.shape, 2 ** (len(net.widths) - 1), "stable_diffusion")
        self.space = Latents(data, (config.latent_mean, config.latent_std))
        self.autoencoder = self.space.autoencoder
        text = TextEncoders(config.text)
        denoisers = {"denoiser": config.backbone.build(data.shape[0])}
        if config.refiner is not None:
            denoisers["refiner"] = config.refiner.build(data.shape[0])
        adapters = {name: _adapter(denoisers["denoiser"], name, one) for name, one in config.adapters.items()}
        self.added = tuple(map(adapter_net, adapters))
        own = dict(zip(self.added, adapters.values(), strict=True))
        self.nets = nn.ModuleDict({**denoisers, "text": text, **self.space.nets, **own})
        self.kept = tuple(self.nets)
        moving = self.added or ("denoiser",)
        self.pretrained = tuple(name for name in self.nets if name not in moving)
        self.calls = {**self.space.calls, "text": text}
        asked = {**denoisers, "denoiser": Adapted(denoisers["denoiser"], adapters)} if adapters else denoisers
        for name, net in asked.items():
            self.calls |= reuse.calls(name, net)
        self.schedule = schedules.build(config.schedule)
        self.preconditioner = Preconditioner(config.objective, self.schedule)
        phases = {"denoise": "denoiser"} if not adapters else dict(zip(self.added, self.added, strict=True))
        self.phases = tuple(Phase(name, net, self.loss, config.optimizer) for name, net in phases.items())

    @classmethod
    def early_nets(cls, config: Config) -> dict:
        return {}

    @classmethod
    def roles(cls, config: Config) -> dict:
        return {}

    @classmethod
    def why_not(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        unheard = [name for name in SizeSettings.model_fields if getattr(settings, name) not in (None, (0, 0))]
        if unheard and config.backbone.added is None:
            return f"{unheard[0]}: these U-Nets are told no sizes; expected Stable Diffusion XL"
        if settings.adapter not in (None, NO_ADAPTER, *config.adapters):
            return f"adapter: expected one of {', '.join([*config.adapters, NO_ADAPTER])}, found {settings.adapter!r}"
        return super().why_not(config, settings, data)

    @classmethod
    def unheard(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        chosen = settings.model_fields_set
        if config.refiner is None and "refiner_start" in chosen and settings.refiner_start < 1:
            return "refiner_start: this model has no refiner; expected none, or a folder imported with --refiner"
        if "adapter_scale" in chosen and _adapter_of(config, settings) == NO_ADAPTER:
            return "adapter_scale: no adapter is on; expected adapter: its name"
        return None

    def _leads_away(self, request: Request) -> bool:
        return True  # the empty text was learned before its weights came here

    def _embedded(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}  # captions are encoded in training

    def _training_condition(self, batch: Batch, label_dropout: float) -> Condition:
        """The captions of a batch, encoded; dropped for a share of the rows."""
        if "caption" not in batch.columns:
            raise DataError("stable_diffusion: expected images with captions to train on, found none")
        dropped = batch.draws.uniform("label_dropout") < label_dropout
        texts, net = texts_of_column(batch.columns["caption"]), self.nets["text"]
        kept = ["" if drop else text for text, drop in zip(texts, dropped.tolist(), strict=True)]
        found = net.encoded(kept)
        if self.config.zeros_for_nothing:
            found = Encoded(*(part.masked_fill(per_row(dropped, part), 0) for part in found))
        return self._condition(found, self.config.backbone, self._trained_sizes(batch))

    def _trained_sizes(self, batch: Batch) -> Tensor:
        """What the net is told of a batch's rows: their own files and cuts, where the data know them."""
        sides = rows_of(self.row_shape[1:], batch.draws.keys)
        if RAW_SIZE not in batch.columns:
            return torch.cat([sides, torch.zeros_like(sides), sides], dim=1)  # whole, uncropped
        return torch.cat([*told_sizes(batch, self.config.flips), sides], dim=1)

    @property
    def caption_limits(self) -> Mapping[str, int]:
        return {}  # its encoders count tokens

    def prompts_of(self, captions: Sequence[str]) -> tuple[str, ...]:
        return tuple(captions)  # the tokenizers cut them

    def _denoise(
        self, request: Request, guidance: Guidance, sigmas: Sequence[float]
    ) -> Generator[Call, Tensor, Denoise]:
        rows, text = len(request.seeds), self.nets["text"]
        prompts, against = request.conditions.prompt or ("",) * rows, request.conditions.negative_prompt
        other = request.blend.prompt if request.blend is not None else None
        texts = [*prompts, *(other or ()), *((against or ("",) * rows) if guidance.scale != 1 else ())]
        found = text.unpack((yield Call("text", text.tokens(texts))))
        wanted, unwanted = (Encoded(*(part[place] for part in found)) for place in (slice(rows), slice(-rows, None)))
        if other is not None:
            ends = zip(wanted, (part[rows : 2 * rows] for part in found), strict=True)
            wanted = Encoded(*(lerp(*pair, request.blend.share) for pair in ends))
        if against is None and self.config.zeros_for_nothing:
            unwanted = Encoded(*map(torch.zeros_like, unwanted))
        settings = request.settings
        adapted = self._adapted(settings, request.seeds)
        conditions = self._conditions_of(wanted, unwanted, self.config.backbone, settings)
        base = self.preconditioner.guided(*({**told, **adapted} for told in conditions), guidance, settings.reuse)
        if self.config.refiner is None or settings.refiner_start == 1:
            return base
        conditions = self._conditions_of(wanted, unwanted, self.config.refiner, settings)
        refine = replace(self.preconditioner, net="refiner").guided(*conditions, guidance, settings.reuse)
        return relay(base, refine, self.preconditioner, settings.refiner_start)

    def _adapted(self, settings: Settings, seeds: Tensor) -> Condition:
        """Which adapter is on, as rows of the U-Net's calls: nothing of a model that has none."""
        names = tuple(self.config.adapters)
        if not names:
            return {}
        chosen = _adapter_of(self.config, settings)
        number = 0 if chosen == NO_ADAPTER else 1 + names.index(chosen)
        strength = torch.full(seeds.shape, settings.adapter_scale, device=seeds.device)
        return {"adapter": torch.full_like(seeds, number), "strength": strength}

    def _conditions_of(
        self, wanted: Encoded, unwanted: Encoded, layout: UNetLayout, settings: Settings
    ) -> tuple[Condition, Condition]:
        """Positive and negative conditioning of a U-Net."""
        sides, scores = self.row_shape[1:], zip(AESTHETIC, strict=True)
        last = scores if layout.added and layout.added[1] == 5 else (sides, sides)
        told = zip((wanted, unwanted), settings.told(sides), last, strict=True)
        return tuple(
            self._condition(text, layout, rows_of((*sizes, *more), text.context)) for text, sizes, more in told
        )

    def _condition(self, text: Encoded, layout: UNetLayout, sizes: Tensor) -> Condition:
        """`sizes` (B, 5 or 6): of the file, of the cut, and what is wanted, a size or a score."""
        context = text.context[:, :, -layout.context_dim :]  # the refiner attends to the last encoder alone
        return {"context": context} if layout.added is None else {"context": context, POOLED: text.pooled, SIZES: sizes}


def _adapter_of(config: Config, settings: Settings) -> str:
    """The name of the adapter that is on."""
    return settings.adapter or (next(iter(config.adapters)) if len(config.adapters) == 1 else NO_ADAPTER)


def adapter_net(name: str) -> str:
    """The net of an adapter."""
    return f"adapter_{name}"


def _adapter(net: Denoiser, name: str, config: AdapterConfig) -> Adapter:
    try:
        return Adapter(net, config)
    except ValueError as error:
        raise ConfigError(f"stable_diffusion: adapters.{name}.{error}") from None


# -- the tiny configuration ------------------------------------------------------------------------------------------


def _import_text(family: Family) -> None:
    """Gives the tiny model what an imported one has: text encoders that are the same whatever the seed, a tokenizer."""
    text = family.nets["text"]
    text.tokenizer_0.copy_(torch.frombuffer(bytearray(_LETTERS), dtype=torch.uint8))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in text.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)


_TINY_UNET = {
    "widths": (8, 16),
    "attention": (True, False),
    "layers": 1,
    "heads": (2, 2),
    "depth": (1, 1),
    "context_dim": 8,
    "norm_groups": 2,
}
_TINY_TEXT = {
    "vocab_size": 258,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "projection_dim": 6,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
# a tokenizer of single letters; what is none is left out
_LETTERS = json.dumps(
    {
        "version": "1.0",
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "model": {"type": "WordLevel", "vocab": {chr(code): code for code in range(97, 123)}, "unk_token": "a"},
    }
).encode()
TINY = Tiny(
    {
        "backbone": {**_TINY_UNET, "added": (6, 6, 4)},
        "refiner": {**_TINY_UNET, "added": (6, 5, 4)},
        "text": [
            {
                "config": _TINY_TEXT,
                "pooled": True,
                "penultimate": True,
                "length": 16,
                "pad": 0,
                "tokenizer_bytes": len(_LETTERS),
            }
        ],
        "latent_mean": (0.1, 0.0),
        "latent_std": (1.2, 0.9),
        "optimizer": {"learning_rate": 0.01},
    },
    data="captioned latents",
    settings={"num_inference_steps": 4},
    prepare=_import_text,
)
