"""What a training reads of other runs: checked on the driver, part of its hash, there for every worker, kept where
sampling needs it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import components.families
from components.artifacts import run_folder
from components.config import Strict, parse
from components.errors import ConfigError, SamplerError
from components.families.base import Role
from components.families.dcgan import Model as DCGAN
from components.sampling.requests import Conditions, Request
from components.training.loop import State
from pipelines.support import paths
from pipelines.support.params import Params, load
from pipelines.train import make_job, provenance_of, relative, write_curves
from tests.benchmarks.common import write_noise
from tests.components.helpers import IMAGES, assert_same, build, stream, tiny
from tests.pipelines.in_process import train_stage

KEY = "autoencoders.vae"
TRAINING = {"steps": 2, "batch_size": 4, "report_every": 1, "save_every": 2, "ema_snapshots": 2}
PIXELS = {"backbone": {"widths": [8, 8], "attention": [False, True], "heads": 2, "context_dim": 8}}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project of noise with an untrained judge."""
    monkeypatch.chdir(tmp_path)
    for folder in (paths.TRAIN_IMAGES, paths.TEST_IMAGES):
        write_noise(folder, IMAGES, 20)
    write_run("judge", "judge")


def write_run(name: str, family: str, seed: int = 0) -> None:
    model = build(family, seed)
    average = {net: model.nets[net].state_dict() for net in model.kept}
    provenance = run_folder.Provenance(data="d", code="c", job="j", seed=seed, step=1)
    run_folder.write(paths.RUNS / name, family, model, State(1, {}, {}, average), provenance)


def params(inputs: dict[str, str], models: dict[str, dict] | None = None, **model) -> Params:
    """As params.yaml would say it; `models`: samplers on pixels, by name their model blocks."""
    images = {"data": str(paths.TRAIN_IMAGES), "training": TRAINING}
    content = {
        **{key: {} for key in ("encode", "evaluate", "promote")},
        "seed": 0,
        "data": {"source": "digits", "path": "data/raw"},
        "autoencoders": {"vae": {**images, "family": "vae", "model": {**tiny("vae").config, **model}}},
        "judges": {"judge": {**images, "family": "judge", "model": dict(tiny("judge").config)}},
        "samplers": {
            name: {**images, "family": "latent_diffusion", "model": block} for name, block in (models or {}).items()
        },
        "inputs": inputs,
    }
    Path("params.yaml").write_text(yaml.safe_dump(content))
    return load(Path("params.yaml"))


def test_a_perceptual_loss_is_handed_its_judge():
    plain = make_job(params({}), KEY)
    asked = params({"vae/judge": "runs/judge"}, perceptual={})
    job = make_job(asked, KEY)
    assert plain.inputs == () and plain.held_out == ""
    family = job.build()
    losses = family.loss(family.nets["autoencoder"], next(stream("vae")))
    assert losses["perceptual"] > 0
    before = job.hash
    write_run("judge", "judge", seed=1)
    assert make_job(asked, KEY).hash != before
    assert make_job(params({}), KEY).hash == plain.hash


def test_an_input_that_is_missing_damaged_or_of_another_kind_is_named():
    asked = params({"vae/judge": "runs/nowhere"}, perceptual={})
    with pytest.raises(SamplerError, match=r"nowhere/config\.json: missing"):
        make_job(asked, KEY)
    write_run("other", "dcgan")
    with pytest.raises(
        SamplerError, match="inputs: vae/judge: runs/other: expected a run of a judge, found one of dcgan"
    ):
        make_job(params({"vae/judge": "runs/other"}, perceptual={}), KEY)
    (paths.RUNS / "judge/classifier.safetensors").write_bytes(b"")
    with pytest.raises(SamplerError, match=r"classifier\.safetensors: not this network's weights"):
        make_job(params({"vae/judge": "runs/judge"}, perceptual={}), KEY).build()


