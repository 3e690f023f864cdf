"""The one training loop: every phase of a family in turn, then the average of weights; reports and saves on the way.

It receives functions, not clients: `wrap` may put a net and its optimizer behind data parallelism, `report` and `save`
may talk to a cluster. A run is a function of (family's initial weights, batches, config): what `save` receives and
`start` restores is everything that a step depends on, so an interrupted run continues bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from components import ema, optimizers
from components.config import Strict
from components.data import Batch
from components.errors import TrainingError
from components.families.base import Family, Phase

Wrap = Callable[[nn.Module, torch.optim.Optimizer], tuple[nn.Module, torch.optim.Optimizer]]


class TrainingConfig(Strict):
    """How long and how to train; everything is counted in steps, `batch_size` in rows over all workers."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    clip_norm: float | None = Field(None, gt=0)  # of each phase's whole gradient
    ema_sigma_rel: float = Field(0.05, gt=0, lt=0.28)  # width of the weight average, as a share of the run so far
    report_every: int = Field(50, gt=0)
    save_every: int = Field(500, gt=0)
    on_nonfinite: Literal["stop", "skip"] = "stop"  # an update that is not finite: stop the run, or leave it out


@dataclass
class State:
    """Everything that the next step depends on. `history` holds one mapping per report."""

    step: int
    nets: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict]
    average: dict[str, dict[str, Tensor]]
    history: list[dict[str, float]] = field(default_factory=list)


class NonFiniteError(TrainingError):
    """A loss or gradient became infinite or not a number; training stops before such weights are saved."""


class DesyncError(TrainingError):
    """Workers that must hold equal weights do not."""


@dataclass
class Player:
    """One phase, ready to move: the wrapped net and its optimizer."""

    phase: Phase
    raw: nn.Module
    net: nn.Module
    optimizer: torch.optim.Optimizer


def fit(
    family: Family,
    batches: Iterator[Batch],
    config: TrainingConfig,
    *,
    start: State | None,
    wrap: Wrap,
    report: Callable[[int, dict[str, float]], dict[str, float]],
    save: Callable[[State], None],
) -> State:
    """Trains until `config.steps` and returns the final state. `batches` begins at the step of `start`.

    `report(step, figures)` gets means since the last report, each figure named `phase/term`, and returns what all
    workers agree on. `save(state)` is called every `save_every` steps and at the end, after a report; the state is
    live, so it must be copied or written before returning.
    """
    if start is not None:
        restore_nets(family, start)
    players = [_player(family, phase, wrap) for phase in family.phases]
    averaged = {name: family.nets[name] for name in family.kept if name not in family.pretrained}
    if start is None:
        start = State(0, {}, {}, ema.copy_of(averaged))
    state = State(start.step, {}, {}, start.average, list(start.history))
    for player in players:
        if player.phase.name in start.optimizers:
            player.optimizer.load_state_dict(start.optimizers[player.phase.name])

    gamma = ema.power_gamma(config.ema_sigma_rel)
    means = Means()
    family.nets.train()
    while state.step < config.steps:
        batch = next(batches)
        for player in players:
            if (state.step + 1) % player.phase.every == 0:
                means.add(player.phase.name, step_player(family, player, batch, state.step, config), state.step)
        ema.update(state.average, averaged, ema.decay(gamma, state.step))
        state.step += 1
        save_now = state.step % config.save_every == 0 or state.step == config.steps
        # a report comes before every save: it refuses what is not finite, and leaves no half-counted mean behind
        if save_now or state.step % config.report_every == 0:
            state.history.append({"step": state.step, **report(state.step, means.take())})
            family.nets.train()  # whoever was told may have sampled
        if save_now:
            save(snapshot(family, players, state))
            family.nets.train()
    return snapshot(family, players, state)


def step_player(family: Family, player: Player, batch: Batch, step: int, config: TrainingConfig) -> dict[str, Tensor]:
    """One phase's move on one batch; returns its figures, detached."""
    _freeze_all_but(family, player.raw)
    _set_learning_rate(player, step, config.steps)
    player.optimizer.zero_grad(set_to_none=True)
    losses = player.phase.loss(player.net, batch)
    (losses["loss"] * batch.weight).backward()
    norm = nn.utils.clip_grad_norm_(player.raw.parameters(), config.clip_norm or math.inf)
    figures = {name: value.detach() for name, value in losses.items()} | {"grad_norm": norm}
    if config.on_nonfinite == "skip":
        # workers share gradients already, so all see the same norm and decide alike
        if not math.isfinite(norm):
            return {"skipped": torch.ones_like(norm)}
        figures["skipped"] = torch.zeros_like(norm)
    player.optimizer.step()
    if player.phase.after is not None:
        player.phase.after(player.raw)
    return figures


