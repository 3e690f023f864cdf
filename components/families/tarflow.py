"""TarFlow: autoregressive flows over patches by causal transformers (Zhai et al. 2024). With `noise` 0 it is trained
on uniformly dequantised rows and has a likelihood of stored values; above, on rows with Gaussian noise of that standard
deviation, which one step takes off its samples again, and has none."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from components.conditioning.classes import blended_label, label_between
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo, DataOutline
from components.data.randomness import Draws
from components.errors import SamplerError
from components.families.base import Losses, Phase, Sampler, Tiny, Told
from components.likelihood.contract import Likelihood, bits_per_value
from components.likelihood.dequantise import centred, dequantised, levels, log_bin_volume, on_grid
from components.metrics.held_out import BITS
from components.nets.blocks import class_weights
from components.nets.flows.autoregressive import NextToken, TarFlow
from components.sampling.blends import drawn, slerp
from components.sampling.requests import BLEND, Request
from components.sampling.trajectories import Call, Trajectory, drive
from components.shapes import refuse_unless_planar
from components.training.optimizers import OptimizerConfig


class Config(Strict):
    patch: int = Field(2, ge=1)
    width: int = Field(64, ge=4)
    flows: int = Field(4, ge=1)
    layers: int = Field(2, ge=1)  # of each flow's transformer
    heads: int = Field(4, ge=1)
    noise: float = Field(0.0, ge=0, le=1)  # standard deviation in the place of dequantisation, 0.05 to 0.1 for looks
    label_dropout: float = Field(0.1, ge=0, lt=1)  # share of rows without their class, for guidance
    classes: bool = True  # whether the density is one given the class, where the data have some
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, warmup=50, schedule="cosine")


class Settings(Strict):
    """`guidance_scale`: 1 is none; it acts on scales and shifts, more from token to token (section 2.5). `jacobi`: the
    change below which a flow's parallel iterations stop, a row by itself; None inverts token by token."""

    temperature: float = Field(1.0, ge=0, le=2)
    guidance_scale: float = Field(1.0, ge=0, le=20)
    jacobi: float | None = Field(None, gt=0)


