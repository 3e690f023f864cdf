"""The one training loop: every phase of a family in turn, then the averages of weights; reports and saves on the way.

It receives functions, not clients: `wrap` may put a net and its optimizer behind data parallelism, `report` and `save`
may talk to a cluster. A run is a function of (family's initial weights, batches, config): what `save` receives and
`start` restores is everything that a step depends on, so an interrupted run continues bit by bit.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.config import Strict
from components.cuda_graphs import Trained
from components.data.dataset import Batch
from components.families.base import Family, Phase
from components.training import ema, optimizers, sharding
from components.training.metric_averages import MetricAverages
from components.training.precision import Precision, autocast, chosen, fastest
from components.training.resuming import fits, refuse_unfit_average

Wrap = Callable[[nn.Module, torch.optim.Optimizer], tuple[nn.Module, torch.optim.Optimizer]]


class TrainingConfig(Strict):
    """How long and how to train; everything is counted in steps, `batch_size` in rows over all workers. No steps at
    all hold the weights of the run to start from as they are, and need no other key.

    `precision: auto` computes in bfloat16 where the device of the run's start multiplies matrices faster so and the
    phase bears it, else in float32; a run keeps to it wherever it goes on.
    """

    steps: int = Field(ge=0)
    batch_size: int = Field(gt=0)
    clip_norm: float | None = Field(None, gt=0)  # of each phase's whole gradient
    accumulate: int = Field(1, ge=1)  # parts that a worker's batch is computed in, for less memory
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the networks; weights stay float32
    deterministic: bool = True  # algorithms that repeat their bits; on a GPU others may be faster
    compile: bool = False  # by torch.compile: minutes at the start, less a step
    cuda_graphs: bool = False  # passes are recorded once and replayed, on one GPU; for small nets, bound by launches
    recompute: bool = False  # activations in the backward pass, for less memory (Chen et al. 2016)
    ema_sigma_rel: float = Field(0.05, gt=0, lt=0.28)  # width of the weight average, as a share of the run so far
    ema_snapshots: int = Field(0, ge=0)  # how often two more averages are kept, to build any width afterwards
    report_every: int = Field(50, gt=0)
    save_every: int = Field(500, gt=0)
    keep: Literal["last", "best"] = "last"  # best: the averages of the checkpoint best by `keep_by`, besides the last
    keep_by: str = "held_out_loss"  # any figure of checkpoint validation
    on_nonfinite: Literal["stop", "skip"] = "stop"  # an update that is not finite: stop the run, or leave it out

    @model_validator(mode="before")
    @classmethod
    def _needs_no_batches(cls, block: Any) -> Any:
        return {"batch_size": 1, **block} if isinstance(block, dict) and block.get("steps") == 0 else block

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        if self.steps == 0 and (self.ema_snapshots or self.keep == "best"):
            raise ValueError("steps: 0 trains nothing; expected neither ema_snapshots nor keep: best beside it")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate: expected at most a part a row, {self.batch_size}, found {self.accumulate}")
        parted = {"compile": self.compile, "recompute": self.recompute, "accumulate": self.accumulate > 1}
        for name, is_on in parted.items():
            if self.cuda_graphs and is_on:
                raise ValueError(f"cuda_graphs: replays passes as they are, whole; expected no {name} beside it")
        return self

    def takes_snapshot(self, step: int) -> bool:
        """Whether averages are kept after `step` steps: `ema_snapshots` times in equal parts, the last at the end."""
        parts = self.ema_snapshots
        return parts > 0 and step * parts // self.steps > (step - 1) * parts // self.steps


@dataclass
class State:
    """Everything that the next step depends on. `history` holds one mapping per report; `traces` the averages that
    snapshots are taken of, by width; `snapshots` what ema.reconstruct wants; `precision` what `auto` is in this run,
    none in states of older versions."""

    step: int
    nets: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict]
    average: ema.Average
    history: list[dict[str, float]] = field(default_factory=list)
    traces: dict[float, ema.Average] = field(default_factory=dict)
    snapshots: list[dict] = field(default_factory=list)
    precision: Precision | None = None


@dataclass
class ActivePhase:
    """A phase ready to step: its net, the same behind its wrapper, its optimizer, and what its networks compute in."""

    phase: Phase
    raw: nn.Module
    net: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision = "float32"

    def autocast(self, batch: Batch) -> torch.autocast:
        return autocast(batch.draws.keys.device.type, self.precision)


def fit(
    family: Family,
    batches: Iterator[Batch],
    config: TrainingConfig,
    *,
    start: State | None,
    wrap: Wrap,
    report: Callable[[int, dict[str, float]], dict[str, float]],
    save: Callable[[State], None],
    leave: Callable[[int], bool] = lambda step: False,
    automatic: Precision | None = None,
) -> State:
    """Trains until `config.steps` and returns the final state. `batches` begins at the step of `start`.

    `report(step, figures)` gets means since the last report, each figure named `phase/term`, and returns what all
    workers agree on. `save(state)` is called every `save_every` steps and at the end, after a report; the state is
    live, so it must be copied or written before returning. `leave(step)` is asked before each step: if it says so,
    the run saves where it is and returns, to be continued from there; all workers must answer alike. `automatic`: what
    `precision: auto` is in a run that begins, by default what this device is fastest in; workers must agree on it.
    """
    averaged = {name: family.nets[name] for name in family.kept if name not in (*family.pretrained, *family.early)}
    if start is not None:
        restore_nets(family, start)
        for average in (start.average, *start.traces.values()):
            refuse_unfit_average(start.step, average, averaged)
    active = [_activated(family, phase, wrap, config) for phase in family.phases]
    state = _begin(start, averaged, config)
    state.precision = state.precision or automatic or fastest(next(family.nets.parameters()).device.type)
    for one in active:
        one.precision = chosen(config.precision, state.precision, one.phase.low_precision)
        if start is not None and one.phase.name in start.optimizers:
            with fits(start.step, f"the optimizer of {one.phase.name}"):
                one.optimizer.load_state_dict(start.optimizers[one.phase.name])
            sharding.place_optimizer_state(one.optimizer)

    means = MetricAverages()
    family.nets.train()
    leaving = False
    while state.step < config.steps and not leaving:
        due = [one for one in active if (state.step + 1) % one.phase.every == 0]
        # what forwards move beside weights, codes and running statistics, for who is left out
        kept = due if config.on_nonfinite == "skip" else []
        before = {one.phase.name: [buffer.clone() for buffer in one.raw.buffers()] for one in kept}
        batch = _made_ahead(family, due, next(batches), config)
        for one in due:
            figures = step_phase(family, one, batch, state.step, config, before.get(one.phase.name, ()))
            means.add(one.phase.name, figures, state.step)
        _average(state, averaged, config)
        state.step += 1
        leaving = state.step < config.steps and leave(state.step)
        save_now = state.step % config.save_every == 0 or state.step == config.steps
        # a report comes before every save: it refuses what is not finite, and leaves no half-counted mean behind
        if save_now or state.step % config.report_every == 0:
            state.history.append({"step": state.step, **report(state.step, means.take())})
            family.nets.train()  # whoever was told may have sampled
        elif leaving:
            means.take()  # refused if not finite; the next report counts the steps after this save
        if save_now or leaving:
            save(snapshot(family, active, state))
            family.nets.train()
    return snapshot(family, active, state)


def _made_ahead(family: Family, due: list[ActivePhase], batch: Batch, config: TrainingConfig) -> Batch:
    """The batch with what phases make ahead; without it where it is computed in parts, to hold no part's graph."""
    if config.accumulate > 1 or not any(one.phase.ahead for one in due):
        return batch
    found = {}
    for one in due:
        if one.phase.ahead is not None:
            _freeze_all_but(family, one.raw)
            with one.autocast(batch):
                found[one.phase.name] = one.phase.ahead(one.net, batch)
    return replace(batch, ahead=found)