@pytest.mark.parametrize(
    ("inputs", "model", "told"),
    [
        ({}, {"perceptual": {}}, r"params\.yaml\.inputs: expected vae/judge: runs/\.\.\., which vae needs"),
        ({"vae/teacher": "runs/judge"}, {}, "inputs: vae/teacher: expected a role of start, judge"),
        ({"nobody/judge": "runs/judge"}, {}, "inputs: nobody/judge: expected NAME/ROLE, the name one of vae, judge"),
        ({"vae": "runs/judge"}, {}, "inputs: vae: expected NAME/ROLE"),
        ({"vae/start": "runs/vae"}, {}, "inputs: vae/start: expected another run than its own"),
        ({"vae/start": "runs/judge"}, {}, "expected a run of a vae, found one of judge"),
    ],
)
def test_inputs_that_nothing_takes_are_refused_at_the_door(inputs, model, told):
    with pytest.raises((ConfigError, SamplerError), match=told) as caught:
        params(inputs, **model)
    assert "\n" not in str(caught.value)


def test_checkpoints_are_validated_by_the_judge_on_the_test_split():
    job = make_job(params({"vae/judge": "runs/judge"}), KEY)
    assert job.input("judge") == (paths.RUNS / "judge").resolve()
    assert job.held_out == str(paths.TEST_IMAGES.resolve())


def test_the_best_checkpoint_is_told_by_figures_that_there_are_and_depends_on_what_is_held_out():
    asked = params({}, {"ldm": PIXELS})

    def job(**keep):
        block = asked.samplers["ldm"]
        training = block.training.model_copy(update=keep)
        samplers = {"ldm": block.model_copy(update={"training": training})}
        return make_job(asked.model_copy(update={"samplers": samplers}), "samplers.ldm")

    assert job().held_out and not job().held_out_hash
    best = job(keep="best", keep_by="live_loss_gap")
    before = best.hash
    assert before == job(keep="best", keep_by="live_loss_gap").hash
    assert dataclasses.replace(best, held_out_hash="another").hash != before


def test_a_training_starts_from_another_runs_weights_and_model():
    first = params({}, {"base": PIXELS})
    base = train_stage(first, "samplers.base")
    both = params({"tuned/start": "runs/base"}, {"base": PIXELS, "tuned": {"optimizer": {"learning_rate": 1e-5}}})
    job = make_job(both, "samplers.tuned")
    assert job.config.backbone == base.family.config.backbone
    assert job.config.optimizer.learning_rate == 1e-5
    assert_same(dict(job.build().nets["denoiser"].state_dict()), dict(base.family.nets["denoiser"].state_dict()))


def test_a_smaller_net_guides_and_lies_in_the_run_folder():
    models = {"small": {"backbone": {**PIXELS["backbone"], "widths": [4, 4]}}, "guided": PIXELS}
    models = {name: {**block, "conditioning": "class"} for name, block in models.items()}
    models["small"]["backbone"]["heads"] = 2
    asked = params({"guided/guide": "runs/small"}, models)
    small = train_stage(asked, "samplers.small")
    run = train_stage(asked, "samplers.guided")
    shutil.rmtree(paths.RUNS / "small")
    assert (run.folder / "guide.safetensors").is_file()
    sampler = run_folder.load(run.folder).family
    assert_same(dict(sampler.nets["guide"].state_dict()), dict(small.family.nets["denoiser"].state_dict()))

    def sample(**settings):
        settings = sampler.Settings(num_inference_steps=2, **settings)
        return sampler.sample(Request(torch.arange(2), settings, Conditions(label=torch.tensor([0, 1]))))

    guided = sample(guidance="autoguidance", guidance_scale=3.0)
    assert not torch.equal(guided, sample(guidance_scale=1.0)) and not torch.equal(guided, sample(guidance_scale=3.0))
    assert_same({"a": sample(guidance="autoguidance", guidance_scale=1.0)}, {"a": sample(guidance_scale=1.0)})
    other = {**models, "guided": {**models["guided"], "objective": "edm"}}
    train_stage(params({}, models), "samplers.small")
    with pytest.raises(ConfigError, match="guide: expected a run with the same objective, found another"):
        make_job(params({"guided/guide": "runs/small"}, other), "samplers.guided")


