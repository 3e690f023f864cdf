"""The demo's digits and models, in memory: what benchmarks on them share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from components.data.dataset import spread
from components.evaluation.protocol import EvaluateConfig
from components.families.base import Family
from components.likelihood.contract import bits_figures
from components.training.loop import State, TrainingConfig
from pipelines.support import params
from tests.benchmarks import quality
from tests.benchmarks.common import emit
from tests.benchmarks.rates import Data

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)
PROTOCOL = EvaluateConfig(num_samples=500, batch_size=100, resamples=50)


@functools.cache
def demo() -> params.Params:
    return params.load(ROOT / params.DEFAULT)


@functools.cache
def data() -> dict[str, Data]:
    return quality.read(demo().data, demo().seed)


def made(key: str, data: Data, seed: int, model: dict | None = None) -> Family:
    """A block of params.yaml with changes, its weights initial."""
    block = params.train_block(demo(), key)
    return quality.made(block.family, {**block.model, **(model or {})}, data.info, seed)


def trained(key: str, family: Family, data: Data, seed: int, **changes) -> tuple[Family, State, float]:
    """What `quality.trained` gives for as long as the block trains."""
    training = params.train_block(demo(), key).training
    return quality.trained(family, data, TrainingConfig(**{**training.model_dump(), **changes}), seed)


@functools.cache
def yardstick() -> quality.Yardstick:
    train, key = data()["train"], "judges.judge"
    judge, _, _ = trained(key, made(key, train, 0), train, 0)
    return quality.Yardstick(judge, data()["test"], PROTOCOL)


def asked(argv: list[str] | None, names: Iterable[str], usual: Sequence[int] = SEEDS) -> tuple[list[str], list[int]]:
    """What a command line names: models, all of `names` by default, and seeds, by default the `usual` ones."""
    words = argv or []
    seeds = [int(word) for word in words if word.isdigit()] or list(usual)
    return [word for word in words if not word.isdigit()] or list(names), seeds


def runs(
    names: Iterable[str], seeds: Iterable[int], folder: Path, measure: Callable[[str, int], dict]
) -> dict[str, list[dict]]:
    """What is measured of each model, seed by seed; what is measured already is read from `folder`."""
    return {
        name: [quality.kept(folder / f"{name}_{seed}.json", lambda n=name, s=seed: measure(n, s)) for seed in seeds]
        for name in names
    }


def table(
    names: Iterable[str], seeds: Iterable[int], folder: Path, measure: Callable[[str, int], dict]
) -> dict[str, dict]:
    """The spread of each model's runs over seeds."""
    return {name: quality.spread(found) for name, found in runs(names, seeds, folder, measure).items()}


def bits(family: Family, most: int) -> dict[str, float]:
    """Bits per dimension, or a token, of up to `most` held-out images and as many training images, evenly spread."""
    sets = data()
    count = min(most, len(sets["test"]))
    parts = [spread(sets[split], count) for split in ("test", "train")]
    rows = [(quality.MEDIUM.to_floats(part["image"]), part["label"]) for part in parts]
    return {name: figure.value for name, figure in bits_figures(family.likelihood, *rows).items()}


def tell(name: str, table: dict[str, dict], what: str, target: str, **more: object) -> None:
    """One result of a table of variants: the least distance. `what` it is, with the variant in the place of {best}."""
    best = min(table, key=lambda variant: table[variant].get("frechet_distance", math.inf))
    distance = table[best]["frechet_distance"]
    emit(name, distance, what.format(best=best), target, **more, real=round(floor(), 3), table=table)


def floor() -> float:
    """The distance of training images to the held-out ones, as many as there are samples and as many of each class, by
    the mean of random draws: a perfect sampler's."""
    return yardstick().of_real(data()["train"])["frechet_distance"].value
