"""Looks at checkpoints: drawn and measured with the checkpoint's weights, kept as files."""

import dataclasses

import pytest
import torch

from components.artifacts import run_folder
from components.artifacts.run_folder import Provenance
from components.families import family_class
from components.training.loop import State
from infra.ray_train import Input, Job, validation
from infra.storage.store import Store
from tests.infra.ray_train.jobs import make_job, write_images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("looks")
    images = write_images(root / "images")
    job = make_job(images, "judge")
    judge = job.build()
    average = {name: net.state_dict() for name, net in judge.nets.items()}
    state = State(1, {}, {}, average)
    run_folder.write(root / "judge", "judge", judge, state, Provenance(data="", code="", job="", seed=0, step=1))
    return root


class Watched(family_class("wgan_gp")):
    """Tells what it was given, and a weight of each of its nets."""

    def watch(self, train, held_out, judge):
        return {
            "rows": float(len(train["image"]) + len(held_out["image"])),
            "classes": float(len(judge.data.classes)),
            "generator": next(self.nets["generator"].parameters()).sum().item(),
            "discriminator": next(self.nets["discriminator"].parameters()).sum().item(),
        }


class WatchedJob(Job):
    def build(self):
        torch.manual_seed(self.seed)
        return Watched(self.config, self.info)


def test_a_look_sees_the_average_of_what_is_kept_and_the_live_weights_of_the_rest(folders):
    job = make_job(folders / "images", "wgan_gp")
    changes = {
        "inputs": (Input("judge", str(folders / "judge"), "hash"),),
        "held_out": str(folders / "images"),
    }
    job = WatchedJob(**{**{f.name: getattr(job, f.name) for f in dataclasses.fields(job)}, **changes})
    family = job.build()
    average = {"generator": {name: value + 1 for name, value in family.nets["generator"].state_dict().items()}}
    state = State(3, {name: net.state_dict() for name, net in family.nets.items()}, {}, average)
    picture, figures = validation.Validator(job, "cpu").look(state)
    assert picture.startswith(b"\x89PNG")
    first = {name: next(net.parameters()).detach() for name, net in family.nets.items()}
    assert figures["watch/rows"] == 128
    assert figures["watch/classes"] == 2
    assert figures["watch/generator"] == pytest.approx(float((first["generator"] + 1).sum()), rel=1e-5)
    assert figures["watch/discriminator"] == pytest.approx(float(first["discriminator"].sum()), rel=1e-5)


def test_training_does_not_notice_a_look(folders):
    job = make_job(folders / "images", "wgan_gp")
    family = job.build()
    validator = validation.Validator(job, "cpu")
    before = {name: value.clone() for name, value in family.nets.state_dict().items()}
    state = State(0, {name: net.state_dict() for name, net in family.nets.items()}, {}, {})
    validator.look(state)
    assert family.nets.training
    assert all(torch.equal(before[name], value) for name, value in family.nets.state_dict().items())


def test_figures_are_kept_by_step(tmp_path):
    run = Store.open(tmp_path)
    validation.keep(run, 20, {"watch/a": 1.0})
    validation.keep(run, 5, {"watch/a": 2.0})
    assert validation.kept(run) == {5: {"watch/a": 2.0}, 20: {"watch/a": 1.0}}
    assert validation.kept(run / "nothing") == {}