def test_without_a_guide_autoguidance_is_refused_at_the_door():
    content = yaml.safe_load(Path("params.yaml").read_text()) if Path("params.yaml").exists() else None
    assert content is None
    asked = params({}, {"small": PIXELS, "guided": PIXELS})
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["samplers"]["guided"]["candidates"] = [{"guidance": "autoguidance"}]
    Path("params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="autoguidance needs a worse net"):
        load(Path("params.yaml"))
    content["inputs"] = {"guided/guide": "runs/small"}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    assert load(Path("params.yaml")).samplers["guided"].candidates != asked.samplers["guided"].candidates


class Student(DCGAN):
    """Its generator learns to make the images of a frozen teacher from equal noise."""

    class Config(DCGAN.Config):
        pass

    @classmethod
    def roles(cls, config: Strict) -> dict[str, Role]:
        return {"teacher": Role(needed=True)}

    def generator_loss(self, net, batch):
        taught = self.received["teacher"].nets["generator"]
        codes = batch.draws.normal("code", (self.config.latent_dim,))
        with torch.no_grad():
            wanted = taught(codes)
        return {"loss": (net(codes) - wanted).square().mean()}


def register(monkeypatch, model: type) -> None:
    """A family without a file."""
    real = components.families.family_class

    def family_class(name: str, where: str = "family"):
        return model if name == model.__name__.lower() else real(name, where)

    for module in ("infra.ray_train.job", "pipelines.train", "pipelines.support.inputs", "pipelines.support.params"):
        monkeypatch.setattr(f"{module}.family_class", family_class)


def test_a_frozen_teacher_teaches(monkeypatch):
    register(monkeypatch, Student)
    write_run("teacher", "dcgan", seed=3)
    asked = params({})
    content = yaml.safe_load(Path("params.yaml").read_text())
    block = {**content["judges"]["judge"], "family": "student", "model": dict(tiny("dcgan").config)}
    content |= {"samplers": {"student": block}, "inputs": {"student/teacher": "runs/teacher"}}
    asked = parse(Params, content, "params.yaml")
    monkeypatch.setattr("pipelines.support.code_closure.of_training", lambda family: [])
    job = make_job(asked, "samplers.student")
    family = job.build()
    teacher = family.received["teacher"]
    assert not any(weight.requires_grad for weight in teacher.nets.parameters()) and not teacher.nets.training
    before = {name: value.clone() for name, value in teacher.nets.state_dict().items()}
    phase = next(phase for phase in family.phases if phase.net == "generator")
    batch = next(stream("dcgan"))
    family.generator_loss(family.nets["generator"], batch)["loss"].backward()
    assert phase.net == "generator" and any(
        weight.grad is not None and weight.grad.any() for weight in family.nets["generator"].parameters()
    )
    assert_same(before, dict(teacher.nets.state_dict()))


def test_curves_are_a_table_a_phase(tmp_path):
    rows = [{"step": 1, "a/loss": 2.0, "a/kl": 1.0, "b/loss": 3.0, "watch/psnr": 9.0}, {"step": 2, "a/loss": 1.0}]
    write_curves(tmp_path / "curves", rows)
    assert {path.name for path in (tmp_path / "curves").iterdir()} == {"a.csv", "b.csv"}
    assert (tmp_path / "curves/a.csv").read_text() == "step,loss,kl\n1,2.0,1.0\n2,1.0,\n"


def with_student(family: str = "consistency", teacher: str | None = "runs/big", **model) -> Params:
    """A diffusion run `big` and a student of it, whose block says no more than `model`."""
    params({}, {"big": PIXELS, "student": model})
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["samplers"]["student"]["family"] = family
    content["inputs"] = {} if teacher is None else {"student/teacher": teacher}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    return load(Path("params.yaml"))


def test_a_student_takes_over_what_its_teacher_is_and_tells_who_taught_it():
    asked = with_student(label_dropout=0.2)
    teacher = train_stage(asked, "samplers.big").family
    job = make_job(asked, "samplers.student")
    assert job.config.backbone == teacher.config.backbone
    assert job.config.label_dropout == 0.2, "what its own block says stands"
    student = job.build()
    ours, theirs = (family.nets["denoiser"].state_dict() for family in (student, teacher))
    assert_same({name: ours[name] for name in theirs}, dict(theirs))
    state = State(2, {}, {}, {"denoiser": ours})
    where, content = provenance_of(job, state).inputs["teacher"].split()
    assert where.endswith("runs/big") and len(content) == 32
    run_folder.write(paths.RUNS / "student", job.family, student, state, provenance_of(job, state))
    loaded = run_folder.load(paths.RUNS / "student")
    assert loaded.config.provenance.inputs["teacher"] == f"{where} {content}"
    shutil.rmtree(paths.RUNS / "big")  # a student needs its teacher no more
    settings = loaded.family.Settings(num_inference_steps=2, guidance_scale=1.5)
    request = Request(torch.arange(2), settings, Conditions(label=torch.tensor([0, 1])))
    assert loaded.family.sample(request).shape == (2, *IMAGES.shape)


def test_a_teacher_that_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"expected student/teacher: runs/\.\.\., which student needs"):
        with_student(teacher=None)
    with pytest.raises((ConfigError, SamplerError), match=r"student/teacher: .*runs/judge"):
        with_student(teacher="runs/judge")
    asked = with_student(schedule={"name": "cosine"})
    train_stage(asked, "samplers.big")
    with pytest.raises(ConfigError, match=r"^consistency: teacher: expected a run with the same schedule"):
        make_job(asked, "samplers.student")
    with pytest.raises(ConfigError, match=r"samplers\.student\.model\.objective: "):
        make_job(with_student("shortcut", objective="v"), "samplers.student")


