"""The demo's digits and models, in memory: what benchmarks on them share."""

from __future__ import annotations

import functools
from pathlib import Path

from components.evaluation.protocol import EvaluateConfig
from components.families.base import Family
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


def tell(name: str, table: dict[str, dict], what: str, target: str, **more: object) -> None:
    """One result of a table of variants: the least distance. `what` it is, with the variant in the place of {best}."""
    best = min(table, key=lambda variant: table[variant]["frechet_distance"])
    distance = table[best]["frechet_distance"]
    emit(name, distance, what.format(best=best), target, **more, real=round(floor(), 3), table=table)


def floor() -> float:
    """The distance of training images to the held-out ones, as many as there are samples and as many of each class, by
    the mean of random draws: a perfect sampler's."""
    return yardstick().of_real(data()["train"])["frechet_distance"].value
