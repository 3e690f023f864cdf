"""The KL autoencoder whose latents diffusion works on (Kingma and Welling 2014; Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.autoencoding.adversarial import AdversarialConfig, adaptive_weight, hinge
from components.autoencoding.codebooks import CodebookKind, FiniteScalarsConfig
from components.autoencoding.equivariance import EquivarianceConfig, draw
from components.autoencoding.perceptual import DISTANCES, PerceptualConfig
from components.autoencoding.variational import (
    IMPORTANCE_SAMPLES,
    DensityConfig,
    LatentDensity,
    free_bits_kl,
    importance_bound,
    posterior_log_density,
    standard_log_density,
)
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.errors import SamplerError
from components.families.base import Autoencoder, Judge, Losses, Phase, Role, Tiny
from components.likelihood.contract import Likelihood, bits_per_value
from components.likelihood.dequantise import levels
from components.likelihood.logistics import logistic_log_probability
from components.metrics.codes import code_counts, perplexity
from components.metrics.held_out import BITS
from components.nets.autoencoder import AutoencoderKL
from components.nets.autoencoder.discriminator import PatchDiscriminator
from components.nets.autoencoder.kl import Reconstruction
from components.nets.blocks import norm_groups
from components.sampling.blends import lerp, slerp
from components.sampling.requests import Request
from components.sampling.trajectories import Answer, Call, Trajectory
from components.shapes import refuse_unless_planar
from components.training.optimizers import OptimizerConfig


class Config(Strict):
    latent_channels: int = Field(4, ge=1)
    widths: tuple[int, ...] = Field((32, 64), min_length=1)  # channels by resolution; each but the last halves the side
    layers: int = Field(1, ge=1)  # residual blocks a resolution
    norm_groups: int = Field(default_factory=lambda given: norm_groups(given["widths"]), ge=1)
    # distance between an image and what comes back, summed over its values, which lie in [-1, 1] (under bce in [0, 1]);
    # logistic is a density, so that it has a likelihood
    reconstruction: Literal["mse", "l1", "bce", "logistic"] = "mse"
    # of the divergence from a normal distribution, summed over latents: 1 is the evidence lower bound under `logistic`
    # and `bce`; under `mse`, whose square has no half before it, 2 is that of unit variance in [-1, 1], and 8 that of
    # unit variance and pixels in [0, 1], as textbooks have them
    kl_weight: float = Field(1e-2, ge=0)
    free_bits: float = Field(0.0, ge=0)  # nats of each latent channel that cost nothing
    density: DensityConfig | None = None  # in the prior's place when sampling
    perceptual: PerceptualConfig | None = None
    adversarial: AdversarialConfig | None = None
    equivariance: EquivarianceConfig | None = None
    codebook: CodebookKind | None = None
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup=50)

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if isinstance(self.codebook, FiniteScalarsConfig) and len(self.codebook.levels) != self.latent_channels:
            raise ValueError(
                f"codebook.levels has {len(self.codebook.levels)} entries and latent_channels is "
                f"{self.latent_channels}; expected as many"
            )
        if self.codebook and (self.density or self.reconstruction == "logistic"):
            raise ValueError("codebook: a quantised posterior has no density; expected neither density nor logistic")
        return self


class Settings(Strict):
    temperature: float = Field(1.0, ge=0, le=2)  # of the latents' standard deviation


class Model(Autoencoder):
    Config = Config
    Settings = Settings
    needs_class = True

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        self.factor = 2 ** (len(config.widths) - 1)
        refuse_unless_planar(data.shape, self.factor, "vae")
        if config.codebook:
            config.codebook.token_shape(self.latent_shape)  # refuses latents that its grids do not fit
        codebook = config.codebook.build(config.latent_channels) if config.codebook else None
        has_scale = config.reconstruction == "logistic"
        self.held_out = BITS if has_scale else None
        layout = config.latent_channels, config.widths, config.layers
        net = AutoencoderKL(data.shape[0], *layout, codebook, has_scale, config.norm_groups)
        self.nets = nn.ModuleDict({"autoencoder": net})
        self.calls = {"decoder": net.decode}
        alone = config.adversarial is None  # else the discriminator's weight asks for a backward pass of its own
        self.phases = (Phase("autoencode", "autoencoder", self.loss, config.optimizer, one_backward=alone),)
        if config.adversarial:
            self._add_discriminator(config.adversarial)
        if config.density:
            self._add_density(config.density)

    def _add_density(self, config: DensityConfig) -> None:
        if config.classes and self.data.classes:
            self.accepts |= {"label"}
        classes = self.num_classes if self.conditional else 0
        density = LatentDensity(math.prod(self.latent_shape), config.components, classes)
        self.nets["density"] = density
        self.kept = (*self.kept, "density")
        self.calls["density"] = density.draw
        self.phases += (Phase("density", "density", self.density_loss, config.optimizer, low_precision=False),)

    def _add_discriminator(self, config: AdversarialConfig) -> None:
        channels, *sides = self.data.shape
        for side in sides:
            if side % 2**config.halvings:
                raise SamplerError(
                    f"vae: adversarial.halvings: {config.halvings} of a side of {side} leave no whole pixels"
                )
        self.nets["discriminator"] = PatchDiscriminator(channels, config.width, config.halvings)
        moves = Phase("discriminate", "discriminator", self.discriminator_loss, config.optimizer, low_precision=False)
        self.phases = (*self.phases, moves)

    @classmethod
    def roles(cls, config: Config) -> dict[str, Role]:
        if config.perceptual is None:
            return {}
        network = config.perceptual.network
        return {network: Role(Judge, needed=True, is_file=network == "lpips")}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        _, height, width = self.data.shape
        return self.config.latent_channels, height // self.factor, width // self.factor

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        config = self.config
        answer, images = self._reconstruction(net, batch)
        terms = {"reconstruction": self._misfit(answer, images).mean()}
        loss, decoded = terms["reconstruction"], self._as_images(answer.images)
        if config.perceptual:
            terms["perceptual"] = self._perceptual(decoded, images).mean()
            loss = loss + config.perceptual.weight * images[0].numel() * terms["perceptual"]
        figures = {}
        if config.adversarial:
            terms["adversarial"] = -self.nets["discriminator"](decoded).mean()
            last = self.nets["autoencoder"].decoder.conv_out.weight
            figures["adaptive_weight"] = adaptive_weight(loss, terms["adversarial"], last)
            weight = config.adversarial.weight * self._playing(batch) * figures["adaptive_weight"]
            loss = loss + weight * terms["adversarial"]
        if config.codebook:
            codebook = self.nets["autoencoder"].codebook
            if answer.commitment is not None:
                terms["commitment"] = answer.commitment
                loss = loss + config.codebook.commitment * answer.commitment
            for name, part in {"": answer.tokens, **codebook.parts(answer.tokens)}.items():
                figures[f"perplexity{name}"] = perplexity(code_counts(part, codebook.size)).float()
        else:
            terms["kl"] = free_bits_kl(answer.mean, answer.std, config.free_bits)
            loss = loss + config.kl_weight * terms["kl"]
        return {"loss": loss, **terms, **figures}

    def _misfit(self, answer: Reconstruction, images: Tensor) -> Tensor:
        """(B,) how far reconstructions are from images, summed over a row; under `logistic` in nats."""
        if answer.log_scale is not None:
            return -logistic_log_probability(images, answer.images, answer.log_scale, levels(self.medium))
        return RECONSTRUCTION[self.config.reconstruction](answer.images, images).flatten(1).sum(1)

    def density_loss(self, net: nn.Module, batch: Batch) -> Losses:
        """Nats of a latent's number under the density."""
        with torch.no_grad():
            mean, std = self.nets["autoencoder"].encode(self.medium.rows(batch.columns))
            latents = mean + std * batch.draws.normal("posterior", self.latent_shape)
        label = batch.columns["label"] if self.conditional else None
        return {"loss": -net(latents.flatten(1), label).mean() / latents[0].numel()}

    def _perceptual(self, decoded: Tensor, images: Tensor) -> Tensor:
        """(B,) distances to the eyes of the input that the config names."""
        network = self.config.perceptual.network
        assert network in self.received, f"the perceptual loss was not handed its {network}"
        given = self.received[network]
        return DISTANCES[network](given.nets["classifier"] if network == "judge" else given, decoded, images)

    def _reconstruction(self, net: nn.Module, batch: Batch) -> tuple[Reconstruction, Tensor]:
        """A batch through the net, and the images that it should give."""
        images = self.medium.rows(batch.columns)
        noise, asked = batch.draws.normal("posterior", self.latent_shape), self.config.equivariance
        least = 2**self.config.adversarial.halvings if self.config.adversarial else 1
        change = draw(asked, batch.step, self.latent_shape[1:], self.factor, least) if asked else None
        if change is None:
            return net(images, noise), images
        return net(images, noise, change.latents), change.images(images)

    def _playing(self, batch: Batch) -> float:
        return float(batch.step >= self.config.adversarial.start)

    def discriminator_loss(self, net: nn.Module, batch: Batch) -> Losses:
        with torch.no_grad():
            answer, images = self._reconstruction(self.nets["autoencoder"], batch)
        real, fake = net(torch.cat([images, self._as_images(answer.images)])).chunk(2)
        return {
            "loss": self._playing(batch) * hinge(real, fake),
            "score_real": real.mean(),
            "score_fake": fake.mean(),
        }

    def _as_images(self, decoded: Tensor) -> Tensor:
        """The decoder's output in the images' range, with a gradient everywhere."""
        return decoded.tanh() if self.config.reconstruction == "bce" else decoded

    # -- as a model of its own ----------------------------------------------------------------------------------------

    def _trajectory(self, request: Request) -> Trajectory:
        """Decodes draws from the density of latents, or from the prior."""
        blend, label = request.blend, request.conditions.label
        latents = yield from self._drawn(request.seeds, label, request.settings.temperature)
        if blend is not None:
            seeds = request.seeds if blend.seeds is None else blend.seeds
            towards = label if blend.label is None else blend.label
            other = yield from self._drawn(seeds, towards, request.settings.temperature)
            latents = (lerp if self.config.density else slerp)(latents, other, blend.share)
        return (yield from self.decode(latents))

    def _drawn(self, seeds: Tensor, label: Tensor | None, temperature: float) -> Generator[Call, Answer, Tensor]:
        draws = Draws.of_seeds(seeds)
        noise = temperature * draws.normal("latent", self.latent_shape)
        if self.config.density is None:
            return noise
        inputs = {"noise": noise.flatten(1), "uniform": draws.uniform("component", (1,))}
        drawn = yield Call("density", inputs | ({"label": label} if self.conditional else {}))
        return drawn.unflatten(1, self.latent_shape)

    @property
    def likelihood(self) -> Likelihood | None:
        if self.config.reconstruction != "logistic":
            return None
        return Likelihood("bound", "none", self._log_probability)

    def _log_probability(self, rows: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        return importance_bound(self.log_weights(rows, label, draws, IMPORTANCE_SAMPLES))

    def held_out_losses(self, columns: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """(B, 1) bits per dimension by one weight, the evidence lower bound: as cheap as a step forward."""
        rows = self.medium.rows(columns)
        return bits_per_value(self.log_weights(rows, columns.get("label"), draws, 1), rows[0].numel())

    def log_weights(self, rows: Tensor, label: Tensor | None, draws: Draws, count: int) -> Tensor:
        """(B, count) log p(x, z) / q(z | x) in nats, of latents drawn from the posterior of rows (B, C, ...)."""
        net, found = self.nets["autoencoder"], []
        mean, std = net.encode(rows)
        for number in range(count):
            noise = draws.fold(number).normal("posterior", self.latent_shape)
            latents = mean + std * noise
            told = logistic_log_probability(rows, net.decode(latents), net.log_scale, levels(self.medium))
            found.append(told + self._prior(latents.flatten(1), label) - posterior_log_density(noise, std))
        return torch.stack(found, 1)

    def _prior(self, latents: Tensor, label: Tensor | None) -> Tensor:
        if self.config.density is None:
            return standard_log_density(latents)
        return self.nets["density"](latents, label if self.conditional else None)

    def bounded(self, decoded: Tensor) -> Tensor:
        """The decoder's output as images in [-1, 1]; under `bce` it is a logit."""
        return decoded.tanh() if self.config.reconstruction == "bce" else super().bounded(decoded)


def _bce(logits: Tensor, images: Tensor) -> Tensor:
    # tanh(z / 2) = 2 sigmoid(z) - 1, so z = 2 * logits makes tanh(logits) the mean image
    return F.binary_cross_entropy_with_logits(2 * logits, (images + 1) / 2, reduction="none")


RECONSTRUCTION = {
    "mse": lambda decoded, images: (decoded - images) ** 2,
    "l1": lambda decoded, images: (decoded - images).abs(),
    "bce": _bce,
}


TINY = Tiny({"latent_channels": 2, "widths": [4, 8]})
