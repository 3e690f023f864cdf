"""What students promise beyond the contract of families: of classes, texts and nothing, on latents and pixels, U-Net
and transformer; taught or from scratch; each request with steps and guidance of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from components.composite.base import named, prefixed
from components.config import parse
from components.data.dataset import batches
from components.data.info import RunInfo
from components.errors import ConfigError, SamplerError
from components.families import family_class
from components.families.latent_diffusion import Model as LatentDiffusion
from components.few_step.base import TEACHER
from components.sampling.engine import Engine
from components.sampling.requests import Blend, Conditions, Request, Source
from components.sampling.tasks import Forward
from components.training.loop import step_phase
from tests.components.families.contract import CONFIG, active_phase, co_batched
from tests.components.families.test_diffusion_options import DESCRIBED, DIT, TEXT
from tests.components.helpers import IMAGES, LATENTS, Rows, assert_same, build, copied, stream, tiny

pytestmark = pytest.mark.usefixtures("exact")

STUDENTS = ("consistency", "shortcut", "meanflow", "progressive", "dmd2")
TAUGHT_ONLY = ("progressive", "dmd2")  # the data teach them nothing by themselves
VARIANTS = {
    "text": (TEXT, DESCRIBED),
    "pixels": ({}, IMAGES),
    "transformer of texts": ({**DIT, **TEXT}, DESCRIBED),
    "nothing": ({"conditioning": "none"}, LATENTS),
    "data": ({"regress": "data"}, LATENTS),
    "unguided": ({"most_guidance": 1.0}, LATENTS),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", STUDENTS)
def test_students_learn_and_sample_under_every_condition(name, variant):
    changes, data = VARIANTS[variant]
    if name in TAUGHT_ONLY and "regress" in changes:
        pytest.skip("it has nothing but its teacher")
    if name == "dmd2" and "transformer" in variant:
        changes = {**changes, "adversarial": None}  # two blocks have no middle
    student = build(name, data=data, **changes)
    student.nets.train()
    moving, before = active_phase(student, "distil"), copied(student.nets["denoiser"])
    step_phase(student, moving, next(batches(Rows(data), 6)), 0, CONFIG)
    assert all(parameter.grad is not None for parameter in moving.raw.parameters()), "an unused weight stalls DDP"
    assert any(not torch.equal(value, before[key]) for key, value in copied(student.nets["denoiser"]).items())
    conditions = {"prompt": ("a cat", "", "two birds")} if student.texts else {"label": student.cycled_labels(3)}
    settings = student.Settings(num_inference_steps=2, guidance_scale=1.0 if "most_guidance" in changes else 1.5)
    request = Request(torch.arange(3), settings, Conditions(**conditions))
    images = student.sample(request)
    assert images.shape == (3, *student.row_shape)
    (alone,) = student.sample(request.rows(slice(1, 2)))
    assert torch.allclose(alone, images[1], atol=1e-5)


COUNTS = {"progressive": (2, 2, 2), "dmd2": (1, 2, 4, 1, 2)}  # of steps, where not any will do


def asked(sampler, seed: int, steps: int) -> Request:
    settings = sampler.Settings(num_inference_steps=steps, guidance_scale=1 + 0.5 * seed)
    return Request(torch.tensor([seed]), settings, Conditions(label=torch.tensor([seed % 3])))


@pytest.mark.parametrize("name", STUDENTS)
def test_requests_of_any_steps_and_guidance_share_forwards(name):
    student = moved(build(name, **({"most_steps": 4} if name == "dmd2" else {})))
    counts = COUNTS.get(name, (1, 2, 3, 5, 8))
    requests = [asked(student, seed, steps) for seed, steps in enumerate(counts)]
    images, forwards = co_batched(student, requests)
    for request, image in zip(requests, images, strict=True):
        assert torch.allclose(student.sample(request), image, atol=1e-5)
    denoising = [forward for forward in forwards if forward.net == "denoiser"]
    assert max(forward.rows for forward in denoising) > 1
    assert sum(forward.rows for forward in denoising) == sum(counts), "a guided step is one row"


def test_a_student_and_its_teacher_are_served_by_one_engine():
    """Each by nets of its own, in turns; requests of either share forwards, and are as alone."""
    student = moved(build("consistency"))
    samplers = {"student": student, "teacher": moved(student.received[TEACHER])}
    nets = {named(name, net): call for name, sampler in samplers.items() for net, call in sampler.calls.items()}
    forwards: list[Forward] = []
    engine = Engine(nets, on_forward=forwards.append)
    orders = [(name, asked(samplers[name], seed, 1 + seed)) for seed in range(3) for name in samplers]
    futures = [
        engine.submit(lambda name=name, one=one: prefixed(name, samplers[name].trajectory(one), shows=True))
        for name, one in orders
    ]
    images = [future.result(60) for future in futures]
    engine.stop(timeout=60)
    for (name, one), image in zip(orders, images, strict=True):
        assert torch.allclose(samplers[name].sample(one), image, atol=1e-5)
    calls = {name: [one for one in forwards if one.net == named(name, "denoiser")] for name in samplers}
    assert all(max(one.num_calls for one in found) > 1 for found in calls.values())
    # guided from the second request on, by two rows of the teacher's and one of the student's
    assert {name: sum(one.rows for one in found) for name, found in calls.items()} == {
        "student": 1 + 2 + 3,
        "teacher": 1 + 2 * (2 + 3),
    }


def moved(student):
    """With weights away from the initial ones, so that all that the net is told matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.nets["denoiser"].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    student.nets.eval()
    return student


