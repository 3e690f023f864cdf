"""Config of every GAN: its loss, its optimizers, and the remedies, each off unless its key is there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.config import Strict
from components.gan.losses import LOSSES, LossName
from components.nets.gan.critic import MinibatchDiscrimination
from components.training.optimizers import OptimizerConfig

ADAM = OptimizerConfig(name="adam", learning_rate=2e-4, betas=(0.5, 0.999))  # Radford et al. 2016, section 4


class InstanceNoise(Strict):
    """Normal noise on all that the discriminator sees, falling to 0 (Arjovsky and Bottou 2017, section 3;
    Sonderby et al. 2017)."""

    std: float = Field(0.1, gt=0)  # of images in [-1, 1]
    steps: int = Field(gt=0)  # until it is 0


class Adaptive(Strict):
    """Adaptive augmentation (Karras et al. 2020a): the discriminator holds the probability, so checkpoints do.

    Each worker follows its own rows; data parallelism hands on that of the first.
    """

    target: float = Field(0.6, ge=-1, le=1)  # of E[sign D(real)]
    ramp_steps: int = Field(2000, gt=0)  # from probability 0 to 1 at the fastest
    transforms: tuple[
        Literal[
            "flip", "rotate90", "translate", "scale", "rotate", "stretch", "drift", "brightness", "contrast"
        ],
        ...,
    ] = ("translate", "scale", "rotate", "stretch", "drift", "brightness", "contrast")  # fmt: skip


class TopK(Strict):
    """The generator learns from its best rows; the share falls linearly (Sinha et al. 2020, section 3.2)."""

    share: float = Field(0.5, gt=0, le=1)  # at the end of `steps`, from 1
    steps: int = Field(gt=0)


class Unroll(Strict):
    """The generator looks `steps` moves of the discriminator ahead, by gradient descent (Metz et al. 2017)."""

    steps: int = Field(5, ge=1)
    learning_rate: float = Field(1e-2, gt=0)


class GANConfig(Strict):
    """Variants subclass it with their own defaults."""

    latent_dim: int = Field(100, ge=1)
    loss: LossName = "non_saturating"
    num_critic_steps: int = Field(1, ge=1)  # the discriminator's steps for each of the generator's
    generator: OptimizerConfig = ADAM
    discriminator: OptimizerConfig = ADAM  # another rate than the generator's: TTUR (Heusel et al. 2017)

    # what the discriminator sees
    instance_noise: InstanceNoise | None = None
    diffaugment: tuple[Literal["colour", "translation", "cutout"], ...] = ()  # Zhao et al. 2020
    ada: Adaptive | None = None

    # its net, and the generator's
    spectral_norm: tuple[Literal["generator", "discriminator"], ...] = ()  # Miyato et al. 2018
    minibatch_std: bool = False  # Karras et al. 2018, section 3
    minibatch_discrimination: MinibatchDiscrimination | None = None  # Salimans et al. 2016, section 3.2

    # its loss
    label_smoothing: float = Field(0.0, ge=0, lt=1)  # of real targets only (Salimans et al. 2016, section 3.4)
    r1: float = Field(0.0, ge=0)  # gamma of Mescheder et al. 2018: half of it weighs the squared gradient at reals
    r2: float = Field(0.0, ge=0)  # likewise at fakes
    penalise_every: int = Field(1, ge=1)  # steps between R1 and R2, which then weigh as much more (Karras et al. 2020)
    gradient_penalty: float = Field(0.0, ge=0)  # weight; Gulrajani et al. 2017
    clip_weights: float | None = Field(None, gt=0)  # each weight's largest size; Arjovsky et al. 2017
    lecam: float = Field(0.0, ge=0)  # weight; Tseng et al. 2021
    lecam_decay: float = Field(0.99, ge=0, lt=1)  # of the running means of scores
    orthogonal: float = Field(0.0, ge=0)  # weight, on both nets' own losses; Brock et al. 2019, section 3.1

    # the generator's loss
    feature_matching: float = Field(0.0, ge=0)  # weight of a mean over features, where Salimans et al. 2016 sum
    topk: TopK | None = None
    unroll: Unroll | None = None

    @model_validator(mode="after")
    def _fits(self) -> GANConfig:
        if self.label_smoothing and not LOSSES[self.loss].targets:
            with_targets = " and ".join(name for name, loss in LOSSES.items() if loss.targets)
            raise ValueError(f"label_smoothing moves the targets of {with_targets}; {self.loss} has none")
        return self


class ConvConfig(GANConfig):
    """The size of convolutional networks."""

    width: int = Field(64, ge=1)  # channels beside the image; each resolution below has twice as many


class ResidualConfig(ConvConfig):
    """Residual networks with self-attention (Zhang et al. 2019)."""

    attention_at: int | None = 8  # the side of the maps that attend to themselves
