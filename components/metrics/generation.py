"""Sampling for evaluation: the set of images that a seed stands for, how long an image takes, what it costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from components import run_folder
from components.config import Strict, parse
from components.errors import SamplerError
from components.families.base import Sampler
from components.images import from_uint8, to_uint8
from components.sampling import Request, drive

AVERAGE = "ema_sigma_rel"  # a candidate's key beside its solver settings: the width of the average of weights
GRID_COLUMNS = 10
_GRID_ROWS = 10  # without classes
_MOST_CLASSES = 20  # rows of a grid with classes
_SINGLES = 5  # images timed one by one, after one to warm up


@dataclass(frozen=True)
class Generated:
    """One batch. `images` are those that a viewer gets: quantised to 256 levels, NCHW in [-1, 1], on the CPU."""

    images: Tensor
    labels: Tensor | None
    seconds: float


def weights_and_settings(candidate: dict) -> tuple[float | None, dict]:
    """The averaging length that a candidate samples with, None for the training's own, and its solver settings."""
    return candidate.get(AVERAGE), {name: value for name, value in candidate.items() if name != AVERAGE}


def open_candidate(folder: Path, candidate: dict, device: torch.device | str, where: str) -> tuple[Sampler, Strict]:
    """The sampler and the settings that one candidate of a run folder stands for. Raises ConfigError naming `where` of
    settings that the sampler does not have, SamplerError of a folder that cannot sample, or not with such weights."""
    length, chosen = weights_and_settings(candidate)
    run = run_folder.load(folder, device, length)
    return sampler_of(run), parse(run.family.Settings, chosen, where)


def sampler_of(run: run_folder.Run) -> Sampler:
    if not isinstance(run.family, Sampler):
        raise SamplerError(f"{run.folder}: holds a {run.config.family}, which does not generate images")
    return run.family


def seeds(count: int, seed: int) -> Tensor:
    """(count,) int64, one an image; sets of different seeds share none."""
    return torch.arange(count) + (seed << 32)


def request(sampler: Sampler, settings: Strict, start: int, stop: int, seed: int) -> Request:
    """Images `start` to `stop` of the set that a seed stands for, labels cycling through the classes."""
    labels = sampler.cycled_labels(stop)
    return Request(seeds(stop, seed)[start:], None if labels is None else labels[start:], settings)


def requests(sampler: Sampler, settings: Strict, count: int, seed: int, batch_size: int) -> Iterator[Request]:
    """The first `count` images of a set, in batches."""
    for start in range(0, count, batch_size):
        yield request(sampler, settings, start, min(start + batch_size, count), seed)


def generate(sampler: Sampler, request: Request) -> Generated:
    """Samples one batch and takes the time."""
    _synchronise()
    start = time.perf_counter()
    images = sampler.sample(request)
    _synchronise()
    seconds = time.perf_counter() - start
    return Generated(from_uint8(to_uint8(images).cpu()), request.labels, seconds)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def grid_request(sampler: Sampler, settings: Strict, seed: int) -> Request:
    """A grid of GRID_COLUMNS images a row; a row is a class where the sampler is conditional."""
    rows = min(sampler.num_classes, _MOST_CLASSES) if sampler.conditional else _GRID_ROWS
    labels = torch.arange(rows).repeat_interleave(GRID_COLUMNS) if sampler.conditional else None
    return Request(seeds(rows * GRID_COLUMNS, seed), labels, settings)


def ms_per_image(batches: list[tuple[int, float]]) -> float:
    """The median over the largest batches, each told by its number of images and its seconds."""
    largest = max(size for size, _ in batches)
    return 1000 * statistics.median(seconds / size for size, seconds in batches if size == largest)


def ms_single(sampler: Sampler, settings: Strict, seed: int) -> float:
    """Milliseconds of an image that is sampled alone: the median of a few."""
    one_by_one = [generate(sampler, request) for request in requests(sampler, settings, 1 + _SINGLES, seed, 1)]
    return ms_per_image([(1, piece.seconds) for piece in one_by_one[1:]])


def network_evaluations(sampler: Sampler, settings: Strict) -> int:
    """How many rows an image sends through networks: a guided step counts twice, a decoder once."""
    rows: list[int] = []

    def counting(answer: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(**inputs: Tensor) -> Tensor:
            rows.append(len(next(iter(inputs.values()))))
            return answer(**inputs)

        return counted

    calls: Mapping[str, Callable[..., Tensor]] = {name: counting(answer) for name, answer in sampler.calls.items()}
    device = next(sampler.nets.parameters()).device
    labels = sampler.cycled_labels(1)
    request = Request(
        torch.zeros(1, dtype=torch.int64, device=device), labels if labels is None else labels.to(device), settings
    )
    drive(sampler.trajectory(request), calls)
    return sum(rows)