@pytest.mark.parametrize("name", STUDENTS)
def test_guidance_steers_and_sources_and_blends_are_taken(name):
    student = moved(build(name))

    def sample(scale: float, **more):
        settings = student.Settings(num_inference_steps=2, guidance_scale=scale)
        return student.sample(Request(torch.tensor([4]), settings, **more))

    label = Conditions(label=torch.tensor([1]))
    assert not torch.allclose(sample(1.0, conditions=label), sample(3.0, conditions=label), atol=1e-5)
    source = Source(torch.zeros(1, *student.row_shape), 0.5, torch.ones(1, 1, 16, 16))
    assert torch.isfinite(sample(1.0, conditions=Conditions(source=source))).all()
    blend = Blend(torch.tensor([9]), torch.tensor([0.5]))
    assert not torch.equal(sample(1.0, blend=blend), sample(1.0))
    with pytest.raises(SamplerError, match=r"^guidance_scale: this student learned scales from 1 to 4, found 4\.5$"):
        sample(4.5)
    with pytest.raises(SamplerError, match="^negative_label: "):
        sample(1.0, conditions=Conditions(negative_label=torch.tensor([1])))


@pytest.mark.parametrize("regress", ["teacher", "data"])
def test_what_is_learned_is_guided_at_the_chosen_levels_alone(regress):
    everywhere, between = (build("consistency", regress=regress, guided_levels=levels) for levels in (None, [0.5, 2.0]))
    sigma = torch.tensor([0.4, 0.5, 0.6, 2.0, 2.1, 50.0], dtype=torch.float64)
    rows = everywhere.rows(next(batches(Rows(LATENTS), 6)), sigma)
    rows = replace(rows, scale=torch.full((6,), 3.0))
    guided, plain = (
        everywhere.guided(replace(rows, scale=rows.scale * share), everywhere.of_teacher) for share in (1, 1 / 3)
    )
    within = torch.tensor([False, False, True, True, False, False])
    assert not torch.isclose(guided, plain).flatten(1).all(1).any()
    assert torch.equal(between.guided(rows, between.of_teacher), guided.where(within[:, None, None, None], plain))
    with pytest.raises(ConfigError, match="guided_levels: expected 0 <= first < second, found \\[5.0, 0.2\\]"):
        parse(type(between).Config, {"guided_levels": [5.0, 0.2]}, "model")


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_begins_as_its_teacher(name):
    student = build(name)
    teacher = student.received[TEACHER]
    x, level, label = torch.randn(2, *LATENTS.shape), torch.tensor([100.0, 500.0]), torch.tensor([0, 1])
    numbers = {number: torch.tensor([0.2, 0.9]) for number in student.config.numbers}
    with torch.inference_mode():
        ours = student.nets["denoiser"](x=x, level=level, label=label, **numbers)
        assert torch.equal(ours, teacher.nets["denoiser"](x=x, level=level, label=label))
    before = copied(teacher.nets["denoiser"])
    step_phase(student, active_phase(student, "distil"), next(stream(name)), 0, CONFIG)
    assert_same(copied(teacher.nets["denoiser"]), before)


@pytest.mark.parametrize("name", ["shortcut", "meanflow"])
def test_velocities_are_learned_without_a_teacher(name):
    student = build(name)
    student.received = {}
    losses = student.loss(student.nets["denoiser"], next(stream(name)))
    assert torch.isfinite(losses["loss"])


