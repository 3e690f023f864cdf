"""Checkpoint validation: drawn and measured with the checkpoint's weights, kept as files."""

import dataclasses
import itertools
import shutil

import pytest
import torch

from components.artifacts import run_folder
from components.artifacts.run_folder import Provenance
from components.errors import DataError, SamplerError, TrainingError
from components.families import family_class
from components.metrics.figures import Definition, Figure, named
from components.training.loop import State, TrainingConfig
from infra.ray_train import Input, Job, validation
from infra.storage.store import Store
from tests.infra.ray_train.jobs import make_job, write_images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("validation")
    images = write_images(root / "images")
    job = make_job(images, "judge")
    judge = job.build()
    average = {name: net.state_dict() for name, net in judge.nets.items()}
    state = State(1, {}, {}, average)
    run_folder.write(root / "judge", "judge", judge, state, Provenance(data="", code="", job="", seed=0, step=1))
    return root


def figure(name: str, value: float) -> Figure:
    return Definition(name=name, label=name, explanation="", kind="count", better=None).figure(value)


class Validated(family_class("wgan_gp")):
    """Tells what it was given, and a weight of each of its nets."""

    def validate(self, train, held_out, judge):
        return named(
            figure("rows", len(train["image"]) + len(held_out["image"])),
            figure("classes", len(judge.data.classes)),
            figure("generator", next(self.nets["generator"].parameters()).sum().item()),
            figure("discriminator", next(self.nets["discriminator"].parameters()).sum().item()),
        )


class ValidatedJob(Job):
    def build(self):
        torch.manual_seed(self.seed)
        return Validated(self.config, self.info)


def test_validation_sees_the_average_of_what_is_kept_and_the_live_weights_of_the_rest(folders):
    job = make_job(folders / "images", "wgan_gp")
    changes = {
        "inputs": (Input("judge", str(folders / "judge"), "hash"),),
        "held_out": str(folders / "images"),
    }
    job = ValidatedJob(**{**{f.name: getattr(job, f.name) for f in dataclasses.fields(job)}, **changes})
    family = job.build()
    average = {"generator": {name: value + 1 for name, value in family.nets["generator"].state_dict().items()}}
    state = State(3, {name: net.state_dict() for name, net in family.nets.items()}, {}, average)
    picture, figures = validation.Validator(job, "cpu").validate(state)
    figures = validation.tracked(figures)
    assert picture.startswith(b"\x89PNG")
    first = {name: next(net.parameters()).detach() for name, net in family.nets.items()}
    assert figures["validation/rows"] == 128
    assert figures["validation/classes"] == 2
    assert figures["validation/generator"] == pytest.approx(float((first["generator"] + 1).sum()), rel=1e-5)
    assert figures["validation/discriminator"] == pytest.approx(float(first["discriminator"].sum()), rel=1e-5)


def test_training_does_not_notice_its_validation(folders):
    job = make_job(folders / "images", "wgan_gp")
    family = job.build()
    validator = validation.Validator(job, "cpu")
    before = {name: value.clone() for name, value in family.nets.state_dict().items()}
    state = State(0, {name: net.state_dict() for name, net in family.nets.items()}, {}, {})
    validator.validate(state)
    assert family.nets.training
    assert all(torch.equal(before[name], value) for name, value in family.nets.state_dict().items())


def test_held_out_losses_are_of_both_kinds_of_weights_and_need_no_judge(folders):
    job = dataclasses.replace(make_job(folders / "images", "latent_diffusion"), held_out=str(folders / "images"))
    family = job.build()
    live = {"denoiser": family.nets["denoiser"].state_dict()}
    average = {"denoiser": {name: value * 0.9 for name, value in live["denoiser"].items()}}
    found = validation.tracked(validation.Validator(job, "cpu").validate(State(3, live, {}, average))[1])
    assert found["validation/loss_gap"] == found["validation/live_loss_gap"] == 0, "the same rows on either side"
    assert found["validation/held_out_loss"] != found["validation/live_held_out_loss"]
    assert {f"validation/training_loss_{level}" for level in range(1, 9)} <= found.keys()
    without = dataclasses.replace(job, held_out="")
    assert validation.Validator(without, "cpu").validate(State(3, live, {}, average))[1] == {}


