"""Trajectories: sampling written as coroutines that ask for network evaluations.

A sampler yields `Call`s and is sent each net's answer; it returns images. `drive` answers the calls of one trajectory
on the spot. A server may instead hold many trajectories and answer calls to the same net together: a trajectory
cannot tell the difference, because all its randomness comes from its own seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """One evaluation of a network, or of a part of one, called `net`. Rows come first in every input and the answer."""

    net: str
    inputs: dict[str, Tensor]
    preview: Preview | None = None


Trajectory = Generator[Call, Tensor, Tensor]


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
def drive(trajectory: Trajectory, nets: Mapping[str, Callable[..., Tensor]]) -> Tensor:
    """Runs one trajectory to its end: images (B, C, ...) in [-1, 1]."""
    try:
        call = next(trajectory)
        while True:
            call = trajectory.send(nets[call.net](**call.inputs))
    except StopIteration as stop:
        return stop.value
