"""StyleGAN2: styles, noise, R1 and path-length regularisation at times, style mixing, truncation (Karras et al. 2020).
`growing` adds the progressive growing of StyleGAN 1."""

from __future__ import annotations

import functools

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families.base import Losses, Tiny
from components.gan import penalties
from components.gan.base import GAN
from components.gan.config import ConvConfig
from components.gan.networks import critic_options, doubled_side
from components.nets.gan.critic import Critic, CriticInputs
from components.nets.gan.stylegan2 import Generator, Head, Trunk
from components.sampling.requests import Request
from components.training.optimizers import OptimizerConfig

ADAM = OptimizerConfig(name="adam", learning_rate=2e-3, betas=(0.0, 0.99))  # Karras et al. 2020, appendix B


class Growing(Strict):
    """Resolutions come in one after the other (Karras et al. 2018, section 2; 2019)."""

    steps: int = Field(gt=0)  # until the last is in


class Config(ConvConfig):
    latent_dim: int = Field(64, ge=1)
    style_dim: int = Field(64, ge=1)
    mapping_layers: int = Field(4, ge=1)
    r1: float = Field(1.0, ge=0)
    penalise_every: int = Field(16, ge=1)
    path_length: float = Field(2.0, ge=0)  # weight
    path_length_every: int = Field(4, ge=1)  # steps of the generator, of which there is one in num_critic_steps
    style_mixing: float = Field(0.9, ge=0, le=1)  # share of rows of two styles
    minibatch_std: bool = True
    growing: Growing | None = None
    generator: OptimizerConfig = ADAM
    discriminator: OptimizerConfig = ADAM


class Settings(Strict):
    truncation_psi: float = Field(1.0, ge=0, le=1)  # 0 gives the mean image


class Model(GAN):
    Config = Config
    Settings = Settings
    conditional = True
    labels_optional = True

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.nets["generator"].register_buffer("mean_path", torch.zeros(()))

    def networks(self) -> dict[str, nn.Module]:
        (channels, size), config = doubled_side(self), self.config
        growing = config.growing is not None
        trunk = Trunk(channels, size, config.width, growing)
        critic = Critic(
            trunk,
            functools.partial(Head, dim=trunk.channels),
            condition="project",
            num_classes=self.num_classes,
            **critic_options(self),
        )
        sizes = (config.latent_dim, config.width, config.style_dim, config.mapping_layers)
        return {"generator": Generator(channels, size, *sizes, self.num_classes, growing), "discriminator": critic}

    def generator_inputs(self, draws: Draws, name: str, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        generator, draws = self.nets["generator"], draws.fold(name)
        return {
            **super().generator_inputs(draws, "z", condition),
            "noise": draws.normal("noise", (generator.noise_size,)),
        }

    def mixed_inputs(self, draws: Draws, name: str, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        """Generator inputs of training: rows of two styles among them (Karras et al. 2019, section 3.1)."""
        layers, folded = self.nets["generator"].num_layers, draws.fold(f"{name} mixing")
        is_mixed = folded.uniform("mixed") < self.config.style_mixing
        cross = (1 + folded.integers("cross", layers - 1)).masked_fill(~is_mixed, layers)
        second = folded.normal("z2", (self.config.latent_dim,))
        return {**self.generator_inputs(draws, name, condition), "z2": second, "cross": cross}

    def grow(self, step: int) -> None:
        if self.config.growing:
            generator, trunk = self.nets["generator"], self.nets["discriminator"].trunk
            grown = (len(generator.sides) - 1) * min(1.0, step / self.config.growing.steps)
            for net in (generator, trunk):
                net.growth.reach(grown)

    def generate(self, net: nn.Module, batch: Batch) -> CriticInputs:
        self.grow(batch.step)
        condition = self.condition(batch)
        images, styles = net(**self.mixed_inputs(batch.draws, "fakes", condition), with_styles=True)
        return {"images": images, "styles": styles, **condition}

    def fake_inputs(self, batch: Batch) -> CriticInputs:
        return without_styles(super().fake_inputs(batch))

    def generator_loss(self, net: nn.Module, batch: Batch) -> Losses:
        config, fake = self.config, self.generated(net, batch)
        terms = self.generator_objective(without_styles(fake), batch)
        if config.path_length and batch.step // config.num_critic_steps % config.path_length_every == 0:
            noise = batch.draws.normal("path", fake["images"].shape[1:])
            terms["path_length"] = self.path_length(penalties.path_lengths(fake["images"], fake["styles"], noise))
            terms["loss"] = terms["loss"] + config.path_length_every * config.path_length * terms["path_length"]
        return terms

    def path_length(self, lengths: Tensor) -> Tensor:
        """The squared distance of each row's length from the running mean (Karras et al. 2020, equation 4)."""
        mean = self.nets["generator"].mean_path
        with torch.no_grad():
            mean.lerp_(lengths.mean(), 0.01)
        return (lengths - mean.clone()).square().mean()

    def sampling_inputs(self, request: Request) -> dict[str, Tensor]:
        psi = torch.full((len(request.seeds),), request.settings.truncation_psi, device=request.seeds.device)
        return {**super().sampling_inputs(request), "psi": psi}


def without_styles(inputs: CriticInputs) -> CriticInputs:
    """Generated rows as the discriminator takes them."""
    return {name: value for name, value in inputs.items() if name != "styles"}


TINY = Tiny({"latent_dim": 5, "width": 4, "style_dim": 6, "mapping_layers": 2, "penalise_every": 2})
