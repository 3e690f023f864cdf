"""Trajectories: sampling written as coroutines that ask for network evaluations.

A sampler yields `Call`s and is sent each net's answer; it returns images. `drive` answers the calls of one trajectory
on the spot. A server may instead hold many trajectories and answer calls to the same net together: a trajectory
cannot tell the difference, because all its randomness comes from its own seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from components.sampling.state import Cache, refuse_more_rows


@dataclass(frozen=True)
class Call:
    """One evaluation of a network, or of a part of one, called `net`. Rows come first in every input and the answer,
    which is a tensor or a mapping of some. `stateful`: the net keeps the call's rows for the trajectory's next one
    (components/sampling/state.py); later calls may have fewer rows than the first, the first ones, never more."""

    net: str
    inputs: dict[str, Tensor]
    preview: Preview | None = None
    stateful: bool = False


Answer = Tensor | Mapping[str, Tensor]
Trajectory = Generator[Call, Answer, Tensor]


@dataclass(frozen=True)
class Preview:
    """What the images look like so far, for whoever wants to see: `progress` in [0, 1] is the share of the way that
    lies behind, `start` makes a trajectory that ends in the estimated images (B, C, ...) in [-1, 1]."""

    progress: float
    start: Callable[[], Trajectory]


def offering(trajectory: Trajectory, preview: Preview | None) -> Trajectory:
    """The same trajectory, whose calls carry `preview`."""
    if preview is None:
        return (yield from trajectory)
    try:
        call = next(trajectory)
        while True:
            call = trajectory.send((yield replace(call, preview=preview)))
    except StopIteration as stop:
        return stop.value


@torch.inference_mode()
def drive(
    trajectory: Trajectory,
    nets: Mapping[str, Callable[..., Answer]],
    on_call: Callable[[Call], None] = lambda call: None,
) -> Tensor:
    """Runs one trajectory to its end: images (B, C, ...) in [-1, 1]. What nets keep lasts as long. `on_call` is told
    each call before it is answered."""
    caches: dict[str, Cache] = {}
    try:
        call = next(trajectory)
        while True:
            on_call(call)
            kept = _kept(call, nets, caches) if call.stateful else {}
            call = trajectory.send(nets[call.net](**call.inputs, **kept))
    except StopIteration as stop:
        return stop.value


def _kept(call: Call, nets: Mapping[str, Callable[..., Answer]], caches: dict[str, Cache]) -> dict[str, Any]:
    """The cache and slots of a call whose net keeps rows; its trajectory's first such call makes the cache."""
    first = next(iter(call.inputs.values()))
    if call.net not in caches:
        caches[call.net] = Cache(nets[call.net], len(first))
    cache = caches[call.net]
    refuse_more_rows(call.net, len(first), cache.rows)
    return cache.inputs(torch.arange(len(first)), 0, first)
