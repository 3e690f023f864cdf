"""What a diffusion model is and how it samples: the blocks of params.yaml that `latent_diffusion` takes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Strict
from components.diffusion.alignment import AlignConfig
from components.diffusion.backbones import Backbone, UNet
from components.diffusion.schedules import ScheduleConfig
from components.diffusion.solvers import SOLVERS
from components.training.optimizers import OptimizerConfig

MOVED = ("widths", "attention", "layers", "heads", "context_dim")  # keys that stood beside `backbone` once


class Times(Strict):
    """How training times are drawn. `logit_normal` is sigmoid(mean + std * normal) (Esser et al. 2024, section 3.1)."""

    density: Literal["uniform", "logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = Field(1.0, gt=0)

    def quantiles(self, shares: Tensor) -> Tensor:
        """The times below which these shares, in (0, 1), of all training times lie."""
        if self.density == "uniform":
            return shares
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(shares))


class Weighting(Strict):
    """How much each noise level counts: `uniform` is the objective's published loss, `min_snr` Hang et al. 2023,
    `learned` balances all levels by their expected error (Karras et al. 2024)."""

    name: Literal["uniform", "min_snr", "learned"] = "uniform"
    gamma: float = Field(5.0, gt=0)  # min_snr: the most that a level counts for the clean image


class Text(Strict):
    """The text conditioner. `own`: a transformer over the text's bytes, trained along, which the other keys describe.
    `pretrained`: the encoder that encode.text names, frozen."""

    encoder: Literal["own", "pretrained"] = "own"
    length: int = Field(64, ge=1)  # bytes; longer captions are cut, longer prompts refused
    width: int = Field(128, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Text:
        if self.width % self.heads:
            raise ValueError(f"width must be divisible by heads ({self.heads})")
        return self


class Guide(Strict):
    """An average of the net's weights from early in the run, kept for autoguidance (Karras et al. 2024a)."""

    at: float = Field(0.125, gt=0, le=1)  # share of the run; the first snapshot from there on is taken
    sigma_rel: float = Field(0.1, gt=0, lt=0.28)  # the average's width, as a share of the run so far


class DenoiserConfig(Strict):
    """What the net is, and what it predicts of what: of every model that denoises."""

    conditioning: Literal["none", "class", "text"] = "class"
    backbone: Backbone = UNet()
    text: Text = Text()
    objective: Literal["epsilon", "x0", "v", "flow", "edm"] = "flow"
    schedule: ScheduleConfig = ScheduleConfig()
    flips: bool = False  # train on mirrored images too; latents need encode.flips
    crops: bool = False  # train on crops that are drawn each time, of every size that the data set has them in
    label_dropout: float = Field(0.1, ge=0, le=1)  # share of rows trained without their class or text, for guidance

    @property
    def tells_uncertainty(self) -> bool:
        """Whether the net tells the error that it expects."""
        return False

    @property
    def alignment(self) -> AlignConfig | None:
        """How the net's tokens learn from another run's features, if they do."""
        return None

    @property
    def numbers(self) -> tuple[str, ...]:
        """What the net is told beside the noise level, by input."""
        return ()

    @model_validator(mode="before")
    @classmethod
    def _in_backbone(cls, block: Any) -> Any:
        if misplaced := [name for name in block if name in MOVED]:
            raise ValueError(f"{', '.join(misplaced)}: expected in the block backbone: {{name: unet, widths: [...]}}")
        return block

    @model_validator(mode="after")
    def _is_coherent(self) -> DenoiserConfig:
        if self.conditioning == "text" and not self.backbone.attends:
            raise ValueError("backbone.attention: a text is attended to; expected true at one resolution at least")
        if self.objective == "epsilon" and self.schedule.zero_terminal_snr:
            # Lin et al. 2024, section 3.2
            raise ValueError("objective: the noise in pure noise says nothing; with zero_terminal_snr expected v")
        return self


class Config(DenoiserConfig):
    times: Times = Times()
    weighting: Weighting = Weighting()
    guide: Guide | None = None
    align: AlignConfig | None = None  # of a transformer's tokens to a judge's features
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup=50)

    @property
    def tells_uncertainty(self) -> bool:
        return self.weighting.name == "learned"

    @property
    def alignment(self) -> AlignConfig | None:
        return self.align

    @model_validator(mode="after")
    def _has_the_layer(self) -> Config:
        if self.align is None:
            return self
        layer, blocks, route = self.align.layer, self.backbone.blocks, getattr(self.backbone, "route", None)
        if layer > blocks:
            raise ValueError(
                f"align.layer: expected at most as many blocks as the backbone has ({blocks}), found {layer}"
                if blocks
                else f"align: the resolutions of a {self.backbone.name} differ; expected backbone dit or mmdit"
            )
        if route is not None and route.blocks[0] < layer < route.blocks[1]:
            raise ValueError(
                f"align.layer: tokens bypass blocks {route.blocks[0]} to {route.blocks[1]} (backbone.route); expected "
                f"at most {route.blocks[0]}, or {route.blocks[1]} and more, found {layer}"
            )
        return self


def refuse_bad_interval(interval: tuple[float, float] | None, key: str = "guidance_interval") -> None:
    """Raises ValueError unless noise levels of guidance rise from 0 or more; None is all levels."""
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(f"{key}: expected 0 <= first < second, found {list(interval)}")


class Settings(Strict):
    """How to sample. `spacing`: `schedule` visits equally spaced times, `karras` the levels of Karras et al. 2022.
    `guidance`: away from no class or text (or negative ones), or from the model's own early snapshot. `reuse`: the
    net's deep features are computed at every so manyth evaluation and stand for those between
    (components/diffusion/reuse.py); 1: at each."""

    solver: Literal[tuple(SOLVERS)] = "ddim"
    num_inference_steps: int = Field(20, ge=1, le=1000)
    guidance_scale: float = Field(2.0, ge=0, le=50)
    spacing: Literal["schedule", "karras"] = "schedule"
    guidance: Literal["classifier_free", "autoguidance"] = "classifier_free"
    guidance_interval: tuple[float, float] | None = None  # noise levels sigma: above the first, up to the second
    guidance_rescale: float = Field(0.0, ge=0, le=1)  # share of the result; Lin et al. 2024 use 0.7
    dynamic_threshold: float | None = Field(None, gt=0, le=1)  # of images themselves: a quantile, 0.995 as published
    reuse: int = Field(1, ge=1, le=16)  # evaluations that share the net's deep features

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        refuse_bad_interval(self.guidance_interval)
        return self