def step_phase(
    family: Family, one: ActivePhase, batch: Batch, step: int, config: TrainingConfig, before: Sequence[Tensor] = ()
) -> dict[str, Tensor]:
    """One phase's move on one batch; returns its figures, detached. `before`: values of its net's buffers, which these
    go back to if it is left out."""
    if len(family.phases) > 1:
        _freeze_all_but(family, one.raw)
    rate = _set_learning_rate(one, step, config.steps)
    one.optimizer.zero_grad(set_to_none=True)
    figures = _backward(one, batch, config.accumulate) | {"learning_rate": torch.tensor(rate)}
    norm = figures["grad_norm"] = _clipped(one.raw, config.clip_norm)
    if config.on_nonfinite == "skip":
        # workers share gradients already, so all see the same norm and decide alike
        if not math.isfinite(norm):
            with torch.no_grad():
                for buffer, value in zip(one.raw.buffers(), before, strict=False):
                    buffer.copy_(value)
            return {"skipped": torch.ones_like(norm)}
        figures["skipped"] = torch.zeros_like(norm)
    one.optimizer.step()
    if one.phase.after is not None:
        one.phase.after(one.raw)
    return figures


def _backward(one: ActivePhase, batch: Batch, num_parts: int) -> dict[str, Tensor]:
    """Gradients of the whole batch, part by part; returns the means of the figures over its rows."""
    total: dict[str, Tensor] = {}
    parts = batch.split(num_parts)
    for number, (part, share) in enumerate(parts, 1):
        # workers share gradients once, with the last part
        silent = getattr(one.net, "no_sync", contextlib.nullcontext) if number < len(parts) else contextlib.nullcontext
        with silent():
            with one.autocast(batch):
                losses = one.phase.loss(one.net, part)
            (losses["loss"] * (batch.weight * share)).backward()
        for name, value in losses.items():
            total[name] = total.get(name, 0) + share * value.detach()
    return total


