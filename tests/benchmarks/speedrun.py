"""A race against the clock that can be run again: `make speedrun TRACK=cpu-digits`.

    python -m tests.benchmarks.speedrun cpu-digits           # three seeds; the record, if it beats the one there is
    python -m tests.benchmarks.speedrun cpu-digits --verify  # the record's first seed again: the same weights?

A track is records/TRACK.yaml: its data, its limit in seconds, what is raced for, and the recipe. The clock holds all
training of the recipe, an autoencoder's and its encoding included, on whatever this process may use; it stands while
what is trained so far is looked at. records/TRACK.json holds what the recipe reached, with all that weights depend on:
the recipe, the data's hash, the processor, the number of threads, and the hash of the weights of each seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import Field
from torch import Tensor

from components.config import Strict, parse
from components.errors import InputError
from components.evaluation.protocol import EvaluateConfig
from components.families.base import Family
from components.files import write_json
from components.sources import DataConfig
from components.training.loop import State, TrainingConfig
from pipelines.support import cli
from tests.benchmarks import quality
from tests.benchmarks.common import as_a_worker, emit, hardware
from tests.benchmarks.rates import Data

RECORDS = Path(__file__).resolve().parents[2] / "records"
SEEDS = (0, 1, 2)


class Model(Strict):
    """A family to train: its config and its training, and, of a sampler, the settings that it is looked at with."""

    family: str
    model: dict = {}
    training: TrainingConfig
    settings: dict = {}


class Race(Strict):
    """What is raced for: the least time to a figure, or the best figure when the time is over. Figures are of
    `samples` samples with the averaged weights; looks come every `look_every` steps, and cost no time."""

    figure: str
    reach: float | None = None
    better: Literal["higher", "lower"] = "lower"
    samples: int = Field(500, gt=0)
    look_every: int = Field(100, gt=0)

    def reached(self, value: float) -> bool:
        if self.reach is None:
            return False
        return value >= self.reach if self.better == "higher" else value <= self.reach

    def beats(self, score: float, other: float) -> bool:
        """Whether a record's `score` is better: seconds where something is to be reached, else the figure."""
        return score > other if self.reach is None and self.better == "higher" else score < other


class Track(Strict):
    """records/TRACK.yaml. The judge measures, off the clock."""

    data: DataConfig
    seconds: float = Field(gt=0)
    race: Race
    judge: Model
    sampler: Model
    autoencoder: Model | None = None


class Clock:
    """Seconds since the start, without those of its breaks."""

    def __init__(self):
        self._began, self._held = time.perf_counter(), 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._began - self._held

    def hold(self, seconds: float) -> None:
        self._held += seconds


class Course:
    """A track made ready: its data, and the judge that looks at samples."""

    def __init__(self, track: Track):
        self.track = track
        data = quality.read(track.data)
        self.train, self.test = data["train"], data["test"]
        judge = _fitted(track.judge, self.train, 0)
        protocol = EvaluateConfig(num_samples=track.race.samples, batch_size=100, resamples=50)
        self.yardstick = quality.Yardstick(judge, self.test, protocol)

    def run(self, seed: int, most_steps: int | None = None) -> dict:
        """One seed's race, or its first `most_steps` steps: seconds, steps, the figures and the hash of the weights at
        its end. The autoencoder's training is not cut short by the limit."""
        clock, track, looks = Clock(), self.track, []
        vae, data = self._stood_on(seed)
        family = _made(track.sampler, data, seed)

        def look(state: State) -> None:
            began, seconds = time.perf_counter(), clock()
            looks.append(self._told(state, seconds, self._figures(data, state, vae)))
            clock.hold(time.perf_counter() - began)

        def is_over(step: int) -> bool:
            if most_steps is not None:
                return step >= most_steps
            return clock() >= track.seconds or bool(looks and looks[-1]["reached"])

        config = track.sampler.training.model_copy(update={"save_every": track.race.look_every})
        _, state, _ = quality.trained(family, data, config, seed, save=look, leave=is_over)
        arrived = next((one for one in looks if one["reached"]), None)
        if most_steps is None and arrived is not None:  # whether to leave is asked a step after the look
            return {"seed": seed, **arrived}
        taken = clock()
        last = looks[-1] if looks and looks[-1]["steps"] == state.step else None
        return {"seed": seed, **(last or self._told(state, taken, self._figures(data, state, vae)))}

    def _told(self, state: State, seconds: float, figures: dict) -> dict:
        race = self.track.race
        return {
            "seconds": round(seconds, 2),
            "steps": state.step,
            "samples_seen": state.step * self.track.sampler.training.batch_size,
            "reached": race.reached(figures[race.figure]),
            "weights_sha256": weights_hash(state.average),
            "precision": state.precision,
            "figures": figures,
        }

    def _stood_on(self, seed: int) -> tuple[Family | None, Data]:
        """What the sampler trains on: images, or latents of the recipe's autoencoder."""
        if self.track.autoencoder is None:
            return None, self.train
        vae = _fitted(self.track.autoencoder, self.train, seed)
        return vae, quality.encoded(vae, self.train)

    def _figures(self, data: Data, state: State, vae: Family | None) -> dict:
        """Of samples by the averaged weights, on a family of their own: the race does not notice."""
        model = self.track.sampler
        family = _made(model, data, 0)
        for net, weights in state.average.items():
            family.nets[net].load_state_dict(weights)
        if vae is not None:
            quality.with_autoencoder(family, vae)
        family.nets.to(quality.device()).requires_grad_(False).eval()
        return quality.rounded(self.yardstick.of_sampler(family, family.Settings(**model.settings)))