def test_a_judge_that_is_not_whole_is_told_before_any_step(folders, tmp_path):
    job = dataclasses.replace(make_job(folders / "images", "wgan_gp"), held_out=str(folders / "images"))

    def check(folder) -> None:
        inputs = (Input("judge", str(folder), "hash"),)
        validation.Validator(dataclasses.replace(job, inputs=inputs), "cpu").check()

    check(folders / "judge")
    shutil.copytree(folders / "judge", tmp_path / "judge")
    (tmp_path / "judge/classifier.safetensors").write_bytes(b"")
    with pytest.raises(SamplerError, match=r"classifier\.safetensors: not this network's weights"):
        check(tmp_path / "judge")
    with pytest.raises(DataError, match="manifest"):
        validation.Validator(dataclasses.replace(job, held_out=str(tmp_path)), "cpu").check()


def test_figures_are_kept_by_step(tmp_path):
    run = Store.open(tmp_path)
    first, second = named(figure("a", 2.0)), named(figure("a", 1.0))
    validation.keep(run, 20, second)
    validation.keep(run, 5, first)
    assert validation.kept(run) == {5: first, 20: second}
    assert validation.kept(run / "nothing") == {}


def kept_after(run: Store, values: dict[int, float], order: list[int], better: str = "lower"):
    """What is kept of checkpoints with these values of a figure, validated in an order."""
    config = TrainingConfig(steps=9, batch_size=1, keep="best", keep_by="a")
    defined = Definition(name="a", label="a", explanation="", kind="score", better=better)
    for step in order:
        figures = named(defined.figure(values[step]))
        validation.keep(run, step, figures)
        state = State(step, {}, {}, {"net": {"weight": torch.full((2,), float(step))}})
        validation.keep_best(run, state, figures, config)
    assert len((run / validation.BEST).names()) == 1
    return validation.best(run, config)


@pytest.mark.parametrize("order", list(itertools.permutations([3, 6, 9])))
def test_the_best_checkpoint_is_kept_in_whatever_order_they_are_validated(tmp_path, order):
    values = {3: 2.0, 6: 1.0, 9: 1.0}
    lowest = kept_after(Store.open(tmp_path / "low"), values, order)
    assert (lowest.step, lowest.figure, lowest.value) == (6, "a", 1.0), "the first of equals"
    assert lowest.average["net"]["weight"].tolist() == [6.0, 6.0]
    assert kept_after(Store.open(tmp_path / "high"), values, order, better="higher").step == 3


def test_a_checkpoint_validated_again_after_a_restart_is_kept_once(tmp_path):
    assert kept_after(Store.open(tmp_path), {3: 1.0, 6: 2.0}, [3, 6, 3, 6]).step == 3


def test_a_figure_that_checkpoints_lack_is_told_with_those_they_have(tmp_path):
    run, config = Store.open(tmp_path), TrainingConfig(steps=9, batch_size=1, keep="best", keep_by="b")
    scored = Definition(name="a", label="a", explanation="", kind="score", better="higher").figure(1.0)
    with pytest.raises(TrainingError, match=r"keep_by: no figure 'b' .* expected one of a$"):
        validation.keep_best(run, State(3, {}, {}, {}), named(scored), config)
    with pytest.raises(TrainingError, match="no checkpoint was measured by 'b'"):
        validation.best(run, config)
    plain = TrainingConfig(steps=9, batch_size=1)
    validation.keep_best(run, State(3, {}, {}, {}), {}, plain)
    assert validation.best(run, plain) is None and (run / validation.BEST).names() == []