def _clipped(net: nn.Module, most: float | None) -> Tensor:
    """The norm of the whole gradient, which is brought down to `most` where that is given."""
    if most is None:
        return sharding.gathered(nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None]))
    return sharding.gathered(nn.utils.clip_grad_norm_(net.parameters(), most))


def _begin(start: State | None, averaged: dict[str, nn.Module], config: TrainingConfig) -> State:
    """The state to go on from, its averages spread as the nets are."""
    widths = ema.TRACES if config.ema_snapshots else ()
    if start is None:
        return State(0, {}, {}, ema.copy_of(averaged), traces={width: ema.copy_of(averaged) for width in widths})

    def placed(average: ema.Average) -> ema.Average:
        return {name: sharding.placed_like(average[name], net.state_dict()) for name, net in averaged.items()}

    traces = {width: placed(start.traces[width]) for width in widths}
    kept = {"history": list(start.history), "snapshots": list(start.snapshots), "precision": start.precision}
    return State(start.step, {}, {}, placed(start.average), traces=traces, **kept)


def _average(state: State, averaged: dict[str, nn.Module], config: TrainingConfig) -> None:
    """Moves the averages by the step just made, and keeps snapshots where they are due."""
    for width, average in [(config.ema_sigma_rel, state.average), *state.traces.items()]:
        ema.update(average, averaged, ema.decay(ema.power_gamma(width), state.step))
    if config.takes_snapshot(state.step + 1):
        for width, average in state.traces.items():
            kept = {name: ema.copy_of_state(sharding.gathered(weights)) for name, weights in average.items()}
            state.snapshots.append({"step": state.step + 1, "sigma_rel": width, "nets": kept})


def _activated(family: Family, phase: Phase, wrap: Wrap, config: TrainingConfig) -> ActivePhase:
    raw = family.nets[phase.net]
    _freeze_all_but(family, raw)
    if config.recompute:
        _recompute_activations(raw)
    net, optimizer = wrap(raw, optimizers.build(phase.optimizer, raw))
    if config.compile:
        net = torch.compile(net)
    # behind data parallelism passes are as ever: workers exchange gradients in them
    elif config.cuda_graphs and phase.one_backward and net is raw and next(raw.parameters()).is_cuda:
        net = Trained(raw, phase.name)
    return ActivePhase(phase, raw, net, optimizer)


def _recompute_activations(net: nn.Module) -> None:
    """Blocks that say so keep only their input for the backward pass, and compute the rest again."""
    for module in net.modules():
        if getattr(module, "recomputable", False) and "forward" not in vars(module):
            module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)


def _freeze_all_but(family: Family, moving: nn.Module) -> None:
    for net in family.nets.values():
        for parameter in net.parameters():
            if parameter.requires_grad != (net is moving):  # to set is slower than to look
                parameter.requires_grad_(net is moving)
        for module in net.modules():
            # running statistics move with the weights, not with other phases
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = net is moving


def _set_learning_rate(one: ActivePhase, step: int, num_steps: int) -> float:
    rate = optimizers.learning_rate(one.phase.optimizer, step, num_steps)
    for group in one.optimizer.param_groups:
        group["lr"] = rate
    return rate


def snapshot(family: Family, active: list[ActivePhase], state: State) -> State:
    """The state with the live weights and optimizers in it, whole tensors throughout; only nets that are trained."""
    return State(
        step=state.step,
        nets={
            name: sharding.gathered(net.state_dict())
            for name, net in family.nets.items()
            if name not in (*family.pretrained, *family.early)
        },
        optimizers={one.phase.name: sharding.gathered(one.optimizer.state_dict()) for one in active},
        average=sharding.gathered(state.average),
        history=state.history,
        traces=sharding.gathered(state.traces),
        snapshots=state.snapshots,
        precision=state.precision,
    )


def restore_nets(family: Family, state: State) -> None:
    """Loads a state's live weights into the family. Raises TrainingError of those of other networks."""
    for name, weights in state.nets.items():
        with fits(state.step, name):
            family.nets[name].load_state_dict(weights)
