"""PixelCNN++ drawn one pixel at a time from what it kept, against a whole forward for every pixel: the same images,
in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families import family_class
from components.likelihood.logistics import draw
from components.sampling.requests import Conditions, Request
from tests.benchmarks.common import as_a_worker, emit

BATCH, ROUNDS = 16, 3
CONFIG = {"width": 32, "blocks": 6}


def main() -> None:
    as_a_worker()
    kind = family_class("pixelcnn")
    torch.manual_seed(0)
    data = DataInfo(shape=(1, 16, 16), classes=tuple("0123456789"))
    sampler = kind(kind.Config(**CONFIG), data)
    sampler.nets.eval().requires_grad_(False)
    label = torch.arange(BATCH) % 10
    request = Request(torch.arange(BATCH), sampler.Settings(), Conditions(label=label))

    def whole() -> torch.Tensor:
        return by_whole_forwards(sampler, request)

    kept, again = sampler.sample(request), whole()
    # a draw falls between two values within rounding of the sums, so that not all need be equal
    alike = (kept - again).abs().flatten(1).amax(1).lt(1e-3).float().mean().item()
    ours, theirs = (median(function) for function in (lambda: sampler.sample(request), whole))
    emit(
        "pixelcnn_sampling",
        round(theirs / ours, 2),
        "times as fast as whole forwards, 16 images of 16x16",
        "above 1",
        kept_s=round(ours, 3),
        whole_s=round(theirs, 3),
        share_of_equal_images=alike,
    )


@torch.inference_mode()
def by_whole_forwards(sampler, request: Request) -> torch.Tensor:
    channels, height, width = sampler.data.shape
    mixtures = sampler.config.mixtures
    uniform = Draws.of_seeds(request.seeds).uniform("pixel", (height * width, mixtures + channels))
    rows = torch.zeros(len(request.seeds), channels, height, width)
    for place in range(height * width):
        numbers = sampler.nets["pixelcnn"](rows, request.conditions.label)[:, :, place // width, place % width]
        rows[:, :, place // width, place % width] = draw(numbers, uniform[:, place], sampler.levels, mixtures, 1.0)
    return rows


def median(function: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
