"""Generative adversarial networks: a generator and a discriminator; a sample is one call of the generator. A family
brings its networks and its defaults; the adversarial loss and the remedies are chosen by its config."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from components.conditioning.classes import blended_label
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.errors import DataError
from components.families import family_name
from components.families.base import Family, Losses, Phase, Sampler
from components.gan import remedies
from components.gan.config import GANConfig
from components.gan.losses import LOSSES
from components.gan.validation import FIGURES, validate
from components.metrics.figures import Figures
from components.nets.gan.critic import CriticInputs
from components.nets.gan.layers import spectral_normalise
from components.sampling.blends import slerp
from components.sampling.requests import BLEND, Request
from components.sampling.trajectories import Call, Trajectory


class Settings(Strict):
    """A generator answers in one call; there is nothing to set."""


class GAN(Sampler):
    """Base of the GANs. A family writes `networks`, and overrides a method where it differs."""

    Settings = Settings
    Config = GANConfig
    kept = ("generator",)
    needs_class = True
    judged_figures = FIGURES
    conditional = False  # whether labels steer it
    labels_optional = False  # of a conditional family: whether it can do without classes

    def __init__(self, config: GANConfig, data: DataInfo):
        self.config, self.data = config, data
        self.conditional = type(self).conditional and bool(data.classes)
        if type(self).conditional and not data.classes and not self.labels_optional:
            raise DataError(f"{family_name(type(self))}: expected labelled images, found no classes")
        # convolutions of few channels are up to 1.6 times as fast with channels last
        self.nets = nn.ModuleDict(self.networks()).to(memory_format=torch.channels_last)
        for name in config.spectral_norm:
            spectral_normalise(self.nets[name])
        generator, discriminator = self.nets["generator"], self.nets["discriminator"]
        self.calls = {"generator": generator}
        self.loss = LOSSES[config.loss]
        self.augmentations = remedies.chosen(remedies.AUGMENTATIONS, config, discriminator)
        self.regularisers = remedies.chosen(remedies.REGULARISERS, config, discriminator)
        self.generator_terms = remedies.chosen(remedies.GENERATOR_TERMS, config, generator)
        self.select_rows = remedies.row_selection(config)
        self.lookahead = remedies.lookahead(config)
        self.needs_reals = bool(self.loss.paired or config.feature_matching or config.unroll)  # the generator's loss
        self.phases = self.training_phases()

    @property
    def accepts(self) -> frozenset[str]:
        return frozenset({BLEND, "label"} if self.conditional else {BLEND})

    def networks(self) -> dict[str, nn.Module]:
        """New networks by name: `generator` and `discriminator`, and what else the family trains."""
        raise NotImplementedError

    def training_phases(self) -> tuple[Phase, ...]:
        config = self.config
        return (  # in float32: penalties are derivatives of derivatives, and scores decide by small differences
            Phase(
                "discriminate",
                "discriminator",
                self.discriminator_loss,
                config.discriminator,
                after=remedies.weight_clipping(config),
                low_precision=False,
                one_backward=False,
            ),
            Phase(
                "generate",
                "generator",
                self.generator_loss,
                config.generator,
                every=config.num_critic_steps,
                low_precision=False,
                ahead=self.generate,
                one_backward=False,
            ),
        )

    # -- inputs -------------------------------------------------------------------------------------------------------

    def critic_inputs(self, images: Tensor, labels: Tensor | None) -> CriticInputs:
        """Discriminator inputs: images (B, C, H, W) and their conditioning."""
        return {"images": images, "label": labels} if self.conditional else {"images": images}

    def real_inputs(self, batch: Batch) -> CriticInputs:
        return self.critic_inputs(self.medium.rows(batch.columns), batch.columns.get("label"))

    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """The class that real and generated rows share, where the family is conditional."""
        return {"label": batch.columns["label"]} if self.conditional else {}

    def generator_inputs(self, draws: Draws, name: str, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        """Generator inputs: z (B, latent_dim), standard normal, and the condition."""
        return {"z": draws.normal(name, (self.config.latent_dim,)), **condition}

    def generate(self, net: nn.Module, batch: Batch) -> CriticInputs:
        """The generated rows of a step, the same for all phases, by `net`, the generator."""
        condition = self.condition(batch)
        return {"images": net(**self.generator_inputs(batch.draws, "fakes", condition)), **condition}

    def generated(self, net: nn.Module, batch: Batch) -> CriticInputs:
        """The rows of `generate`, called here or ahead of the phases."""
        return batch.ahead["generate"] if "generate" in batch.ahead else self.generate(net, batch)

    @torch.no_grad()
    def fake_inputs(self, batch: Batch) -> CriticInputs:
        """The generated rows for other nets' losses, without a graph."""
        return detached(self.generated(self.nets["generator"], batch))

    def augmented(self, inputs: CriticInputs, batch: Batch, name: str) -> CriticInputs:
        """Inputs with their images augmented, by draws of the group's name."""
        images, draws = inputs["images"], batch.draws.fold(f"seen {name}")
        for augmentation in self.augmentations:
            images = augmentation(images, draws, batch.step)
        return {**inputs, "images": images}

    # -- losses -------------------------------------------------------------------------------------------------------

    def discriminator_loss(self, net: nn.Module, batch: Batch) -> Losses:
        inputs = {
            "real": self.augmented(self.real_inputs(batch), batch, "real"),
            "fake": self.augmented(self.fake_inputs(batch), batch, "fake"),
        }
        for regulariser in self.regularisers:
            inputs = regulariser.prepare(inputs, batch)
        scored = remedies.score(net, inputs)
        real, fake = scored.scores["real"], scored.scores["fake"]
        adversarial = self.loss.discriminator(real, fake, 1 - self.config.label_smoothing)
        losses = remedies.total(adversarial, self.regularisers, scored, batch.step)
        losses |= {"score_real": real.mean(), "score_fake": fake.mean()}
        for augmentation in self.augmentations:
            losses |= augmentation.update(real, fake)
        return losses

    def generator_loss(self, net: nn.Module, batch: Batch) -> Losses:
        return self.generator_objective(self.generated(net, batch), batch)

    def generator_objective(self, fake: CriticInputs, batch: Batch) -> Losses:
        """The generator's loss for the rows that it made."""
        inputs = {"fake": self.augmented(fake, batch, "generate")}
        if self.needs_reals:
            inputs["real"] = self.augmented(self.real_inputs(batch), batch, "real")
        scored = remedies.score(self.lookahead(self.nets["discriminator"], inputs), inputs)
        partners = scored.scores["real"] if self.loss.paired else None
        adversarial = self.loss.generator(*self.select_rows(scored.scores["fake"], partners, batch.step))
        return remedies.total(adversarial, self.generator_terms, scored, batch.step)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sampling_inputs(self, request: Request) -> dict[str, Tensor]:
        """Generator inputs of a request's rows; a blend's seeds lie along the arc between two draws."""
        found = self.generator_inputs(Draws.of_seeds(request.seeds), "sample", self.requested_condition(request))
        blend = request.blend
        if blend is None or blend.seeds is None:
            return found
        others = self.generator_inputs(Draws.of_seeds(blend.seeds), "sample", {})
        return found | {name: slerp(found[name], other, blend.share) for name, other in others.items()}

    def requested_condition(self, request: Request) -> dict[str, Tensor]:
        label = request.conditions.label
        return {} if label is None else {"label": blended_label(label, request.blend, self.num_classes)}

    def _trajectory(self, request: Request) -> Trajectory:
        return (yield Call("generator", self.sampling_inputs(request)))

    # -- figures ------------------------------------------------------------------------------------------------------

    def image_scores(self, scores: Tensor) -> Tensor:
        """Scores (B,) of the images alone, from a discriminator's scores (B,) or (B, S)."""
        return scores.flatten(1).mean(1) if scores.ndim > 1 else scores

    def validate(
        self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor] | None, judge: Family | None
    ) -> Figures:
        return validate(self, train, held_out, judge)


def detached(inputs: CriticInputs) -> CriticInputs:
    return {name: value.detach() for name, value in inputs.items()}