class Model(Sampler):
    Config = Config
    Settings = Settings
    kept = ("tarflow",)

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        refuse_unless_planar(data.shape, config.patch, "tarflow")
        if config.width % (2 * config.heads):
            raise SamplerError(f"tarflow: width: {config.width} is no multiple of twice the {config.heads} heads")
        self.levels = levels(self.medium)
        self.held_out = None if config.noise else BITS
        self.accepts = frozenset({BLEND, "label"} if config.classes and data.classes else {BLEND})
        self.null = len(data.classes)  # the class that stands for none
        num_classes = self.null + 1 if self.conditional else 0
        net = TarFlow(data.shape, config.patch, config.width, config.flows, config.layers, config.heads, num_classes)
        self.nets = nn.ModuleDict({"tarflow": net})
        self.calls = {"denoise": lambda rows, label=None: net.denoised(rows, config.noise, label)}
        for number, flow in enumerate(net.flows):
            self.calls |= {f"flow{number}": NextToken(flow), f"whole{number}": _whole(flow)}
        self.phases = (Phase("likelihood", "tarflow", self.loss, config.optimizer, low_precision=False),)

    @classmethod
    def why_not(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        if settings.guidance_scale != 1 and not (config.classes and config.label_dropout):
            return "guidance_scale: this model was not trained without classes; expected 1"
        return None

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """Bits per dimension of the batch's rows; with noise a density's, up to a constant."""
        rows, label = self._noisy(self.medium.rows(batch.columns), batch.draws), None
        if self.conditional:
            dropped = batch.draws.uniform("label dropout") < self.config.label_dropout
            label = torch.where(dropped, self.null, batch.columns["label"])
        volume = log_bin_volume(rows[0].numel(), self.levels)
        return {"loss": bits_per_value((net(rows, label) + volume).mean(), rows[0].numel())}

    def _noisy(self, rows: Tensor, draws: Draws) -> Tensor:
        if self.config.noise:
            return rows + self.config.noise * draws.normal("noise", tuple(rows.shape[1:]))
        return dequantised(rows, draws, self.levels)

    @property
    def likelihood(self) -> Likelihood | None:
        return None if self.config.noise else Likelihood("exact", "uniform", self._log_probability)

    def _log_probability(self, rows: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        if self.conditional and label is None:
            label = torch.full((len(rows),), self.null, device=rows.device)
        density = self.nets["tarflow"](self._noisy(rows, draws), label if self.conditional else None)
        return density.double() + log_bin_volume(rows[0].numel(), self.levels)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def _trajectory(self, request: Request) -> Trajectory:
        return (yield from self._inverted(self._latents(request), self._label(request), request.settings))

    def _inverted(self, tokens: Tensor, label: Tensor | None, settings: Settings) -> Trajectory:
        """Rows in [-1, 1] of latents (B, T, D)."""
        net, invert = self.nets["tarflow"], self._by_token if settings.jacobi is None else self._by_jacobi
        for number in reversed(range(len(net.flows))):
            tokens = yield from invert(f"{number}", tokens, label, settings)
            tokens = tokens.flip(1) if number else tokens
        rows = net.rows(tokens)
        if self.config.noise:
            rows = yield Call("denoise", {"rows": rows} | ({} if label is None else {"label": label}))
            return rows.clamp(-1, 1)
        return on_grid(rows, self.levels)

    def between(self, starts: Told, ends: Told, share: Tensor) -> Tensor:
        net, labelled = self.nets["tarflow"], self.conditional
        first, last = (
            net.encode(centred(rows, self.levels), told if labelled else None)[0] for rows, told in (starts, ends)
        )
        label = label_between(starts[1], ends[1], share, self.null + 1) if labelled else None
        return drive(self._inverted(slerp(first, last, share), label, self.Settings()), self.calls)

    def _label(self, request: Request) -> Tensor | None:
        if not self.conditional:
            return None
        label, blend = request.conditions.label, request.blend
        label = torch.full_like(request.seeds, self.null) if label is None else label
        return blended_label(label, blend, self.null + 1)

    def _latents(self, request: Request) -> Tensor:
        shape = self.nets["tarflow"].length, self.nets["tarflow"].dim
        return request.settings.temperature * drawn(request, lambda draws: draws.normal("z", shape))

    def _by_token(self, flow: str, latents: Tensor, label: Tensor | None, settings: Settings) -> Trajectory:
        """Undoes a flow token by token: T calls of one token a row."""
        tokens, length = [torch.zeros_like(latents[:, 0])], latents.shape[1]
        for place in range(length):
            guided = _is_guided(label, settings)
            inputs = self._rows(guided, {"previous": tokens[-1]}, label)
            inputs["position"] = torch.full_like(inputs["previous"][:, 0], place, dtype=torch.int64)
            numbers = yield Call(f"flow{flow}", inputs, stateful=True)
            scale = 1 + (settings.guidance_scale - 1) * place / max(1, length - 1)
            log_scale, shift = _guided(numbers, scale, guided).chunk(2, dim=1)
            tokens.append(latents[:, place] * log_scale.exp() + shift)
        return torch.stack(tokens[1:], 1)

    def _by_jacobi(self, flow: str, latents: Tensor, label: Tensor | None, settings: Settings) -> Trajectory:
        """Undoes a flow by guesses of all tokens at once, each from the last guess: a token is right once those before
        it are. A row leaves when it changes by less than the tolerance."""
        guess, length, guided = latents, latents.shape[1], _is_guided(label, settings)
        live = torch.arange(len(latents), device=latents.device)
        ramp = torch.arange(length, device=latents.device) / max(1, length - 1)
        scale = (1 + (settings.guidance_scale - 1) * ramp)[:, None]
        for _ in range(length):
            chosen = None if label is None else label[live]
            inputs = self._rows(guided, {"tokens": guess[live]}, chosen)
            numbers = yield Call(f"whole{flow}", inputs)
            log_scale, shift = _guided(numbers, scale, guided).chunk(2, dim=2)
            better = latents[live] * log_scale.exp() + shift
            change = (better - guess[live]).abs().flatten(1).amax(1)
            guess = guess.index_copy(0, live, better)
            live = live[change >= settings.jacobi]
            if not len(live):
                break
        return guess

    def _rows(self, guided: bool, inputs: dict[str, Tensor], label: Tensor | None) -> dict[str, Tensor]:
        """A call's inputs; with guidance every row twice, the second time without its class."""
        if label is not None:
            inputs = inputs | {"label": label}
        if not guided:
            return inputs
        twice = {name: torch.cat([values, values]) for name, values in inputs.items()}
        nothing = torch.full((len(label),), self.null, device=label.device)
        if label.is_floating_point():
            nothing = class_weights(nothing, self.null + 1)
        return twice | {"label": torch.cat([label, nothing])}


def _is_guided(label: Tensor | None, settings: Settings) -> bool:
    """Of data without classes nothing guides, as in diffusion."""
    return label is not None and settings.guidance_scale != 1


def _guided(numbers: Tensor, scale: Tensor | float, guided: bool) -> Tensor:
    if not guided:
        return numbers
    towards, away = numbers.chunk(2)
    return away + scale * (towards - away)


def _whole(flow):
    def numbers(tokens: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.cat(flow.numbers(tokens, label), dim=2)

    return numbers


TINY = Tiny(
    {"width": 8, "flows": 2, "layers": 1, "heads": 2},
    data=DataInfo(shape=(1, 6, 8), classes=("nought", "one", "two")),
    settings={"guidance_scale": 1.5},
)
