"""Levers of a transformer's training: tokens that bypass blocks, and tokens aligned to a judge's features."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from components.artifacts import run_folder
from components.config import parse
from components.data.dataset import Batch, batches
from components.data.info import TEACHER, RunInfo
from components.diffusion.alignment import maps, misalignment, on_grid
from components.errors import ConfigError
from components.families import family_class
from components.families.base import roles_of
from components.training.loop import TrainingConfig, fit, step_phase
from tests.components.families.contract import CONFIG, PROVENANCE, active_phase
from tests.components.families.test_diffusion_options import asked
from tests.components.helpers import IMAGES, LATENTS, Rows, assert_same, build, copied, no_wrap, tiny, tiny_data

pytestmark = pytest.mark.usefixtures("exact")

DIT = {"name": "dit", "width": 16, "depth": 4, "heads": 2, "context_dim": 8, "patch": 2}
ROUTE = {"backbone": {**DIT, "route": {"share": 0.5, "blocks": [1, 3]}}}
ALIGN = {"backbone": DIT, "align": {"layer": 2}}
BOTH = {**ROUTE, "align": {"layer": 3}, "weighting": {"name": "learned"}}
JOINT = {"backbone": {**ROUTE["backbone"], "name": "mmdit"}, "align": {"layer": 1}}
LEVERS = {"route": ROUTE, "align": ALIGN, "both": BOTH, "both, joint": JOINT}


def judged(data=LATENTS):
    """Data whose inputs name a judge."""
    of = RunInfo(family="judge", config=dict(tiny("judge").config), data=IMAGES)
    return data.model_copy(update={"inputs": {TEACHER: of}})


def levered(changes, seed=0, data=LATENTS):
    if "align" not in changes:
        return build("latent_diffusion", seed, data, **changes)
    family, teacher = build("latent_diffusion", seed, judged(data), **changes), build("judge", 5)
    teacher.nets.requires_grad_(False).eval()
    family.receive(TEACHER, teacher)
    if data is LATENTS:  # the autoencoder of the latents is the data's, whatever the seed
        family.nets["autoencoder"].load_state_dict(build("latent_diffusion").nets["autoencoder"].state_dict())
    return family


def batch_of(data=LATENTS, step=0, **where) -> Batch:
    return next(batches(Rows(data), 6, start=step, **where))


def counted_tokens(family) -> list[int]:
    """How many tokens each block is asked about from now on."""
    seen = []
    for block in family.nets["denoiser"].backbone.trunk.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("name", LEVERS)
def test_every_weight_moves_at_its_own_steps_alone(name):
    family = levered(LEVERS[name])
    family.nets.train()
    moving = active_phase(family, "denoise")
    before = copied(family.received[TEACHER].nets["classifier"]) if TEACHER in family.received else {}
    figures = step_phase(family, moving, batch_of(), 0, CONFIG)
    assert moving.net.calls == 1 and moving.net.learning == []
    assert ("alignment" in figures) == ("align" in LEVERS[name])
    assert all(parameter.grad is not None for parameter in moving.raw.parameters()), "an unused weight stalls DDP"
    if before:
        assert_same(copied(family.received[TEACHER].nets["classifier"]), before)
        assert moving.raw.projector[-1].weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", LEVERS)
def test_an_interrupted_run_ends_bit_identical(name):
    config, kept = TrainingConfig(steps=4, batch_size=6, report_every=2, save_every=2), {}

    def run(start=None):
        family = levered(LEVERS[name], seed=0 if start is None else 1)
        stream = batches(Rows(LATENTS), 6, start=start.step if start else 0)
        functions = {"wrap": no_wrap, "report": lambda step, figures: figures}
        save = {"save": lambda state: kept.setdefault(state.step, copy.deepcopy(state))}
        return fit(family, stream, config, start=start, **functions, **save)

    whole = run()
    assert_same(vars(run(kept[2])), vars(whole))


@pytest.mark.parametrize("name", LEVERS)
@pytest.mark.parametrize("world", [2, 3])
def test_the_weighted_mean_of_rank_losses_is_the_global_loss(name, world):
    family = levered(LEVERS[name])

    def loss(batch):
        return family.loss(family.nets["denoiser"], batch)["loss"].detach() * batch.weight

    with torch.no_grad():
        for parameter in family.nets["denoiser"].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        parts = [loss(batch_of(rank=rank, world=world, step=3)) for rank in range(world)]
        assert torch.allclose(torch.stack(parts).mean(), loss(batch_of(step=3)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["dit", "mmdit"])
def test_tokens_bypass_in_training_alone_and_only_for_its_steps(kind):
    route = {"share": 0.25, "blocks": [1, 3], "steps": 2}
    family = levered({"backbone": {**DIT, "name": kind, "route": route}})
    seen = counted_tokens(family)
    family.loss(family.nets["denoiser"], batch_of(step=1))
    assert seen == [16, 12, 12, 16]
    seen.clear()
    family.loss(family.nets["denoiser"], batch_of(step=2))
    family.held_out_losses(batch_of().columns, batch_of().draws)
    family.sample(asked(family))
    assert set(seen) == {16}


def test_which_tokens_bypass_is_of_row_and_step():
    family = levered(ROUTE)
    first, again, later = (family.routed(batch_of(step=step), torch.zeros(6, *LATENTS.shape)) for step in (3, 3, 4))
    assert torch.equal(first["routed"], again["routed"]) and not torch.equal(first["routed"], later["routed"])
    assert first["routed"].shape == (6, 16) and not torch.equal(first["routed"][0], first["routed"][1])
    second = family.routed(batch_of(step=3, rank=1, world=2), torch.zeros(3, *LATENTS.shape))
    assert torch.equal(second["routed"], first["routed"][3:])


def test_films_are_routed_at_any_length():
    changes = {**tiny("video_diffusion").config, "shorter_share": 1.0}
    backbone = {**changes["backbone"], "depth": 3, "route": {"blocks": [1, 2]}}
    family = build("video_diffusion", **{**changes, "backbone": backbone, "image_share": 0.5})
    for step in range(4):
        batch = next(batches(Rows(tiny_data("video_diffusion")), 6, start=step))
        family.loss(family.nets["denoiser"], batch)["loss"].backward()
    assert all(parameter.grad is not None for parameter in family.nets["denoiser"].parameters())


@pytest.mark.parametrize("data", [LATENTS, IMAGES], ids=["latents", "pixels"])
def test_the_wanted_features_are_the_judges_of_the_clean_images(data):
    family, batch = levered(ALIGN, data=data), batch_of(data)
    losses = family.loss(family.nets["denoiser"], batch)
    rows = family.space.clean(batch, False)
    judge = family.received[TEACHER].nets["classifier"]
    images = rows if data is IMAGES else family.nets["autoencoder"].decode(rows).clamp(-1, 1)
    side = data.shape[1] // 2
    grids = [F.interpolate(one, (side, side), mode="bilinear", antialias=True) for one in judge.maps(images)[1:]]
    wanted = torch.cat([F.normalize(one, dim=1) for one in grids], 1).flatten(2).transpose(1, 2)
    found = on_grid(maps(judge, images), (side, side))
    assert torch.allclose(found, wanted)
    sigma = family._sigma(family.times(batch.draws).double())
    inputs, _ = family._question(family.space.normalise(rows), batch.draws.normal("noise", rows.shape[1:]), sigma)
    inputs |= family._training_condition(batch, family.config.label_dropout)
    _, projected = family.nets["denoiser"](**inputs, tap=2)
    cosine = (F.normalize(projected, dim=2) * F.normalize(wanted, dim=2)).sum(2)
    assert torch.allclose(losses["alignment"], 1 - cosine.mean(), atol=1e-6)
    plain = family.nets["denoiser"](**inputs)
    assert torch.equal(plain, family.nets["denoiser"](**inputs, tap=2)[0]), "to look changes no answer"


def test_misalignment_ends_at_none_and_opposite():
    x = torch.randn(2, 3, 4)
    assert misalignment(x, 5 * x).abs() < 1e-6 and misalignment(x, -x) == pytest.approx(2)
    assert misalignment((1e4 * x).half(), x).isfinite()


def test_after_its_steps_nothing_is_aligned_and_no_weight_is_without_a_gradient():
    family = levered({**ALIGN, "align": {"layer": 2, "steps": 3}})
    moving = active_phase(family, "denoise")
    assert "alignment" in step_phase(family, moving, batch_of(step=2), 2, CONFIG)
    assert "alignment" not in step_phase(family, moving, batch_of(step=3), 3, CONFIG)
    assert all(not parameter.grad.any() for parameter in moving.raw.projector.parameters())


def test_tokens_learn_to_point_where_the_features_point():
    family = levered({**ALIGN, "align": {"layer": 2, "weight": 1.0}})
    optimizer = torch.optim.Adam(family.nets["denoiser"].parameters(), lr=5e-3)
    found = []
    for _, batch in zip(range(30), batches(Rows(LATENTS), 16), strict=False):
        optimizer.zero_grad()
        losses = family.loss(family.nets["denoiser"], batch)
        losses["loss"].backward()
        optimizer.step()
        found.append(losses["alignment"].detach())
    assert torch.stack(found[-5:]).mean() < 0.5 * torch.stack(found[:5]).mean()


def test_a_run_folder_needs_no_teacher_and_guides_others(tmp_path):
    family = levered(ALIGN)
    config = TrainingConfig(steps=2, batch_size=6, report_every=2, save_every=2)
    functions = {"wrap": no_wrap, "report": lambda step, figures: figures, "save": lambda state: None}
    state = fit(family, batches(Rows(LATENTS), 6), config, start=None, **functions)
    run_folder.write(tmp_path / "run", "latent_diffusion", family, state, PROVENANCE)
    assert not list((tmp_path / "run").glob("teacher*"))
    run = run_folder.load(tmp_path / "run")
    assert run.family.sample(asked(run.family)).isfinite().all()

    of = RunInfo(family="latent_diffusion", config=run.config.config, data=run.config.data)
    guided = build("latent_diffusion", data=LATENTS.model_copy(update={"inputs": {"guide": of}}), backbone=DIT)
    guided.receive("guide", run.family)
    assert guided.sample(asked(guided, guidance="autoguidance")).isfinite().all()


def test_a_teacher_is_asked_for_where_it_is_needed_and_refused_where_it_sees_something_else():
    kind = family_class("latent_diffusion")
    assert TEACHER not in roles_of("latent_diffusion", kind, kind.Config())
    assert roles_of("latent_diffusion", kind, parse(kind.Config, ALIGN, "model"))[TEACHER].needed
    with pytest.raises(ConfigError, match=r"align: expected the run of a judge in inputs, NAME/teacher: runs/\.\.\."):
        build("latent_diffusion", **ALIGN)
    other = RunInfo(family="judge", config={}, data=IMAGES.model_copy(update={"shape": (1, 8, 8)}))
    with pytest.raises(ConfigError, match=r"align: expected a teacher of image rows \(1, 16, 16\), found .*8, 8"):
        build("latent_diffusion", data=LATENTS.model_copy(update={"inputs": {TEACHER: other}}), **ALIGN)
    with pytest.raises(ConfigError, match="align, backbone.route: levers of latent_diffusion's transformers"):
        parse(family_class("sdxl").Config, ROUTE, "model")
    with pytest.raises(ConfigError, match="align: expected the run of a judge in inputs"):
        build("video_diffusion", **{**tiny("video_diffusion").config, "align": {"layer": 1}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"align": {}}, "model: align: the resolutions of a unet differ; expected backbone dit or mmdit"),
        ({**ALIGN, "align": {"layer": 5}}, r"align.layer: expected at most .* \(4\), found 5"),
        ({**ROUTE, "align": {"layer": 2}}, r"bypass blocks 1 to 3 .*expected at most 1, or 3 and more, found 2"),
        ({"backbone": {**DIT, "route": {"blocks": [1, 4]}}}, r"the second below depth \(4\), found \[1, 4\]"),
        ({"backbone": {**DIT, "route": {"blocks": [2, 2]}}}, r"blocks: expected 0 <= first < second, found \[2, 2\]"),
        ({"backbone": {**DIT, "route": {"share": 1.0}}}, r"model\.backbone\.route\.share: .*less than 1"),
        ({"backbone": {"route": {}}}, r"model\.backbone\.route: unknown key"),
    ],
)
def test_levers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(family_class("latent_diffusion").Config, changes, "model")
