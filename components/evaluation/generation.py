"""Sampling for evaluation: the set of images that a seed stands for, how long an image takes, what it costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from components.artifacts import run_folder
from components.conditioning.text import texts_of_column
from components.config import Strict, parse
from components.data.dataset import Dataset
from components.errors import SamplerError
from components.families.base import Sampler
from components.metrics.figures import Definition, Figures, named
from components.sampling.batching import num_rows
from components.sampling.requests import Conditions, Request
from components.sampling.trajectories import drive

MS_PER_IMAGE = Definition(
    name="ms_per_image",
    label="time per image",
    column="ms / image",
    group="cost",
    explanation="at batches of evaluate.batch_size",
    kind="time",
    better="lower",
    unit="ms",
    summary=True,
)
MS_SINGLE = Definition(
    name="ms_single",
    label="time of an image alone",
    column="ms, alone",
    group="cost",
    explanation="sampled one at a time",
    kind="time",
    better="lower",
    unit="ms",
)
NETWORK_EVALUATIONS = Definition(
    name="network_evaluations",
    label="network evaluations",
    column="NFE",
    group="cost",
    explanation="rows that an image sends through networks: a guided step counts twice, decoding once",
    kind="count",
    better="lower",
)
PARAMETERS = Definition(
    name="parameters",
    label="parameters",
    group="cost",
    explanation="weights of all networks that it keeps, of an autoencoder's that it decodes with, too",
    kind="count",
    better="lower",
)
AVERAGE, CHECKPOINT = "ema_sigma_rel", "checkpoint"  # a candidate's keys of weights, as run_folder.load takes them
WEIGHTS = (AVERAGE, CHECKPOINT)
GRID_COLUMNS = 10
_GRID_ROWS = 10  # without classes
_MOST_CLASSES = 20  # rows of a grid with classes
_CHUNK = 4096  # rows read at once
_SINGLES = 5  # images timed one by one, after one to warm up


@dataclass(frozen=True)
class Generated:
    """One batch. `images`: rows (n, C, ...) in [-1, 1] as a viewer gets them, quantised, on the CPU."""

    images: Tensor
    labels: Tensor | None
    seconds: float


@dataclass(frozen=True)
class Captions:
    """Texts that a sampler of texts is asked for, one after the other and again from the first; `labels`: the classes
    of the images that they describe, where these have any."""

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None = None

    @staticmethod
    def of(dataset: Dataset) -> Captions | None:
        """Those of a data set's images, shuffled, or None."""
        if "caption" not in dataset.manifest.columns:
            return None
        texts: list[str] = []
        labels: list[int] = []
        for chunk in dataset.chunks(_CHUNK, ("caption", "label")):
            texts += texts_of_column(chunk["caption"])
            labels += chunk["label"].tolist() if "label" in chunk else []
        # a set may be sorted by class, and fewer texts are asked for than there are
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
        return Captions(tuple(texts[row] for row in order), tuple(labels[row] for row in order) if labels else None)

    def take(self, numbers: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.texts[number % len(self.texts)] for number in numbers)


def wanted_labels(sampler: Sampler, captions: Captions | None, count: int) -> Tensor | None:
    """(count,) the classes that the first images of a set should show, or None where nobody says."""
    if sampler.texts and captions is not None and captions.labels is not None:
        return torch.tensor(captions.labels)[torch.arange(count) % len(captions.labels)]
    return sampler.cycled_labels(count)


def weights_and_settings(candidate: dict) -> tuple[dict, dict]:
    """Which weights of its run folder a candidate samples with, nothing for the run's own, and its solver settings."""
    weights = {name: candidate[name] for name in WEIGHTS if candidate.get(name) is not None}
    return weights, {name: value for name, value in candidate.items() if name not in WEIGHTS}


def open_candidate(folder: Path, candidate: dict, device: torch.device | str, where: str) -> tuple[Sampler, Strict]:
    """The sampler and the settings that one candidate of a run folder stands for. Raises ConfigError naming `where` of
    settings that the sampler does not have, SamplerError of a folder that cannot sample, or not with such weights."""
    weights, chosen = weights_and_settings(candidate)
    run = run_folder.load(folder, device, **weights)
    return sampler_of(run), parse(run.family.Settings, chosen, where)