def _made(model: Model, data: Data, seed: int) -> Family:
    return quality.made(model.family, model.model, data.info, seed)


def _fitted(model: Model, data: Data, seed: int) -> Family:
    return quality.trained(_made(model, data, seed), data, model.training, seed)[0]


def weights_hash(average: Mapping[str, Mapping[str, Tensor]]) -> str:
    """SHA-256 of the averaged weights, by name."""
    digest = hashlib.sha256()
    for net in sorted(average):
        for key, value in sorted(average[net].items()):
            digest.update(f"{net}/{key}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def data_hash(data: Data) -> str:
    return weights_hash({"data": data.columns})


def read_track(path: Path) -> Track:
    """Raises InputError of a track that is none."""
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in path.parent.glob("*.yaml")))
        raise InputError(f"{path.stem}: no such track; expected one of {known}")
    return parse(Track, yaml.safe_load(path.read_text()), str(path))


def conditions(track: Track, train: Data) -> dict:
    """What weights depend on, besides the seed and the code."""
    return {
        "track": track.model_dump(mode="json", exclude_unset=True),
        "data_sha256": data_hash(train),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def score(track: Track, runs: list[dict]) -> float:
    """The mean over seeds of what is raced for; infinite where a seed did not arrive."""
    if track.race.reach is None:
        return statistics.mean(run["figures"][track.race.figure] for run in runs)
    return statistics.mean(run["seconds"] if run["reached"] else float("inf") for run in runs)


def verify(course: Course, record: dict) -> str:
    """Runs the record's first seed again, as many steps. Raises InputError if the weights are others where all that
    they depend on is the same; returns what was found."""
    now, then = conditions(course.track, course.train), record["conditions"]
    other = [name for name in now if now[name] != then[name]]
    if other:
        return f"not comparable: {', '.join(other)} differ from the record's"
    first = record["runs"][0]
    again = course.run(first["seed"], first["steps"])
    if again["weights_sha256"] != first["weights_sha256"]:
        raise InputError(
            f"seed {first['seed']}, step {first['steps']}: weights are {again['weights_sha256'][:12]}, "
            f"the record's {first['weights_sha256'][:12]}"
        )
    return f"the same weights after {first['steps']} steps ({again['seconds']} s)"


def race(course: Course, path: Path, seeds: tuple[int, ...] = SEEDS) -> dict:
    """Runs every seed, and writes the record if there is none or it is beaten."""
    runs = []
    for seed in seeds:
        runs.append(course.run(seed))
        told = runs[-1]["figures"][course.track.race.figure]
        print(f"seed {seed}: {runs[-1]['seconds']} s, {course.track.race.figure} {told}", flush=True)
    new = {"score": score(course.track, runs), "conditions": conditions(course.track, course.train), "runs": runs}
    old = json.loads(path.read_text()) if path.is_file() else None
    if new["score"] != float("inf") and (old is None or course.track.race.beats(new["score"], old["score"])):
        write_json(path, new)
        print(f"{path.name}: {new['score']:.4g}" + (f", {old['score']:.4g} before" if old else ""))
    return new


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speedrun")
    parser.add_argument("track", nargs="?", default="cpu-digits")
    parser.add_argument("--verify", action="store_true", help="run the record's first seed again")
    asked = parser.parse_args(argv or [])
    path = RECORDS / f"{asked.track}.yaml"
    track = read_track(path)
    as_a_worker()
    course, record = Course(track), path.with_suffix(".json")
    if asked.verify:
        print(f"{asked.track}: {verify(course, json.loads(record.read_text()))}")
        return
    found = race(course, record)
    unit = "s" if track.race.reach is not None else track.race.figure
    emit(f"speedrun {asked.track}", round(found["score"], 4), unit, "the record", threads=os.cpu_count())


if __name__ == "__main__":
    cli.run(main)
