"""BigBiGAN: BigGAN with an encoder; the discriminator scores images, codes and their pairs (Donahue and Simonyan
2019). Without classes: what its features know of them is measured."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import model_validator
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.info import DataInfo
from components.families.base import Family, Losses, Phase, Tiny, Told
from components.gan import big
from components.gan.base import GAN, detached
from components.gan.networks import attention_side, doubled_side, residual_generator
from components.gan.standing_statistics import WHOLE
from components.metrics.figures import Definition, Figures, named
from components.metrics.probe import PROBE_ACCURACY, probe_accuracy
from components.nets.gan.critic import CriticInputs
from components.nets.gan.joint import Encoder, JointCritic
from components.sampling.blends import lerp
from components.sampling.requests import Request
from components.training.optimizers import OptimizerConfig

RECONSTRUCTION = Definition(
    name="reconstruction",
    label="reconstruction error",
    explanation="the mean square of held-out images' pixels less those that encoder and generator make of them",
    kind="distance",
    better="lower",
)


class Config(big.BigConfig):
    encoder: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=2e-4, betas=(0.0, 0.999))

    @model_validator(mode="after")
    def _judges_rows_alone(self) -> Config:
        for name in ("minibatch_std", "minibatch_discrimination"):
            if getattr(self, name):
                raise ValueError(f"{name}: BigBiGAN's critic of pairs compares no rows; expected it unset")
        return self


class Model(GAN):
    Config = Config
    Settings = big.BigSettings
    kept = ("generator", "encoder")
    judged_figures = (*GAN.judged_figures, RECONSTRUCTION, PROBE_ACCURACY)

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.calls = {"generator": big.standing_statistics(self)}

    def networks(self) -> dict[str, nn.Module]:
        config = self.config
        sizes = (*doubled_side(self), config.width, config.latent_dim, attention_side(self))
        return {
            "generator": residual_generator(self, **big.generator_options(config)),
            "discriminator": JointCritic(*sizes),
            "encoder": Encoder(*sizes),
        }

    def training_phases(self) -> tuple[Phase, ...]:
        return (
            *super().training_phases(),
            Phase(
                "encode",
                "encoder",
                self.encoder_loss,
                self.config.encoder,
                every=self.config.num_critic_steps,
                low_precision=False,
                ahead=self.encode,
                one_backward=False,
            ),
        )

    def critic_inputs(self, images: Tensor, labels: Tensor | None) -> CriticInputs:
        return {"images": images, "codes": self.nets["encoder"](images)}

    def generate(self, net: nn.Module, batch: Batch) -> CriticInputs:
        z = self.generator_inputs(batch.draws, "fakes", {})["z"]
        return {"images": net(z), "codes": z}

    def encode(self, net: nn.Module, batch: Batch) -> CriticInputs:
        """The real rows of a step with their codes by `net`, the encoder."""
        images = self.medium.rows(batch.columns)
        return {"images": images, "codes": net(images)}

    def encoded(self, net: nn.Module, batch: Batch) -> CriticInputs:
        """The rows of `encode`, called here or ahead of the phases."""
        return batch.ahead["encode"] if "encode" in batch.ahead else self.encode(net, batch)

    @torch.no_grad()
    def real_inputs(self, batch: Batch) -> CriticInputs:
        return detached(self.encoded(self.nets["encoder"], batch))

    def encoder_loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The generator's loss with the sides exchanged: real images with their codes are to pass for generated."""
        real = self.augmented(self.encoded(net, batch), batch, "real")
        if not self.loss.paired:
            return {"loss": self.loss.generator(-self.nets["discriminator"](real).scores[0], None)}
        fake = self.augmented(self.fake_inputs(batch), batch, "fake")
        score_real, score_fake = self.nets["discriminator"](real, fake).scores
        return {"loss": self.loss.generator(-score_real, -score_fake)}

    def sampling_inputs(self, request: Request) -> dict[str, Tensor]:
        return big.truncated_inputs(self, request)

    def image_scores(self, scores: Tensor) -> Tensor:
        return scores[:, 0]  # the other two score codes, which are the encoder's on both sides

    @torch.inference_mode()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) through encoder and generator, in [-1, 1]."""
        self.nets.eval()
        return self._decoded(self.nets["encoder"](images))

    def between(self, starts: Told, ends: Told, share: Tensor) -> Tensor:
        codes = lerp(*(self.nets["encoder"](rows) for rows, _ in (starts, ends)), share)
        return self._decoded(codes)

    def _decoded(self, codes: Tensor) -> Tensor:
        return self.calls["generator"](codes, torch.full((len(codes),), WHOLE, device=codes.device))

    def validate(
        self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor] | None, judge: Family | None
    ) -> Figures:
        figures = super().validate(train, held_out, judge)
        if held_out is None:
            return figures
        with torch.inference_mode():
            device, encoder = next(self.nets.parameters()).device, self.nets["encoder"]
            images, others = (self.medium.rows(columns).to(device) for columns in (train, held_out))
            features, other_features = encoder.features(images), encoder.features(others)
            figures |= named(RECONSTRUCTION.figure((self.reconstruct(others) - others).square().mean()))
        if "label" in train:
            labels, other_labels = (columns["label"].to(device) for columns in (train, held_out))
            accuracy = probe_accuracy(features.clone(), labels, other_features.clone(), other_labels)
            figures |= named(PROBE_ACCURACY.figure(accuracy))
        return figures


TINY = Tiny({"latent_dim": 7, "width": 4})
