"""Seconds of a clip that a WaveNet draws from leased queues, against a whole forward for every sample over all that the
sample depends on: the same trajectory, in one run.

    python -m tests.benchmarks.wavenet_generation
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from components.nets.wavenet import WaveNet
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request
from components.sampling.trajectories import drive
from components.threads import in_passing
from tests.benchmarks.common import as_a_worker, emit
from tests.benchmarks.mixed_media import wavenet

ROWS, LENGTH, CLIENTS = 4, 1536, 4


class WholeForwards:
    """Answers as the queues do, by the net's forward over as many samples as a sample depends on."""

    def __init__(self, net: WaveNet):
        self.net = net
        self.row_bytes = 4 * LENGTH

    def allocate(self, rows: int) -> Tensor:
        return torch.zeros(rows, LENGTH)

    def __call__(self, *, position: Tensor, before: Tensor, ids: Tensor, cache: Tensor, slot: Tensor) -> Tensor:
        net, place = self.net, int(position[0])  # rows of one trajectory are at one place
        cache[slot, place] = before
        first = max(0, place + 1 - net.receptive_field) // net.block
        return net(cache[slot, first * net.block : place + 1], ids, torch.full_like(position, first))[:, -1]


def request(model, seed: int) -> Request:
    seeds = torch.arange(seed, seed + ROWS)
    return Request(seeds, model.Settings(), Conditions(label=seeds % 10))


def seconds(model, nets: dict) -> tuple[float, Tensor]:
    """Of a trajectory, and what it draws."""
    began = time.perf_counter()
    rows = drive(model.trajectory(request(model, 0)), nets)
    return time.perf_counter() - began, rows


def together(model) -> float:
    """Seconds of as many clips for each of CLIENTS that ask one engine at the same time."""
    engine = Engine(model.calls)
    began = time.perf_counter()
    asked = [
        engine.submit(lambda number=number: model.trajectory(request(model, ROWS * number)), rows=ROWS)
        for number in range(CLIENTS)
    ]
    for one in asked:
        one.result(600)
    took = time.perf_counter() - began
    engine.stop(timeout=60)
    return took


def main() -> None:
    as_a_worker()
    model = in_passing(lambda: wavenet(LENGTH))  # no side meets another one's team of threads
    model.nets.requires_grad_(False).eval()
    net = model.nets["wavenet"]
    queues, drawn = in_passing(lambda: seconds(model, model.calls))
    whole, expected = in_passing(lambda: seconds(model, {"wavenet": WholeForwards(net)}))
    shared = together(model)
    emit(
        "wavenet_generation",
        round(whole / queues, 1),
        f"times as fast as whole forwards, {ROWS} clips of {LENGTH} samples",
        "above 5",
        queues_s=round(queues, 2),
        whole_s=round(whole, 2),
        differing_samples=int((drawn != expected).sum()),
        samples_per_s=round(ROWS * LENGTH / queues),
        samples_per_s_of_an_engine=round(CLIENTS * ROWS * LENGTH / shared),
        receptive_field=net.receptive_field,
    )


if __name__ == "__main__":
    main()
