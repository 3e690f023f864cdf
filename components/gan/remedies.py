"""Remedies of GAN training as objects: a GAN, when it is built, makes those whose keys its config sets.

    augmentations     change images on their way to the discriminator
    regularisers      add terms to the discriminator's loss
    generator terms   add terms to the generator's loss
    row_selection, lookahead, weight_clipping    functions, the identity or None where no key asks for them

State that a remedy moves lies in the discriminator's buffers, so that checkpoints carry it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.randomness import Draws
from components.families.base import Losses
from components.gan import penalties
from components.gan.augment import adaptive, diffaugment, next_probability
from components.gan.config import GANConfig
from components.gan.losses import LOSSES, best
from components.gan.unroll import unrolled
from components.nets.gan.critic import CriticInputs, CriticOutput

Terms = dict[str, tuple[float, Tensor]]  # by name: a weight and the scalar that it weighs


@dataclass(frozen=True)
class Scored:
    """A discriminator's answer to groups of rows, each by the group's name: "real", "fake" and what regularisers add.
    Scores are (B,) or (B, S), features (B, F)."""

    inputs: dict[str, CriticInputs]
    scores: dict[str, Tensor]
    features: dict[str, Tensor]


def score(critic: Callable[..., CriticOutput], inputs: dict[str, CriticInputs]) -> Scored:
    """Scores all groups by one call of the discriminator."""
    output = critic(*inputs.values())
    return Scored(inputs, *(dict(zip(inputs, values, strict=True)) for values in output))


def total(adversarial: Tensor, parts: list[Regulariser], scored: Scored, step: int) -> Losses:
    """The adversarial loss plus the weighted terms of all `parts`; each term is a figure of its own."""
    losses = {"loss": adversarial, "adversarial": adversarial}
    for part in parts:
        if terms := part.terms(scored, step):
            losses["loss"] = losses["loss"] + sum(weight * value for weight, value in terms.values())
            losses |= {name: value for name, (_, value) in terms.items()}
    return losses


# -- augmentations ----------------------------------------------------------------------------------------------------


class Augmentation:
    """Changes images (B, C, H, W) before the discriminator sees them, real and generated ones alike."""

    def __call__(self, images: Tensor, draws: Draws, step: int) -> Tensor:
        raise NotImplementedError

    def update(self, real: Tensor, fake: Tensor) -> Losses:
        """Adapts to a step's scores; returns figures."""
        return {}


class DiffAugment(Augmentation):
    """Differentiable augmentation (Zhao et al. 2020)."""

    def __init__(self, config: GANConfig, critic: nn.Module):
        self.names = config.diffaugment

    def __call__(self, images: Tensor, draws: Draws, step: int) -> Tensor:
        return diffaugment(images, draws, self.names)


class AdaptiveAugmentation(Augmentation):
    """Augmentation with a probability, the buffer `ada_p`, that follows over-fitting (Karras et al. 2020a)."""

    def __init__(self, config: GANConfig, critic: nn.Module):
        self.config, self.critic, self.realness = config.ada, critic, LOSSES[config.loss].realness
        critic.register_buffer("ada_p", torch.zeros(()))

    def __call__(self, images: Tensor, draws: Draws, step: int) -> Tensor:
        return adaptive(images, draws, self.critic.ada_p, self.config.transforms)

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> Losses:
        p = self.critic.ada_p
        p.copy_(next_probability(p, self.realness(real, fake), self.config.target, self.config.ramp_steps))
        return {"ada_p": p.clone()}


class InstanceNoise(Augmentation):
    """Normal noise that falls to 0 over `steps` (Arjovsky and Bottou 2017, section 3)."""

    def __init__(self, config: GANConfig, critic: nn.Module):
        self.config = config.instance_noise

    def __call__(self, images: Tensor, draws: Draws, step: int) -> Tensor:
        if step >= self.config.steps:
            return images
        std = self.config.std * (1 - step / self.config.steps)
        return images + std * draws.normal("noise", images.shape[1:])


# -- terms of a loss --------------------------------------------------------------------------------------------------


class Regulariser:
    """Terms of a net's loss. One of the discriminator's may first change the groups that it scores."""

    def prepare(self, inputs: dict[str, CriticInputs], batch: Batch) -> dict[str, CriticInputs]:
        return inputs

    def terms(self, scored: Scored, step: int) -> Terms:
        raise NotImplementedError


class SquaredGradients(Regulariser):
    """R1 at real and R2 at generated images (Mescheder et al. 2018), every `penalise_every` steps with as much more
    weight (Karras et al. 2020). Gradients are those at the images as the discriminator sees them, so that no
    augmentation is differentiated twice."""

    def __init__(self, config: GANConfig, critic: nn.Module):
        sides = (("r1", "real", config.r1), ("r2", "fake", config.r2))
        self.sides = [(name, group, gamma) for name, group, gamma in sides if gamma]
        self.every = config.penalise_every

    def prepare(self, inputs: dict[str, CriticInputs], batch: Batch) -> dict[str, CriticInputs]:
        if batch.step % self.every:
            return inputs
        watched = {
            group: {**inputs[group], "images": inputs[group]["images"].detach().requires_grad_()}
            for _, group, _ in self.sides
        }
        return {**inputs, **watched}

    def terms(self, scored: Scored, step: int) -> Terms:
        if step % self.every:
            return {}
        groups = [group for _, group, _ in self.sides]
        values = penalties.squared_gradients(
            [scored.scores[group] for group in groups], [scored.inputs[group]["images"] for group in groups]
        )
        weighted = zip(self.sides, values, strict=True)
        return {name: (self.every * gamma / 2, value) for (name, _, gamma), value in weighted}


