"""What a training borrows from other runs: checked on the driver, part of its hash, lent to every worker."""

from __future__ import annotations

import pytest

from components.artifacts import run_folder
from components.errors import SamplerError
from components.training.loop import State
from pipelines.support.params import DEFAULT, TrainBlock, load
from pipelines.support.paths import ROOT
from pipelines.train import make_job
from tests.benchmarks.common import write_noise
from tests.components.helpers import IMAGES, build, stream, tiny

KEY = "autoencoders.vae"


@pytest.fixture
def project(tmp_path):
    """A data set of noise and an untrained judge, and a function from a model block to params."""
    write_noise(tmp_path / "images", IMAGES, 20)
    judge = build("judge")
    provenance = run_folder.Provenance(data="d", code="c", job="j", seed=0, step=1)
    average = {"classifier": judge.nets["classifier"].state_dict()}
    run_folder.write(tmp_path / "judge", "judge", judge, State(1, {}, {}, average), provenance)

    def params(**model):
        block = TrainBlock(
            family="vae",
            data=str(tmp_path / "images"),
            model={**tiny("vae").config, **model},
            training={"steps": 1, "batch_size": 4},
            watch={"judge": str(tmp_path / "judge"), "held_out": str(tmp_path / "images")},
        )
        return load(ROOT / DEFAULT).model_copy(update={"autoencoders": {"vae": block}})

    return tmp_path, params


def test_a_perceptual_loss_is_lent_its_judge(project):
    folder, params = project
    plain = make_job(params(), KEY)
    job = make_job(params(perceptual={"judge": str(folder / "judge")}), KEY)
    assert plain.borrowed == ()
    family = job.build()
    losses = family.loss(family.nets["autoencoder"], next(stream("vae")))
    assert losses["perceptual"] > 0
    before = job.hash
    judge = build("judge", seed=1)
    average = {"classifier": judge.nets["classifier"].state_dict()}
    described = run_folder.read_config(folder / "judge").provenance
    run_folder.write(folder / "judge", "judge", judge, State(1, {}, {}, average), described)
    assert make_job(params(perceptual={"judge": str(folder / "judge")}), KEY).hash != before
    assert make_job(params(), KEY).hash == plain.hash


def test_a_judge_that_is_missing_is_named(project):
    folder, params = project
    with pytest.raises(SamplerError, match="nowhere/config.json: missing"):
        make_job(params(perceptual={"judge": str(folder / "nowhere")}), KEY)


def test_an_autoencoder_is_watched(project):
    _, params = project
    assert make_job(params(), KEY).watch.judge == str((project[0] / "judge").resolve())
