"""Diffusion of films by a transformer of spacetime patches (Peebles and Xie 2023; Brooks et al. 2024), on the latents
of a causal autoencoder or on small films themselves; of nothing, classes or texts, and of a first frame.

It is latent_diffusion with three things of its own. Films of any length are trained together, stills among them: a
latent film's prefix is the latent of the film's prefix. Each frame has its own noise level, so that a first frame can
be given clean and the rest drawn after it (Chen et al. 2024, diffusion forcing). And longer films get more noise: what
hides a still leaves a film of many frames to be guessed (Esser et al. 2024, section 5.3.2, of larger images).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.info import AutoencoderInfo, DataInfo
from components.data.media.video import FACTOR
from components.data.randomness import Draws, hash64
from components.diffusion import config as diffusion
from components.diffusion.backbones import Backbone, DiT
from components.diffusion.guidance import Denoise, Guidance, Preconditioner
from components.errors import SamplerError
from components.families import causal_vae, latent_diffusion
from components.families.base import Losses, Role, Tiny
from components.nets.dit import patch_sides
from components.sampling.requests import Request
from components.sampling.trajectories import Call
from components.shapes import pooled, refuse_unless_film


class Config(diffusion.Config):
    backbone: Backbone = DiT(name="dit", patch=(1, 2, 2))
    image_share: float = Field(0.1, ge=0, le=1)  # share of steps that train on the first frame alone
    shorter_share: float = Field(0.2, ge=0, le=1)  # share of the other steps whose films are cut to some length
    first_share: float = Field(0.2, ge=0, le=1)  # share of rows whose first frame is told


class Settings(diffusion.Settings):
    frames: int | None = Field(None, ge=1)  # 1, 5, 9, ... up to those of the data; all of them if nobody says


class Model(latent_diffusion.Model):
    Config = Config
    Settings = Settings

    def __init__(self, config: Config, data: DataInfo):
        refuse_unless_film(data.decoded.shape, FACTOR, 1, "video_diffusion")
        super().__init__(config, data)
        if self.autoencoder is not None and not getattr(self.autoencoder, "causal", False):
            raise SamplerError("video_diffusion: expected the latents of a causal_vae, or data/images/train")
        if patch_sides(getattr(config.backbone, "patch", 1), 3)[0] != 1:
            raise SamplerError(
                "video_diffusion: backbone.patch: a frame has a noise level of its own; expected 1 in time"
            )
        self.accepts |= {"first"}
        self.preconditioner = FilmPreconditioner(config.objective, self.schedule)

    @classmethod
    def roles(cls, config: Config) -> dict[str, Role]:
        return {latent_diffusion.GUIDE: Role(family="video_diffusion", kept=True)}

    # -- training -----------------------------------------------------------------------------------------------------

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        draws, count = batch.draws, self.trained_frames(batch.step)
        clean = self.space.normalise(self.space.clean(batch, self.config.flips))[:, :, :count]
        noise = draws.normal("noise", self.data.shape)[:, :, :count]
        sigma = self.schedule.sigma(self.times(draws).double()) * shift(count)
        inputs, wanted = self._question(clean, noise, sigma)
        told = (draws.uniform("first") < self.config.first_share) & (count > 1)
        known = self.preconditioner.known(clean[:, :, :1])
        inputs = {name: beginning(inputs[name], known[name], told) for name in inputs}
        inputs |= self._training_condition(batch, self.config.label_dropout)
        inputs |= self.routed(batch, clean)
        answer, u, _ = self.answered(net, inputs, batch.step)
        error = beginning((answer - wanted).square(), torch.zeros_like(wanted[:, :, :1]), told)
        error = error.flatten(1).mean(1) * (count / (count - told.float()))  # a frame that is told is not asked for
        if self.config.weighting.name == "uniform":
            return {"loss": error.mean()}
        return self._weighted(error, sigma, u)

    def trained_frames(self, step: int) -> int:
        """How many latent frames a step trains on, the same on all workers."""
        draws, most = Draws(torch.tensor([hash64("frames", step)])), self.data.shape[1]
        if float(draws.uniform("image")) < self.config.image_share:
            return 1
        if most > 2 and float(draws.uniform("shorter")) < self.config.shorter_share:
            return 2 + int(draws.integers("frames", most - 2))
        return most

    def _sigma(self, times: Tensor) -> Tensor:
        return self.schedule.sigma(times) * shift(self.data.shape[1])

    def _question(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        inputs, wanted = super()._question(clean, noise, sigma)
        return inputs | {"level": inputs["level"][:, None].expand(-1, clean.shape[2])}, wanted

    # -- sampling -----------------------------------------------------------------------------------------------------

    def _shape(self, request: Request) -> tuple[int, ...]:
        """Raises SamplerError of a number of frames that the model does not make."""
        most, frames = self.row_shape[1], request.settings.frames
        channels, _, *sides = self.data.shape
        if frames is None:
            return self.data.shape
        if frames % FACTOR != 1 or frames > most:
            raise SamplerError(f"frames: expected 1, 5, 9, ... up to {most}, found {frames}")
        if request.conditions.source is not None and frames != most:
            raise SamplerError(f"frames: a film is edited at its own length, {most}, found {frames}")
        return channels, self._latent_frames(frames), *sides

    def _cells(self, mask: Tensor) -> Tensor:
        """The first latent is of the first frame alone, as in pixels, the others share the rest evenly."""
        frames, *sides = self.data.shape[1:]
        parts = [pooled(mask[:, :, :1], (1, *sides))]
        parts += [pooled(mask[:, :, 1:], (frames - 1, *sides))] if frames > 1 else []
        return torch.cat(parts, dim=2)

    def _latent_frames(self, frames: int | None) -> int:
        """Of a film of this many frames, by default the data's."""
        most, latent = self.row_shape[1], self.data.shape[1]
        return latent if frames is None else 1 + (frames - 1) * (latent - 1) // max(1, most - 1)

    def sigmas(self, settings: Settings, strength: float = 1.0) -> list[float]:
        more = shift(self._latent_frames(settings.frames))
        return [sigma * more for sigma in super().sigmas(settings, strength)]

    def _bounded(self, denoise: Denoise, quantile: float, request: Request) -> Denoise:
        bounded, first = super()._bounded(denoise, quantile, request), request.conditions.first
        if first is None:
            return bounded
        told = self.space.normalise(first[:, :, None])  # estimates are bounded in pixels alone

        def begun(x: Tensor, sigma: float) -> Generator[Call, Tensor, Tensor]:
            x0 = yield from bounded(x, sigma)
            return torch.cat([told, x0[:, :, 1:]], dim=2)

        return begun

    def _denoise(
        self, request: Request, guidance: Guidance, sigmas: Sequence[float]
    ) -> Generator[Call, Tensor, Denoise]:
        preconditioner, first = self.preconditioner, request.conditions.first
        if first is not None:
            known = yield from self.space.encode(first[:, :, None])
            preconditioner = replace(preconditioner, first=known)
        towards, away = yield from self._conditions(request, guidance)
        return preconditioner.guided(towards, away, guidance, request.settings.reuse)