def test_progressive_rounds_halve_the_steps_and_keep_the_net_of_the_round_before():
    student = build("progressive", first_steps=8, last_steps=1, round_steps=3)
    assert [student.config.steps_at(step) for step in (0, 2, 3, 6, 9, 50)] == [8, 8, 4, 2, 1, 1]
    moving = active_phase(student, "distil")
    kept = copied(student.nets["former"])
    for step in range(16):
        batch = next(stream("progressive", start=step))
        assert batch.step == step
        if step in (3, 6, 9):  # the last round goes on from 9
            kept = copied(student.nets["denoiser"])
        step_phase(student, moving, batch, step, CONFIG)
        assert_same(copied(student.nets["former"]), kept)
    kind = family_class("progressive").Config
    with pytest.raises(ConfigError, match=r"first_steps: expected last_steps \(2\) times a power of 2, found 6"):
        parse(kind, {"first_steps": 6, "last_steps": 2}, "model")
    with pytest.raises(SamplerError, match=r"num_inference_steps: this student was distilled to 1, found 2"):
        student.sample(Request(torch.arange(1), student.Settings(num_inference_steps=2)))


def test_the_only_round_of_a_progressive_student_is_taught_by_its_teacher():
    student = build("progressive", first_steps=2, last_steps=2, round_steps=1)
    untrained = copied(student.nets["former"])
    batch = next(stream("progressive", start=5))
    wanted = student.loss(student.nets["denoiser"], batch)["loss"]
    assert_same(copied(student.nets["former"]), untrained)
    with torch.no_grad():
        for parameter in student.nets["former"].parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(student.loss(student.nets["denoiser"], batch)["loss"], wanted), "the net of a round ago is asked"


def test_matched_students_sample_with_the_steps_that_they_learned():
    assert build("dmd2", most_steps=8).config.counts == (1, 2, 4, 8)
    with pytest.raises(SamplerError, match=r"^num_inference_steps: this student learned 1, 2, found 3$"):
        student = build("dmd2")
        student.sample(Request(torch.arange(1), student.Settings(num_inference_steps=3)))
    kind = family_class("dmd2").Config
    with pytest.raises(ConfigError, match=r"most_steps: expected a power of two, found 3"):
        parse(kind, {"most_steps": 3}, "model")
    with pytest.raises(ConfigError, match=r"adversarial: .* this one has no deep part"):
        parse(kind, {"adversarial": {}, "backbone": {"widths": [8], "attention": [True]}}, "model")


def told(**changes) -> RunInfo:
    config = LatentDiffusion.Config(**{**tiny("consistency").config, **changes})
    return RunInfo(family="latent_diffusion", config=config.model_dump(mode="json"), data=LATENTS)


def test_a_teacher_of_another_kind_is_refused():
    kind = family_class("consistency")
    config = kind.Config(**tiny("consistency").config)
    kind.refuse_unfit_input(config, LATENTS, TEACHER, told())
    for changes, match in (
        ({"backbone": {"widths": (16,), "attention": (True,)}}, "expected a run with the same backbone"),
        ({"schedule": {"name": "cosine"}}, "expected a run with the same schedule"),
        ({"label_dropout": 0.0}, "never trained without its class"),
    ):
        with pytest.raises(ConfigError, match=f"^consistency: teacher: {match}"):
            kind.refuse_unfit_input(config, LATENTS, TEACHER, told(**changes))
    other = LATENTS.model_copy(update={"statistics": {"channel_mean": (0.0, 0.0), "channel_std": (1.0, 1.0)}})
    with pytest.raises(ConfigError, match="expected a run with the same statistics"):
        kind.refuse_unfit_input(config, other, TEACHER, told())
    for name in ("shortcut", "meanflow"):
        with pytest.raises(ConfigError, match="objective"):
            parse(family_class(name).Config, {"objective": "v"}, "model")


def test_settings_beyond_what_a_student_learned_are_refused():
    with pytest.raises(ConfigError, match=r"schedule\.name: a table has no derivative by time; expected flow"):
        parse(family_class("meanflow").Config, {"schedule": {"name": "cosine"}}, "model")
    shortcut = build("shortcut", halvings=2)
    assert shortcut.sample(asked(shortcut, 0, 4)).isfinite().all()
    with pytest.raises(SamplerError, match=r"^num_inference_steps: this student learned up to 4, .* found 5$"):
        shortcut.sample(asked(shortcut, 0, 5))
    unguided = build("meanflow", most_guidance=1.0)
    with pytest.raises(SamplerError, match="^guidance_interval: this student learned no guidance"):
        unguided.sample(Request(torch.arange(1), unguided.Settings(guidance_interval=(0.1, 5.0))))