class GradientPenalty(Regulariser):
    """Gradient norms of 1 on the lines between real and generated rows (Gulrajani et al. 2017)."""

    def __init__(self, config: GANConfig, critic: nn.Module):
        self.weight = config.gradient_penalty

    def prepare(self, inputs: dict[str, CriticInputs], batch: Batch) -> dict[str, CriticInputs]:
        ends = (inputs[group]["images"].detach() for group in ("real", "fake"))
        between = penalties.interpolate(*ends, batch.draws.uniform("interpolate")).requires_grad_()
        return {**inputs, "between": {**inputs["real"], "images": between}}

    def terms(self, scored: Scored, step: int) -> Terms:
        penalty = penalties.gradient_penalty(scored.scores["between"], scored.inputs["between"]["images"])
        return {"gradient_penalty": (self.weight, penalty)}


class LeCam(Regulariser):
    """Scores stay near the other side's running mean, the buffer `score_means` (Tseng et al. 2021)."""

    def __init__(self, config: GANConfig, critic: nn.Module):
        self.weight, self.decay, self.critic = config.lecam, config.lecam_decay, critic
        critic.register_buffer("score_means", torch.zeros(2))  # of reals, of fakes

    def terms(self, scored: Scored, step: int) -> Terms:
        real, fake, means = scored.scores["real"], scored.scores["fake"], self.critic.score_means
        with torch.no_grad():  # this batch first
            means.lerp_(torch.stack([real.mean(), fake.mean()]), 1 - self.decay)
        return {"lecam": (self.weight, penalties.lecam(real, fake, *means.clone()))}


class Orthogonality(Regulariser):
    """Rows of a net's weights stay orthogonal (Brock et al. 2019, section 3.1)."""

    def __init__(self, config: GANConfig, net: nn.Module):
        self.weight, self.net = config.orthogonal, net

    def terms(self, scored: Scored, step: int) -> Terms:
        return {"orthogonal": (self.weight, penalties.orthogonality(weights_of(self.net)))}


class FeatureMatching(Regulariser):
    """Means of the discriminator's features agree on both sides (Salimans et al. 2016, section 3.1)."""

    def __init__(self, config: GANConfig, net: nn.Module):
        self.weight = config.feature_matching

    def terms(self, scored: Scored, step: int) -> Terms:
        fake, real = (scored.features[group].mean(0) for group in ("fake", "real"))
        return {"feature_matching": (self.weight, (fake - real).square().mean())}


def weights_of(net: nn.Module) -> list[Tensor]:
    """The matrices and kernels of a net, embeddings of classes left out (Brock et al. 2019, appendix B)."""
    embeddings = {id(p) for module in net.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return [p for p in net.parameters() if p.ndim > 1 and id(p) not in embeddings]


# -- the choice by a config -------------------------------------------------------------------------------------------

# keys of the config, any of which brings the remedy; in the order in which they act
Table = tuple[tuple[tuple[str, ...], Callable[[GANConfig, nn.Module], Any]], ...]
AUGMENTATIONS: Table = (
    (("diffaugment",), DiffAugment),
    (("ada",), AdaptiveAugmentation),
    (("instance_noise",), InstanceNoise),
)
REGULARISERS: Table = (
    (("r1", "r2"), SquaredGradients),
    (("gradient_penalty",), GradientPenalty),
    (("lecam",), LeCam),
    (("orthogonal",), Orthogonality),
)
GENERATOR_TERMS: Table = (
    (("feature_matching",), FeatureMatching),
    (("orthogonal",), Orthogonality),
)


def chosen(table: Table, config: GANConfig, net: nn.Module) -> list[Any]:
    """The remedies of a table that the config asks for, made for a net."""
    return [make(config, net) for keys, make in table if any(getattr(config, key) for key in keys)]


def row_selection(config: GANConfig) -> Callable[[Tensor, Tensor | None, int], tuple[Tensor, Tensor | None]]:
    """Chooses the rows that the generator learns from, of scores, those of real partners and the step: all, or under
    `topk` the best, whose share falls linearly (Sinha et al. 2020)."""
    topk = config.topk
    if topk is None:
        return lambda scores, partners, step: (scores, partners)
    return lambda scores, partners, step: best(scores, partners, 1 - (1 - topk.share) * min(1.0, step / topk.steps))


def lookahead(config: GANConfig) -> Callable[[nn.Module, dict[str, CriticInputs]], Callable[..., CriticOutput]]:
    """Gives the discriminator that the generator learns from: as it is, or under `unroll` some steps on."""
    unroll, loss = config.unroll, LOSSES[config.loss]
    if unroll is None:
        return lambda critic, inputs: critic
    return lambda critic, inputs: unrolled(critic, inputs["real"], inputs["fake"], loss, unroll)


def weight_clipping(config: GANConfig) -> Callable[[nn.Module], None] | None:
    """Clamps a net's weights to `clip_weights` (Arjovsky et al. 2017), or None."""
    most = config.clip_weights
    if most is None:
        return None

    @torch.no_grad()
    def clip(net: nn.Module) -> None:
        for weight in net.parameters():
            weight.clamp_(-most, most)

    return clip
