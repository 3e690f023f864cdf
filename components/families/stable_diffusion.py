"""Stable Diffusion 1 and 2 (Rombach et al. 2022) and XL (Podell et al. 2024): latent diffusion of texts by pretrained
encoders, as pipelines.export imports it from a folder of diffusers."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.conditioning.text import texts_of_column
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.diffusion import config as diffusion
from components.diffusion import schedules
from components.diffusion.building import STEERING
from components.diffusion.denoiser import Denoiser
from components.diffusion.guidance import Condition, Denoise, Guidance, Preconditioner
from components.errors import DataError
from components.families.base import Family, Phase, Tiny
from components.families.latent_diffusion import Model as LatentDiffusion
from components.nets.text_encoders import LIBRARIES, Encoded, EncoderLayout, TextEncoders
from components.nets.unet import UNet2DConditionModel
from components.sampling.blends import lerp
from components.sampling.requests import BLEND, Conditions, Request
from components.sampling.trajectories import Call
from components.shapes import per_row
from components.spaces import Latents
from components.training.optimizers import OptimizerConfig

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

    # of fine-tuning, as in diffusion/config.py
    times: diffusion.Times = diffusion.Times(density="uniform")
    weighting: diffusion.Weighting = diffusion.Weighting()
    flips: bool = False
    label_dropout: float = Field(0.1, ge=0, le=1)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, weight_decay=0.01, warmup=500)
    alignment: ClassVar[None] = None  # these nets have no tokens that go through blocks alike

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.weighting.name == "learned":
            raise ValueError(
                "weighting: learned needs a part that these U-Nets do not have; expected uniform or min_snr"
            )
        return self


class Settings(diffusion.Settings):
    """`refiner_start`: the share of the schedule's times after which the refiner takes over; 1: never."""

    solver: Literal[tuple(diffusion.SOLVERS)] = "dpmpp_2m"
    num_inference_steps: int = Field(25, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=0, le=50)
    guidance: Literal["classifier_free"] = "classifier_free"
    refiner_start: float = Field(0.8, gt=0, le=1)


class Model(LatentDiffusion):
    Config = Config
    Settings = Settings
    accepts = frozenset({"source", BLEND, *STEERING["text"]})
    libraries = LIBRARIES

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        if data.autoencoder is None:
            raise DataError("stable_diffusion: expected a latent data set, as `encode` writes it; found images")
        self.space = Latents(data, (config.latent_mean, config.latent_std))
        self.autoencoder = self.space.autoencoder
        text = TextEncoders(config.text)
        denoisers = {"denoiser": config.backbone.build(data.shape[0])}
        if config.refiner is not None:
            denoisers["refiner"] = config.refiner.build(data.shape[0])
        self.nets = nn.ModuleDict({**denoisers, "text": text, **self.space.nets})
        self.kept = tuple(self.nets)
        self.pretrained = tuple(name for name in self.nets if name != "denoiser")
        self.calls = {**self.space.calls, **denoisers, "text": text}
        self.schedule = schedules.build(config.schedule)
        self.preconditioner = Preconditioner(config.objective, self.schedule)
        self.phases = (Phase("denoise", "denoiser", self.loss, config.optimizer),)

    @classmethod
    def early_nets(cls, config: Config) -> dict:
        return {}

    @classmethod
    def roles(cls, config: Config) -> dict:
        return {}

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
        return self._condition(found, self.config.backbone, None)

    def preview(self, columns: Mapping[str, Tensor]) -> Tensor:
        prompts = texts_of_column(columns["caption"][:4]) if "caption" in columns else ("",) * 4
        return self.sample(Request(torch.arange(len(prompts)), self.usual_settings, Conditions(prompt=prompts)))

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
        base = self.preconditioner.guided(*self._conditions_of(wanted, unwanted, self.config.backbone), guidance)
        if self.config.refiner is None or request.settings.refiner_start == 1:
            return base
        conditions = self._conditions_of(wanted, unwanted, self.config.refiner)
        refine = replace(self.preconditioner, net="refiner").guided(*conditions, guidance)
        return self._relay(base, refine, request.settings.refiner_start)

    def _relay(self, base: Denoise, refine: Denoise, share: float) -> Denoise:
        """`refine` below the level where `share` of the times is done (Balaji et al. 2022, section 4.1)."""
        cut = round(schedules.NUM_TRAIN_TIMESTEPS * (1 - share))

        def denoise(x: Tensor, sigma: float) -> Generator[Call, Tensor, Tensor]:
            level = float(self.preconditioner.level(torch.tensor([sigma], dtype=torch.float64)))
            # times come back from sigma a little off
            return (yield from (base if level > cut - 1e-6 else refine)(x, sigma))

        return denoise

    def _conditions_of(self, wanted: Encoded, unwanted: Encoded, layout: UNetLayout) -> tuple[Condition, Condition]:
        """Positive and negative conditioning of a U-Net."""
        score = AESTHETIC if layout.added and layout.added[1] == 5 else (None, None)
        return tuple(
            self._condition(text, layout, aesthetic) for text, aesthetic in zip((wanted, unwanted), score, strict=True)
        )

    def _condition(self, text: Encoded, layout: UNetLayout, aesthetic: float | None) -> Condition:
        context = text.context[:, :, -layout.context_dim :]  # the refiner attends to the last encoder alone
        if layout.added is None:
            return {"context": context}
        _, height, width = self.row_shape
        last = (height, width) if aesthetic is None else (aesthetic,)
        sizes = context.new_tensor([height, width, 0, 0, *last]).expand(len(context), -1)  # whole, uncropped
        return {"context": context, "pooled": text.pooled, "sizes": sizes}


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