def sampler_of(run: run_folder.Run) -> Sampler:
    if not isinstance(run.family, Sampler):
        raise SamplerError(f"{run.folder}: holds a {run.config.family}, which does not generate images")
    return run.family


def seeds(count: int, seed: int) -> Tensor:
    """(count,) int64, one an image; sets of different seeds share none."""
    return torch.arange(count) + (seed << 32)


def request(
    sampler: Sampler, settings: Strict, start: int, stop: int, seed: int, captions: Captions | None = None
) -> Request:
    """Images `start` to `stop` of the set that a seed stands for, labels cycling through the classes, or prompts
    through the captions."""
    prompts = None
    if sampler.texts and captions is not None:
        prompts = sampler.prompts_of(captions.take(range(start, stop)))
    told = sampler.cycled(stop).rows(slice(start, None))
    return Request(seeds(stop, seed)[start:], settings, replace(told, prompt=prompts))


def requests(
    sampler: Sampler, settings: Strict, count: int, seed: int, batch_size: int, captions: Captions | None = None
) -> Iterator[Request]:
    """The first `count` images of a set, in batches."""
    for start in range(0, count, batch_size):
        yield request(sampler, settings, start, min(start + batch_size, count), seed, captions)


def generate(sampler: Sampler, request: Request) -> Generated:
    """Samples one batch and takes the time."""
    _synchronise()
    start = time.perf_counter()
    images = sampler.sample(request)
    _synchronise()
    seconds = time.perf_counter() - start
    return Generated(sampler.medium.quantised(images), request.conditions.label, seconds)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def grid_request(sampler: Sampler, settings: Strict, seed: int, captions: Captions | None = None) -> Request:
    """A grid of GRID_COLUMNS images a row; a row is a class where the sampler is conditional, or a caption."""
    rows = min(sampler.num_classes, _MOST_CLASSES) if sampler.conditional else _GRID_ROWS
    labels = torch.arange(rows).repeat_interleave(GRID_COLUMNS) if sampler.conditional else None
    prompts = None
    if sampler.texts and captions is not None:
        prompts = sampler.prompts_of(captions.take(row for row in range(rows) for _ in range(GRID_COLUMNS)))
    speakers = sampler.cycled(rows * GRID_COLUMNS).speaker
    speakers = None if speakers is None else torch.arange(len(speakers)) % sampler.num_speakers  # each in a row
    told = Conditions(label=labels, speaker=speakers, prompt=prompts)
    return Request(seeds(rows * GRID_COLUMNS, seed), settings, told)


def ms_per_image(batches: list[tuple[int, float]]) -> float:
    """Milliseconds per image: the median over the largest batches, each given by its images and its seconds."""
    largest = max(size for size, _ in batches)
    return 1000 * statistics.median(seconds / size for size, seconds in batches if size == largest)


def ms_single(sampler: Sampler, settings: Strict, seed: int, captions: Captions | None = None) -> float:
    """Milliseconds of an image that is sampled alone: the median of a few."""
    one_by_one = [
        generate(sampler, request) for request in requests(sampler, settings, 1 + _SINGLES, seed, 1, captions)
    ]
    return ms_per_image([(1, generated.seconds) for generated in one_by_one[1:]])


def cost_figures(sampler: Sampler, settings: Strict, ms: float, seed: int, captions: Captions | None = None) -> Figures:
    """What sampling costs: `ms` per image as measured in batches, the milliseconds of an image alone, network
    evaluations, weights."""
    return named(
        MS_PER_IMAGE.figure(ms),
        MS_SINGLE.figure(ms_single(sampler, settings, seed, captions)),
        NETWORK_EVALUATIONS.figure(network_evaluations(sampler, settings, captions)),
        PARAMETERS.figure(sum(weights.numel() for net in sampler.kept for weights in sampler.nets[net].parameters())),
    )


def network_evaluations(sampler: Sampler, settings: Strict, captions: Captions | None = None) -> int:
    """How many rows an image sends through networks: a guided step counts twice, a decoder once."""
    rows: list[int] = []
    one = request(sampler, settings, 0, 1, 0, captions).to(next(sampler.nets.parameters()).device)
    drive(sampler.trajectory(one), sampler.calls, on_call=lambda call: rows.append(num_rows(call)))
    return sum(rows)
