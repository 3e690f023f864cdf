"""The GAN family: two players, one generator's call a sample. A variant brings its nets and its defaults; losses and
remedies are chosen by its config and composed here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from components.config import Strict
from components.data.dataset import Batch
from components.data.randomness import Draws
from components.errors import DataError, SamplerError
from components.families.base import DataInfo, Family, Losses, Phase, Sampler, family_name
from components.gan import penalties
from components.gan.augment import adaptive, diffaugment, next_probability
from components.gan.config import GANConfig
from components.gan.losses import LOSSES, best
from components.gan.unroll import unrolled
from components.gan.validation import validate
from components.metrics.figures import Figures
from components.nets.gan.critic import CriticOutput, Sample
from components.nets.gan.layers import doublings, spectral_normalise
from components.sampling.requests import Request
from components.sampling.trajectories import Call, Trajectory
from components.shapes import refuse_unless_square


class Settings(Strict):
    """A generator answers in one call; there is nothing to set."""


class GAN(Sampler):
    """Base of the GAN variants. Subclasses write `players`, and change a method where they differ."""

    Settings = Settings
    Config = GANConfig
    kept = ("generator",)
    conditional = False  # whether labels steer it
    labels_optional = False  # of a conditional variant: whether it can do without classes

    def __init__(self, config: GANConfig, data: DataInfo):
        self.config, self.data = config, data
        if type(self).conditional and not data.classes:
            if not self.labels_optional:
                raise DataError(f"{family_name(type(self))}: expected labelled images, found no classes")
            self.conditional = False
        self.loss = LOSSES[config.loss]
        self.adopt(**self.players())
        self.phases = self.moves()

    @property
    def accepts(self) -> frozenset[str]:
        return frozenset({"label"} if self.conditional else ())

    def players(self) -> dict[str, nn.Module]:
        """The nets by name: generator and discriminator, and what else the variant trains."""
        raise NotImplementedError

    def adopt(self, generator: nn.Module, discriminator: nn.Module, **others: nn.Module) -> None:
        """Registers the nets, with the state of the remedies in the discriminator's buffers: checkpoints carry it."""
        self.nets = nn.ModuleDict({"generator": generator, "discriminator": discriminator, **others})
        # convolutions of few channels are up to 1.6 times as fast with channels last
        self.nets.to(memory_format=torch.channels_last)
        for name in self.config.spectral_norm:
            spectral_normalise(self.nets[name])
        if self.config.ada:
            discriminator.register_buffer("ada_p", torch.zeros(()))
        if self.config.lecam:
            discriminator.register_buffer("score_means", torch.zeros(2))  # of reals, of fakes
        self.calls = {"generator": generator}

    def moves(self) -> tuple[Phase, ...]:
        config, every = self.config, self.config.num_critic_steps
        return (  # in float32: penalties are derivatives of derivatives, and scores decide by small differences
            Phase(
                "discriminate",
                "discriminator",
                self.discriminator_loss,
                config.discriminator,
                after=self.clip,
                low_precision=False,
            ),
            Phase(
                "generate",
                "generator",
                self.generator_loss,
                config.generator,
                every,
                low_precision=False,
                ahead=self.generate,
            ),
        )

    # -- what the players see -----------------------------------------------------------------------------------------

    def real_sample(self, batch: Batch) -> Sample:
        return self.known(self.medium.rows(batch.columns), batch.columns.get("label"))

    def known(self, images: Tensor, labels: Tensor | None) -> Sample:
        """Images with all that the discriminator is told beside them."""
        return {"images": images, "label": labels} if self.conditional else {"images": images}

    def label(self, batch: Batch) -> Sample:
        """The class that real and generated rows share, where the variant is conditional."""
        return {"label": batch.columns["label"]} if self.conditional else {}

    def inputs(self, draws: Draws, name: str, label: Sample) -> dict[str, Tensor]:
        """What the generator makes images of: z (B, latent_dim), standard normal, and the class, if any."""
        return {"z": draws.normal(name, (self.config.latent_dim,)), **label}

    def generate(self, net: nn.Module, batch: Batch) -> Sample:
        """The generated rows of a step, the same for all phases, by `net`, the generator."""
        label = self.label(batch)
        return {"images": net(**self.inputs(batch.draws, "fakes", label)), **label}

    def generated(self, net: nn.Module, batch: Batch) -> Sample:
        """What `generate` makes, or has made ahead."""
        return batch.ahead["generate"] if "generate" in batch.ahead else self.generate(net, batch)

    @torch.no_grad()
    def fake_sample(self, batch: Batch) -> Sample:
        """The generated rows for other nets' losses, without a graph."""
        return detached(self.generated(self.nets["generator"], batch))

    def seen(self, sample: Sample, batch: Batch, name: str) -> Sample:
        """The sample as the discriminator sees it: augmented, and noisy."""
        images, draws = sample["images"], batch.draws.fold(f"seen {name}")
        if self.config.diffaugment:
            images = diffaugment(images, draws, self.config.diffaugment)
        if self.config.ada:
            images = adaptive(images, draws, self.nets["discriminator"].ada_p, self.config.ada.transforms)
        noise = self.config.instance_noise
        if noise and batch.step < noise.steps:
            std = noise.std * (1 - batch.step / noise.steps)
            images = images + std * draws.normal("noise", images.shape[1:])
        return {**sample, "images": images}

    # -- the discriminator's move -------------------------------------------------------------------------------------

    def discriminator_loss(self, net: nn.Module, batch: Batch) -> Losses:
        config = self.config
        real = self.seen(self.real_sample(batch), batch, "real")
        fake = self.seen(self.fake_sample(batch), batch, "fake")
        groups = [real, fake]
        if config.gradient_penalty:
            groups.append(self.between(real, fake, batch))
        sides = [group for group, gamma in zip(groups, (config.r1, config.r2), strict=False) if gamma]
        is_due = sides and batch.step % config.penalise_every == 0
        for group in sides if is_due else ():
            # at the images as they are seen, so that no augmentation is differentiated twice
            group["images"] = group["images"].detach().requires_grad_()
        verdict = net(*groups)
        terms = {"adversarial": self.loss.discriminator(*verdict.scores[:2], 1 - config.label_smoothing)}
        loss = terms["adversarial"]
        if is_due:
            squared = self.penalties(groups, verdict)
            loss = loss + sum(config.penalise_every * gamma / 2 * value for gamma, value in squared.values())
            terms |= {name: value for name, (_, value) in squared.items()}
        if config.gradient_penalty:
            terms["gradient_penalty"] = penalties.gradient_penalty(verdict.scores[2], groups[2]["images"])
            loss = loss + config.gradient_penalty * terms["gradient_penalty"]
        if config.lecam:
            terms["lecam"] = self.lecam(*verdict.scores[:2])
            loss = loss + config.lecam * terms["lecam"]
        if config.orthogonal:
            loss = loss + config.orthogonal * penalties.orthogonality(weights_of(self.nets["discriminator"]))
        figures = self.adapt(*verdict.scores[:2]) if config.ada else {}
        scores = {f"score_{name}": score.mean() for name, score in zip(("real", "fake"), verdict.scores, strict=False)}
        return {"loss": loss, **terms, **scores, **figures}

    def between(self, real: Sample, fake: Sample, batch: Batch) -> Sample:
        """Samples on the lines between real and generated ones, differentiable."""
        share = batch.draws.uniform("interpolate")
        return {**real, "images": penalties.interpolate(real["images"], fake["images"], share).requires_grad_()}

    def penalties(self, groups: list[Sample], verdict: CriticOutput) -> dict[str, tuple[float, Tensor]]:
        """R1 and R2, those that are asked for, each with its gamma."""
        wanted = [
            (name, gamma, place)
            for place, (name, gamma) in enumerate((("r1", self.config.r1), ("r2", self.config.r2)))
            if gamma
        ]
        values = penalties.squared_gradients(
            [verdict.scores[place] for _, _, place in wanted], [groups[place]["images"] for _, _, place in wanted]
        )
        return {name: (gamma, value) for (name, gamma, _), value in zip(wanted, values, strict=True)}

    def lecam(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty, about running means that take in this batch first."""
        means = self.nets["discriminator"].score_means
        with torch.no_grad():
            means.lerp_(torch.stack([real.mean(), fake.mean()]), 1 - self.config.lecam_decay)
        return penalties.lecam(real, fake, *means.clone())

    @torch.no_grad()
    def adapt(self, real: Tensor, fake: Tensor) -> Losses:
        """Moves the probability of augmentation, and tells it."""
        p, ada = self.nets["discriminator"].ada_p, self.config.ada
        p.copy_(next_probability(p, self.loss.verdict(real, fake), ada.target, ada.ramp_steps))
        return {"ada_p": p.clone()}

    @torch.no_grad()
    def clip(self, net: nn.Module) -> None:
        if self.config.clip_weights:
            for weight in net.parameters():
                weight.clamp_(-self.config.clip_weights, self.config.clip_weights)

    # -- the generator's move -----------------------------------------------------------------------------------------

    def generator_loss(self, net: nn.Module, batch: Batch) -> Losses:
        return self.generator_terms(self.generated(net, batch), batch, self.nets["generator"])

    def generator_terms(self, fake: Sample, batch: Batch, moving: nn.Module) -> Losses:
        """The loss of whoever made `fake`, whose weights `orthogonal` holds."""
        config, critic = self.config, self.nets["discriminator"]
        fake = self.seen(fake, batch, "generate")
        real = self.seen(self.real_sample(batch), batch, "real") if self.needs_reals else None
        if config.unroll:
            critic = unrolled(critic, real, fake, self.loss, config.unroll)
        verdict = critic(fake) if real is None else critic(fake, real)
        partners = verdict.scores[1] if self.loss.paired else None
        scores = verdict.scores[0]
        if config.topk:
            share = 1 - (1 - config.topk.share) * min(1.0, batch.step / config.topk.steps)
            scores, partners = best(scores, partners, share)
        terms = {"adversarial": self.loss.generator(scores, partners)}
        loss = terms["adversarial"]
        if config.feature_matching:
            fake_mean, real_mean = (features.mean(0) for features in verdict.features)
            terms["feature_matching"] = (fake_mean - real_mean).square().mean()
            loss = loss + config.feature_matching * terms["feature_matching"]
        if config.orthogonal:
            loss = loss + config.orthogonal * penalties.orthogonality(weights_of(moving))
        return {"loss": loss, **terms}

    @property
    def needs_reals(self) -> bool:
        """Whether the generator's loss looks at real images too."""
        return bool(self.loss.paired or self.config.feature_matching or self.config.unroll)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def _trajectory(self, request: Request) -> Trajectory:
        label = {} if request.conditions.label is None else {"label": request.conditions.label}
        return (yield Call("generator", self.inputs(Draws.of_seeds(request.seeds), "sample", label)))

    def of_images(self, scores: Tensor) -> Tensor:
        """(B,) how real the images are taken to be, of a discriminator's scores."""
        return scores.flatten(1).mean(1) if scores.ndim > 1 else scores

    def validate(
        self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor] | None, judge: Family | None
    ) -> Figures:
        return validate(self, train, held_out, judge)


def detached(sample: Sample) -> Sample:
    return {name: value.detach() for name, value in sample.items()}


def weights_of(net: nn.Module) -> list[Tensor]:
    """The matrices and kernels of a net, embeddings of classes left out (Brock et al. 2019, appendix B)."""
    embeddings = {id(p) for module in net.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return [p for p in net.parameters() if p.ndim > 1 and id(p) not in embeddings]


def refuse_unless_doubled(family: GAN) -> None:
    """Raises SamplerError unless images are square with a side of 8, 16, 32, ..."""
    name = family_name(type(family))
    refuse_unless_square(family.data.shape, name)
    try:
        doublings(family.data.shape[1])
    except ValueError as error:
        raise SamplerError(f"{name}: {error}") from None


def critic_options(family: GAN) -> dict:
    """The arguments of a `Critic` that remedies decide."""
    config = family.config
    return {"minibatch_std": config.minibatch_std, "minibatch_discrimination": config.minibatch_discrimination}
