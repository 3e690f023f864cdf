"""Images a second of one engine with 16 mixed clients: a student at one to four steps against its teacher at the demo's
candidates, nets of one size, in one run. No HTTP on either side.

    python -m tests.benchmarks.serve_few_step
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch

from components.families.base import Sampler
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request
from components.threads import in_passing
from tests.benchmarks import digits
from tests.benchmarks.common import as_a_worker, emit
from tests.benchmarks.few_step_speed import samplers
from tests.benchmarks.token_clients import CLIENTS, asked_by_clients
from tests.infra.champion import device

COUNTS, SCALES = (1, 1, 2, 4), (1.0, 1.5, 2.0)
Orders = Callable[[int], Iterator[Request]]


def of_teacher(sampler: Sampler) -> Orders:
    candidates = digits.demo().samplers["ldm"].candidates
    return lambda seed: _orders(sampler, seed, lambda chance: {**chance.choice(candidates)})


def of_student(sampler: Sampler, steps: tuple[int, ...]) -> Orders:
    return lambda seed: _orders(sampler, seed, lambda chance: {"num_inference_steps": chance.choice(steps)})


def _orders(sampler: Sampler, seed: int, settings: Callable[[random.Random], dict]) -> Iterator[Request]:
    """Requests of one to four images with a guidance scale each, the same ones at every run."""
    chance = random.Random(seed)
    while True:
        count = chance.choice(COUNTS)
        seeds = torch.tensor([chance.randrange(2**31) for _ in range(count)], device=device())
        asked = sampler.Settings(**{**settings(chance), "guidance_scale": chance.choice(SCALES)})
        yield Request(seeds, asked, Conditions(label=seeds % sampler.num_classes))


def served(sampler: Sampler, orders: Orders) -> float:
    """Images a second of CLIENTS clients, each with one request at a time."""
    engine = Engine(sampler.calls)
    rate = asked_by_clients(engine, sampler, orders)
    engine.stop(timeout=60)
    return rate


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    teacher, student = in_passing(samplers)  # their team of threads ends before the engine's begins
    of = {
        "teacher": served(teacher, of_teacher(teacher)),
        "student, 1 or 2 steps": served(student, of_student(student, (1, 2))),
        "student, 1 to 4 steps": served(student, of_student(student, (1, 2, 4))),
    }
    emit(
        "serve_few_step",
        round(of["student, 1 or 2 steps"] / of["teacher"], 2),
        f"images/s with {CLIENTS} mixed clients, student at one or two steps / its teacher at the demo's candidates",
        ">= 4",
        images_per_s={name: round(value, 1) for name, value in of.items()},
    )


if __name__ == "__main__":
    main()
