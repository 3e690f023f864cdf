"""The race: a record holds what its weights depend on, the same run gives the same hash, another is told."""

import json

import pytest

from components.errors import InputError
from components.sources import DataConfig
from tests.benchmarks import speedrun
from tests.benchmarks.speedrun import Course, Model, Race, Track

TRAINING = {"batch_size": 8, "report_every": 4, "precision": "float32"}
TRACK = Track(
    data=DataConfig(source="digits", image_size=8),
    seconds=3600,
    race=Race(figure="label_agreement", reach=0.0, better="higher", samples=200, look_every=2),
    judge=Model(family="judge", model={"width": 8, "feature_dim": 8}, training={**TRAINING, "steps": 2}),
    sampler=Model(family="cgan", model={"latent_dim": 4, "width": 4}, training={**TRAINING, "steps": 8}),
)


@pytest.fixture(scope="module")
def course():
    return Course(TRACK)


@pytest.fixture(scope="module")
def record(course, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "small.json"
    speedrun.race(course, path, seeds=(0, 1))
    return json.loads(path.read_text())


def test_it_stops_at_the_look_that_reaches_the_aim(record):
    assert [run["steps"] for run in record["runs"]] == [2, 2]
    assert [run["samples_seen"] for run in record["runs"]] == [16, 16]
    assert len({run["weights_sha256"] for run in record["runs"]}) == 2  # a seed each


def test_the_record_is_verified_by_running_it_again(course, record):
    assert speedrun.verify(course, record).startswith("the same weights after 2 steps")


def test_other_weights_are_told(course, record):
    altered = json.loads(json.dumps(record))
    altered["runs"][0]["weights_sha256"] = "0" * 64
    with pytest.raises(InputError, match="seed 0, step 2: weights are"):
        speedrun.verify(course, altered)


def test_another_processor_is_not_compared(course, record):
    elsewhere = {**record, "conditions": {**record["conditions"], "hardware": "another"}}
    assert speedrun.verify(course, elsewhere) == "not comparable: hardware differ from the record's"


def test_a_record_falls_to_a_better_one_alone(course, tmp_path, monkeypatch):
    path, scores = tmp_path / "small.json", iter([5.0, 6.0, 4.0])
    monkeypatch.setattr(
        Course,
        "run",
        lambda self, seed: {
            "seed": seed,
            "seconds": next(scores),
            "reached": True,
            "figures": {"label_agreement": 1.0},
        },
    )
    kept = []
    for _ in range(3):
        speedrun.race(course, path, seeds=(0,))
        kept.append(json.loads(path.read_text())["score"])
    assert kept == [5.0, 5.0, 4.0]


def test_every_track_is_valid_and_an_unknown_one_names_them():
    names = sorted(path.stem for path in speedrun.RECORDS.glob("*.yaml"))
    assert names == ["cpu-digits", "cpu-fashion", "gpu-10min"]
    for name in names:
        speedrun.read_track(speedrun.RECORDS / f"{name}.yaml")
    with pytest.raises(InputError, match="nope: no such track; expected one of cpu-digits"):
        speedrun.read_track(speedrun.RECORDS / "nope.yaml")
