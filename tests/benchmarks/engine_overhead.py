"""The share of an engine's time that is not spent in networks, with 16 rows in every forward.

python -m tests.benchmarks.engine_overhead
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from components.families.base import Sampler
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request
from components.threads import in_passing
from tests.benchmarks.common import emit
from tests.infra.champion import champion_or_untrained, device

NUM_IMAGES = 16
STEPS = 25
REPEATS = 7


class Timed:
    """A net that adds up how long it takes."""

    def __init__(self, net: Callable[..., Tensor]):
        self.net, self.seconds = net, 0.0

    def __call__(self, **inputs: Tensor) -> Tensor:
        began = time.perf_counter()
        answer = self.net(**inputs)
        if answer.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        return answer


def overhead(family: Sampler, solver: str) -> float:
    """The share in [0, 1] of sixteen images' time, each with its own trajectory and one row a call."""
    nets = {name: Timed(net) for name, net in family.calls.items()}
    settings = family.Settings(solver=solver, num_inference_steps=STEPS, guidance_scale=1.0)
    began = time.perf_counter()
    engine = Engine(nets)
    futures = []
    for seed in range(NUM_IMAGES):
        label, seeds = torch.tensor([seed % 10], device=device()), torch.tensor([seed], device=device())
        futures.append(
            engine.submit(lambda s=seeds, at=label: family.trajectory(Request(s, settings, Conditions(label=at))))
        )
    for future in futures:
        future.result()
    wall = time.perf_counter() - began
    engine.stop()
    return 1 - sum(net.seconds for net in nets.values()) / wall


def main() -> None:
    family, which = in_passing(champion_or_untrained)  # its team of threads ends before the engine's begins
    shares = {}
    for solver in ("ddim", "dpmpp_2m"):
        overhead(family, solver)  # warm
        shares[solver] = statistics.median(100 * overhead(family, solver) for _ in range(REPEATS))
    percent = {solver: round(share, 2) for solver, share in shares.items()}
    emit("engine_overhead", max(percent.values()), "% of wall time", "< 10", percent=percent, sampler=which)


if __name__ == "__main__":
    main()