def test_an_aligned_transformer_is_handed_its_teacher_and_needs_it_no_more():
    backbone = {"name": "dit", "patch": 4, "width": 16, "depth": 2, "heads": 2}
    model = {"pixels": {"backbone": backbone, "align": {"layer": 1}}}
    with pytest.raises(ConfigError, match=r"inputs: expected pixels/teacher: runs/\.\.\., which pixels needs"):
        params({}, model)
    with pytest.raises(SamplerError, match="pixels/teacher: runs/vae: expected a run of a judge, found one of vae"):
        params({"pixels/teacher": "runs/vae"}, model)
    asked = params({"pixels/teacher": "runs/judge"}, model)
    job = make_job(asked, "samplers.pixels")
    assert [(given.role, Path(given.path).name) for given in job.inputs] == [("teacher", "judge")]
    run = train_stage(asked, "samplers.pixels")
    assert run.config.data.inputs["teacher"].family == "judge"
    shutil.rmtree(paths.RUNS / "judge")
    again = run_folder.load(paths.RUNS / "pixels").family
    assert again.sample(Request(torch.tensor([1]), again.Settings(num_inference_steps=2))).isfinite().all()


def test_what_is_learned_from_is_named_by_its_place_here_also_where_it_is_a_link(tmp_path, monkeypatch):
    (tmp_path / "cache/3fa9").mkdir(parents=True)
    (tmp_path / "here/runs").mkdir(parents=True)
    (tmp_path / "here/runs/ldm").symlink_to(tmp_path / "cache/3fa9")
    monkeypatch.chdir(tmp_path / "here")
    assert relative(str(Path("runs/ldm").absolute())) == "runs/ldm"