class Means:
    """Running means of figures, summed on the device so that no step waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._first_bad: dict[str, Tensor] = {}  # the first step whose figure was not finite, or -1

    def add(self, phase: str, figures: dict[str, Tensor], step: int) -> None:
        for name, value in figures.items():
            key = f"{phase}/{name}"
            if key not in self._sums:
                self._sums[key], self._counts[key] = torch.zeros_like(value), 0
                self._first_bad[key] = torch.full((), -1, device=value.device)
            # a sum that just stopped being finite dates the fault without asking the device each step
            self._sums[key] = self._sums[key] + value
            self._counts[key] += 1
            is_first = (self._first_bad[key] < 0) & ~torch.isfinite(self._sums[key])
            self._first_bad[key] = torch.where(is_first, step, self._first_bad[key])

    def take(self) -> dict[str, float]:
        """The means since the last call. Raises NonFiniteError naming the first figure that was not finite."""
        bad = {key: int(step) for key, step in self._first_bad.items() if step >= 0}
        if bad:
            key = min(bad, key=bad.__getitem__)  # of several at one step the first told: the loss before its gradient
            value = float(self._sums[key])
            raise NonFiniteError(
                f"{key} became {value} at step {bad[key]}, on global batch {bad[key]}; lower its learning rate, set "
                "training.clip_norm, or leave such updates out with training.on_nonfinite: skip"
            )
        means = {key: float(total) / self._counts[key] for key, total in self._sums.items()}
        self._sums, self._counts, self._first_bad = {}, {}, {}
        return means


def _player(family: Family, phase: Phase, wrap: Wrap) -> Player:
    raw = family.nets[phase.net]
    _freeze_all_but(family, raw)
    net, optimizer = wrap(raw, optimizers.build(phase.optimizer, raw))
    return Player(phase, raw, net, optimizer)


def _freeze_all_but(family: Family, moving: nn.Module) -> None:
    for net in family.nets.values():
        net.requires_grad_(net is moving)
        for module in net.modules():
            if isinstance(
                module, nn.BatchNorm2d
            ):  # its running statistics move with the weights, not with other phases
                module.track_running_stats = net is moving


def _set_learning_rate(player: Player, step: int, num_steps: int) -> None:
    rate = optimizers.learning_rate(player.phase.optimizer, step, num_steps)
    for group in player.optimizer.param_groups:
        group["lr"] = rate


def snapshot(family: Family, players: list[Player], state: State) -> State:
    """The state with the live weights and optimizers in it; pretrained nets are left out."""
    return State(
        step=state.step,
        nets={name: net.state_dict() for name, net in family.nets.items() if name not in family.pretrained},
        optimizers={player.phase.name: player.optimizer.state_dict() for player in players},
        average=state.average,
        history=state.history,
    )


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a value


def fingerprint(net: nn.Module) -> Tensor:
    """One int64 a parameter, (P,), equal for bit-equal parameters: a sum of their bits, each weighed by its place."""
    return torch.stack([_bits_sum(parameter.detach()) for parameter in net.parameters()])


def _bits_sum(values: Tensor) -> Tensor:
    bits = values.contiguous().view(-1).view(_BITS[values.element_size()]).to(torch.int64)
    places = torch.arange(len(bits), device=bits.device) * 2 + 1  # odd, so that no weight loses low bits
    return (bits * places).sum()


def refuse_desync(net: nn.Module, name: str, fingerprints: Tensor) -> None:
    """`fingerprints`: (world, P), one row a worker. Raises DesyncError naming the first parameter that differs."""
    differing = (fingerprints != fingerprints[0]).any(dim=0)
    for (parameter, _), differs in zip(net.named_parameters(), differing.tolist(), strict=True):
        if differs:
            raise DesyncError(f"workers hold different weights of {name}.{parameter}; their gradients were not shared")


def restore_nets(family: Family, state: State) -> None:
    """Loads a state's live weights into the family."""
    for name, weights in state.nets.items():
        family.nets[name].load_state_dict(weights)