def shift(frames: int) -> float:
    """How much more noise hides this many latent frames as well as one: the root of their number, since that many times
    as many values say the same (Esser et al. 2024, equation 23)."""
    return math.sqrt(frames)


def beginning(x: Tensor, first: Tensor, told: Tensor) -> Tensor:
    """Films or levels (B, ...) whose first frame is `first` where `told` (B,) says so. Frames come last in levels
    (B, T), third in films (B, C, T, H, W)."""
    axis = min(2, x.ndim - 1)
    replaced = torch.cat([first, x.narrow(axis, 1, x.shape[axis] - 1)], dim=axis)
    return torch.where(told.view(-1, *[1] * (x.ndim - 1)), replaced, x)


@dataclass(frozen=True)
class FilmPreconditioner(Preconditioner):
    """A preconditioner that tells each frame its own level. `first`: what films begin with, (B, C, 1, H, W), which the
    net is told clean, and which its answer has."""

    first: Tensor | None = None

    def known(self, first: Tensor) -> dict[str, Tensor]:
        """What the net is asked about a first frame (B, C, 1, ...) without noise: its input and its level (B, 1)."""
        nothing = torch.zeros(len(first), 1, dtype=torch.float64, device=first.device)
        *_, c_in = self._coefficients(0.0)
        return {"x": c_in * first, "level": self.level(nothing).float()}

    def question(self, x: Tensor, sigma: float) -> dict[str, Tensor]:
        asked = super().question(x, sigma)
        asked["level"] = asked["level"][:, None].repeat(1, x.shape[2])
        if self.first is None:
            return asked
        known = self.known(self._beside(x))
        told = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return {name: beginning(asked[name], known[name], told) for name in asked}

    def denoised(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        x0 = super().denoised(x, sigma, answer)
        return x0 if self.first is None else torch.cat([self._beside(x), x0[:, :, 1:]], dim=2)

    def _beside(self, x: Tensor) -> Tensor:
        """The first frames for rows that guidance asks about twice."""
        return self.first.repeat(len(x) // len(self.first), *[1] * (self.first.ndim - 1))


TINY = Tiny(
    {"backbone": {"name": "dit", "patch": (1, 2, 2), "width": 24, "depth": 2, "heads": 2}, "image_share": 0.3},
    data=DataInfo(
        shape=(2, 2, 4, 4),
        medium="video",
        classes=("nought", "one", "two"),
        statistics={"channel_mean": (0.3, -0.2), "channel_std": (1.5, 0.8)},
        autoencoder=AutoencoderInfo(
            family="causal_vae",
            config=causal_vae.Config(**causal_vae.TINY.config).model_dump(mode="json"),
            data=causal_vae.TINY.data,
        ),
    ),
    settings={"num_inference_steps": 4},
)
