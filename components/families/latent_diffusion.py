"""Class-conditional diffusion on the latents of an autoencoder (Rombach et al. 2022)."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.config import Strict
from components.data import Batch
from components.diffusion import schedules
from components.diffusion.denoiser import Denoiser, keeping, solve
from components.diffusion.objectives import OBJECTIVES, target
from components.diffusion.solvers import SOLVERS
from components.errors import DataError
from components.families.base import DataInfo, Losses, Phase, Sampler, refuse_unless_square
from components.families.vae import VAE
from components.nets.unet import ClassConditionalUNet
from components.optimizers import OptimizerConfig
from components.randomness import Draws
from components.sampling import Call, Preview, Request, Trajectory


class Times(Strict):
    """How training times are drawn. `logit_normal` is sigmoid(mean + std * normal) (Esser et al. 2024, section 3.1)."""

    density: Literal["uniform", "logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = Field(1.0, gt=0)


class Config(Strict):
    widths: tuple[int, ...] = Field((64, 128), min_length=1)
    attention: tuple[bool, ...] = (False, True)  # by resolution
    layers: int = Field(1, ge=1)  # residual blocks a resolution
    heads: int = Field(4, ge=1)
    context_dim: int = Field(64, ge=1)
    objective: Literal["epsilon", "x0", "v", "flow", "edm"] = "flow"
    schedule: schedules.ScheduleConfig = schedules.ScheduleConfig()
    times: Times = Times()
    label_dropout: float = Field(0.1, ge=0, le=1)  # share of rows trained without their class, for guidance
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup=50)

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if len(self.widths) != len(self.attention):
            raise ValueError(
                f"widths has {len(self.widths)} entries and attention {len(self.attention)}; expected as many"
            )
        if any(width % self.heads for width in self.widths):
            raise ValueError(f"every width must be divisible by heads ({self.heads})")
        return self


class Settings(Strict):
    """How to sample. `spacing`: `schedule` visits equally spaced times, `karras` the levels of Karras et al. 2022."""

    solver: Literal[tuple(SOLVERS)] = "ddim"
    num_inference_steps: int = Field(20, ge=1, le=1000)
    guidance_scale: float = Field(2.0, ge=0, le=50)
    spacing: Literal["schedule", "karras"] = "schedule"


SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # Karras et al. 2022, Table 1


class LatentDiffusion(Sampler):
    Config = Config
    Settings = Settings
    kept = ("unet", "autoencoder")
    pretrained = ("autoencoder",)
    conditional = True
    edits = True

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        if data.autoencoder is None:
            raise DataError("latent_diffusion: expected a latent data set, as `encode` writes it; found images")
        if not data.classes:
            raise DataError("latent_diffusion: expected labelled images, found a data set without classes")
        refuse_unless_square(data.shape, 2 ** (len(config.widths) - 1), "latent_diffusion")
        self.autoencoder = VAE(VAE.Config(**data.autoencoder.config), data.autoencoder.data)
        unet = ClassConditionalUNet(
            data.shape[0],
            len(data.classes),
            config.context_dim,
            widths=config.widths,
            attention=config.attention,
            layers=config.layers,
            heads=config.heads,
        )
        self.nets = nn.ModuleDict({"unet": unet, "autoencoder": self.autoencoder.nets["autoencoder"]})
        self.calls = {"unet": unet, "encoder": self._posterior_mean, **self.autoencoder.calls}
        self.schedule = schedules.build(config.schedule)
        self.denoiser = Denoiser(config.objective, self.schedule)
        self.phases = (Phase("denoise", "unet", self.loss, config.optimizer),)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        draws = batch.draws
        latents = batch.columns["mean"] + batch.columns["std"] * draws.normal("posterior", self.data.shape)
        latents = self.normalise(latents)
        noise = draws.normal("noise", self.data.shape)
        sigma = self.schedule.sigma(self.times(draws).double())
        dropped = draws.uniform("label_dropout") < self.config.label_dropout
        labels = torch.where(dropped, self.num_classes, batch.columns["label"])

        wide = sigma[:, None, None, None]
        c_in = OBJECTIVES[self.config.objective](wide).c_in.float()
        answer = net(c_in * (latents + wide.float() * noise), self.denoiser.level(sigma).float(), labels)
        wanted = target(latents, noise, wide, OBJECTIVES[self.config.objective])
        return {"loss": (answer - wanted).square().mean()}

    def times(self, draws: Draws) -> Tensor:
        """(B,) training times in (0, 1)."""
        times = self.config.times
        if times.density == "uniform":
            return draws.uniform("time")
        return torch.sigmoid(times.mean + times.std * draws.normal("time", ()))

    def trajectory(self, request: Request) -> Trajectory:
        settings, source, draws = request.settings, request.source, Draws.of_seeds(request.seeds)
        sigmas = self.sigmas(settings, 1.0 if source is None else source.strength)
        start = sigmas[0] * draws.normal("start", self.data.shape)
        null = torch.full_like(request.seeds, self.num_classes)
        labels = null if request.labels is None else request.labels
        away_from = null if request.negative_labels is None else request.negative_labels
        denoise = self.denoiser.guided(labels, away_from, settings.guidance_scale)
        finish = self._decode
        if source is not None:
            known = self.normalise((yield Call("encoder", {"images": source.images})))
            start = known + start  # SDEdit: Meng et al. 2022, Algorithm 1
            if source.mask is not None:
                # a latent is redrawn with any pixel of its cell
                denoise = keeping(denoise, known, F.adaptive_max_pool2d(source.mask, self.data.shape[1:]))
                finish = functools.partial(self._paste, source.images, source.mask)
        solver = SOLVERS[settings.solver](start, sigmas, lambda step: draws.normal(step, self.data.shape))

        def preview(x0: Tensor, sigma: float) -> Preview:
            return Preview((sigmas.index(sigma) + 1) / (len(sigmas) - 1), lambda: finish(x0))

        return (yield from finish((yield from solve(solver, denoise, preview))))

    def _posterior_mean(self, images: Tensor) -> Tensor:
        return self.nets["autoencoder"].encode(images)[0]

    def _decode(self, latents: Tensor) -> Trajectory:
        return self.autoencoder.decode(self.denormalise(latents))

    def _paste(self, images: Tensor, mask: Tensor, latents: Tensor) -> Trajectory:
        """Decodes, and keeps the images' own pixels where the mask is 0: a decoder changes all a little."""
        return torch.lerp(images, (yield from self._decode(latents)), mask)

    def sigmas(self, settings: Settings, strength: float = 1.0) -> list[float]:
        """The noise levels that a request visits, noisiest first, 0 last: from `strength` of the way up, in as large a
        share of the steps."""
        num_steps = max(1, math.ceil(round(settings.num_inference_steps * strength, 6)))
        if settings.spacing == "karras":
            return schedules.karras_sigmas(num_steps, SIGMA_MIN, SIGMA_MAX, start=strength)
        return self.schedule.sigmas(num_steps, strength)

    def normalise(self, latents: Tensor) -> Tensor:
        """To zero mean and unit spread per channel over the whole data set."""
        mean, std = self._moments(latents)
        return (latents - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        mean, std = self._moments(latents)
        return latents * std + mean

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (like.new_tensor(self.data.statistics[name]) for name in ("channel_mean", "channel_std"))
        return mean[:, None, None], std[:, None, None]
