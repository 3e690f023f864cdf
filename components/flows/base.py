"""Normalizing flows as samplers: trained by exact likelihood of dequantised rows, sampled by the inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from components.conditioning.classes import blended_label, label_between
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families import family_name
from components.families.base import Losses, Phase, Sampler, Told
from components.likelihood.contract import Likelihood, bits_per_value
from components.likelihood.dequantise import centred, dequantised, levels, log_bin_volume, on_grid
from components.metrics.held_out import BITS
from components.nets.flows.multiscale import MultiscaleFlow
from components.sampling.blends import drawn, slerp
from components.sampling.requests import BLEND, Request
from components.sampling.trajectories import Call, Trajectory
from components.shapes import refuse_unless_planar
from components.training.optimizers import OptimizerConfig


class Config(Strict):
    """Of a multi-scale flow."""

    scales: int = Field(2, ge=1)  # each halves height and width
    width: int = Field(64, ge=1)  # hidden channels of a coupling's net
    classes: bool = True  # whether the density is one given the class, where the data have some
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.999), warmup=50, schedule="cosine")


class Settings(Strict):
    temperature: float = Field(1.0, ge=0, le=2)  # of the latents' standard deviation


class Flow(Sampler):
    """Base of the flows. A family writes `build`."""

    Config = Config
    Settings = Settings
    kept = ("flow",)
    needs_class = True
    held_out = BITS

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        refuse_unless_planar(data.shape, 2**config.scales, family_name(type(self)))
        self.levels = levels(self.medium)
        self.accepts = frozenset({BLEND, "label"} if config.classes and data.classes else {BLEND})
        net = self.build(len(data.classes) if self.conditional else 0)
        self.nets = nn.ModuleDict({"flow": net})
        self.calls = {"flow": net.sample}
        # in float32: a log-determinant is a sum of many small terms
        self.phases = (Phase("likelihood", "flow", self.loss, config.optimizer, low_precision=False),)

    def build(self, num_classes: int) -> MultiscaleFlow:
        """The net with initial weights."""
        raise NotImplementedError

    def begin(self, first: Callable[[], Batch]) -> None:
        batch = first()
        self.nets["flow"].begin(self._continuous(batch), self._label(batch))

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """Bits per dimension of the batch's rows."""
        rows = self._continuous(batch)
        density = net(rows, self._label(batch))
        probability = density + log_bin_volume(rows[0].numel(), self.levels)
        return {"loss": bits_per_value(probability.mean(), rows[0].numel())}

    def _continuous(self, batch: Batch) -> Tensor:
        return dequantised(self.medium.rows(batch.columns), batch.draws, self.levels)

    def _label(self, batch: Batch) -> Tensor | None:
        return batch.columns["label"] if self.conditional else None

    @property
    def likelihood(self) -> Likelihood:
        return Likelihood("exact", "uniform", self._log_probability)

    def _log_probability(self, rows: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        density = self.nets["flow"](dequantised(rows, draws, self.levels), label if self.conditional else None)
        return density.double() + log_bin_volume(rows[0].numel(), self.levels)

    def _trajectory(self, request: Request) -> Trajectory:
        inputs: dict[str, Any] = self._latents(request)
        if self.conditional:
            inputs["label"] = blended_label(request.conditions.label, request.blend, self.num_classes)
        values = yield Call("flow", inputs)
        return on_grid(values, self.levels)

    def between(self, starts: Told, ends: Told, share: Tensor) -> Tensor:
        net, labelled = self.nets["flow"], self.conditional
        found = [net.encode(centred(rows, self.levels), told if labelled else None)[0] for rows, told in (starts, ends)]
        ways = {f"z{number}": slerp(*pair, share) for number, pair in enumerate(zip(*found, strict=True))}
        label = label_between(starts[1], ends[1], share, self.num_classes) if labelled else None
        return on_grid(net.sample(label, **ways), self.levels)

    def _latents(self, request: Request) -> dict[str, Tensor]:
        """Standard Gaussian latents of each scale at the temperature, on the way to the blend's."""
        shapes = {f"z{number}": shape for number, shape in enumerate(self.nets["flow"].latent_shapes)}
        return {
            name: request.settings.temperature
            * drawn(request, lambda draws, name=name, shape=shape: draws.normal(name, shape))
            for name, shape in shapes.items()
        }
