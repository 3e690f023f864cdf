"""What every family promises to the training loop."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from components.config import parse
from components.data.dataset import Batch
from components.data.randomness import Draws
from components.errors import ConfigError, DataError, SamplerError
from components.families import family_class, family_name, family_names
from components.families.base import Family, Tiny
from components.training.loop import fit, step_phase
from tests.clones import ROOT
from tests.components.families.contract import CONFIG, SAMPLERS, Counted, active_phase, stored, trained
from tests.components.helpers import (
    CAPTION_LENGTH,
    LATENTS,
    Rows,
    assert_same,
    build,
    copied,
    no_wrap,
    stream,
    tiny,
    tiny_data,
)

pytestmark = pytest.mark.usefixtures("exact")

FIGURES = {"accuracy", "motion_accuracy"}  # what a loss tells for the curves only
PHASES = [(name, phase.name) for name in family_names() for phase in build(name).phases]


@pytest.mark.parametrize("name", family_names())
def test_every_file_brings_a_model_and_its_tiny_configuration(name):
    kind = family_class(name)
    assert issubclass(kind, Family) and kind.__name__ == "Model"
    assert kind.__module__ == f"components.families.{name}" and family_name(kind) == name
    assert isinstance(tiny(name), Tiny)


@pytest.mark.parametrize("name", family_names())
def test_it_is_built_without_memory_for_its_weights(name):
    """As `prepare` does it, to see whether the data fit."""
    kind, example = family_class(name), tiny(name)
    with torch.device("meta"):
        kind(kind.Config(**example.config), tiny_data(name))


def small_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of rows of its medium, such as no net of several resolutions takes."""
    sides = [(1, 1), (2, 2), (3, 3), (2, 8), (6, 6)]
    if len(shape) == 2:
        return [(1, length) for length in (1, 2, 10, 64, 256, 300)]
    if len(shape) == 4:
        return [(shape[0], frames, *both) for frames in (1, 5) for both in sides[:4]]
    return [(shape[0], *both) for both in sides]


@pytest.mark.parametrize("name", [name for name in family_names() if tiny_data(name).medium != "tokens"])
def test_what_is_too_small_for_its_nets_is_refused_as_it_is_made(name):
    found = [tiny_data(name)]
    if name == "judge":
        found.append(found[0].model_copy(update={"shape": (1, 800), "medium": "audio", "rate": 8000.0}))
    for data in (one.model_copy(update={"shape": shape}) for one in found for shape in small_shapes(one.shape)):
        try:
            family = build(name, data=data)
        except (ConfigError, DataError, SamplerError) as error:
            assert "\n" not in str(error)
            continue
        family.nets.train()
        batch = Batch(Rows(data).take(torch.arange(4)), Draws.of(0, 0, torch.arange(4)))
        for phase in family.phases:
            assert phase.loss(family.nets[phase.net], batch)["loss"].isfinite(), data.shape


@pytest.mark.parametrize("name", family_names())
def test_it_tells_how_long_captions_may_be_as_it_cuts_them(name):
    steered = "conditioning" in family_class(name).Config.model_fields
    data = tiny_data(name).model_copy(update={"caption_length": CAPTION_LENGTH})
    family = build(name, data=data, **({"conditioning": "text"} if steered else {}))
    limits = family.caption_limits
    if name in SAMPLERS:
        longest = min(limits.values(), default=500)
        assert family.prompts_of(("x" * 500,)) == ("x" * longest,), "what it would refuse or cut has a limit"
        assert limits or not steered


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_phase_moves_only_its_own_net(name, phase):
    family = build(name)
    family.nets.train()
    moving = active_phase(family, phase)
    before = {net: copied(module) for net, module in family.nets.items()}
    figures = step_phase(family, moving, next(stream(name)), 0, CONFIG)
    assert set(figures) >= {"loss", "grad_norm"}
    assert all(value.ndim == 0 and not value.requires_grad for value in figures.values())
    for net, module in family.nets.items():
        if net == moving.phase.net:
            assert any(not torch.equal(value, before[net][key]) for key, value in module.state_dict().items())
            assert all(parameter.grad is not None for parameter in module.parameters()), "an unused weight stalls DDP"
        else:
            assert_same(dict(module.state_dict()), before[net], net)
            assert all(parameter.grad is None for parameter in module.parameters()), f"gradient leaked into {net}"


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_phase_calls_the_wrapped_net_once_and_only_through_it(name, phase):
    family = build(name)
    family.nets.train()
    moving = active_phase(family, phase)
    step_phase(family, moving, next(stream(name)), 0, CONFIG)
    assert moving.net.calls == 1
    assert moving.net.learning == [], "called around the wrapper, whose gradients would not synchronise"


@pytest.mark.parametrize("name", [name for name in family_names() if any(phase.ahead for phase in build(name).phases)])
def test_what_is_made_ahead_changes_nothing(name):
    """It spares a call of the net; what comes of it are the bits of a run whose phases call for themselves."""
    wrapped, ended = {True: [], False: []}, {}
    for is_ahead in (True, False):
        family = build(name)
        if not is_ahead:
            family.phases = tuple(dataclasses.replace(phase, ahead=None) for phase in family.phases)

        def wrap(net, optimizer, wrapped=wrapped[is_ahead]):
            wrapped.append(Counted(net))
            return wrapped[-1], optimizer

        functions = {"wrap": wrap, "report": lambda step, figures: figures, "save": lambda state: None}
        fit(family, stream(name), CONFIG, start=None, **functions)
        ended[is_ahead] = {net: copied(module) for net, module in family.nets.items()}
    assert_same(ended[True], ended[False])
    assert [net.calls for net in wrapped[True]] == [net.calls for net in wrapped[False]]
    for phase, ours, theirs in zip(family.phases, wrapped[True], wrapped[False], strict=True):
        assert ours.calls == CONFIG.steps // phase.every, "once a move"
        if phase.net == "generator":
            assert theirs.outside and len(ours.outside) < len(theirs.outside), "the pass for the others was spared"


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_every_loss_term_has_a_gradient(name, phase):
    family = build(name)
    family.nets.train()
    moving = active_phase(family, phase)
    for net in family.nets.values():
        net.requires_grad_(net is moving.raw)
    losses = moving.phase.loss(moving.net, next(stream(name)))
    for term, value in losses.items():
        assert value.requires_grad == (term not in FIGURES), term
        if value.requires_grad:
            gradients = torch.autograd.grad(value, list(moving.raw.parameters()), retain_graph=True, allow_unused=True)
            assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients), term


@pytest.mark.parametrize("name", family_names())
def test_loss_is_a_function_of_weights_and_batch(name):
    """Nothing is drawn from the global generator, so a run can be continued exactly."""
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        family = build(name)
        family.nets.train()
        losses.append({phase.name: phase.loss(family.nets[phase.net], next(stream(name))) for phase in family.phases})
    assert_same(*losses)


@pytest.mark.parametrize("name", family_names())
def test_interrupted_run_ends_bit_identical(name, tmp_path):
    checkpoints = {}
    whole, state = trained(
        name, saved=lambda state: checkpoints.update({state.step: stored(state, tmp_path / f"{state.step}.pt")})
    )
    assert set(checkpoints) == {3, 5}
    pretrained = {net: copied(whole.nets[net]) for net in whole.pretrained}
    resumed, again = trained(name, start=checkpoints[3])
    assert_same(vars(again), vars(state))
    assert_same(vars(checkpoints[5]), vars(state))
    assert [report["step"] for report in again.history] == [2, 3, 4, 5]
    for net in whole.nets:
        if net not in pretrained:
            assert_same(dict(resumed.nets[net].state_dict()), dict(whole.nets[net].state_dict()), net)


@pytest.mark.parametrize("name", family_names())
def test_looking_on_changes_nothing(name):
    """Sampling during training leaves no trace in it."""
    family = build(name)
    columns = Rows(tiny_data(name)).columns

    def report(step, figures):
        family.preview(columns)
        return figures

    settings = {"start": None, "wrap": no_wrap, "save": lambda state: family.preview(columns)}
    watched = fit(family, stream(name), CONFIG, report=report, **settings)
    assert_same(vars(watched), vars(trained(name)[1]))


@pytest.mark.parametrize("name", family_names())
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_rows_and_draws_of_one_global_batch(name, world):
    batch_size, step = 7, 4
    whole = next(stream(name, batch_size, start=step))
    parts = [next(stream(name, batch_size, rank=rank, world=world, start=step)) for rank in range(world)]
    for column, values in whole.columns.items():
        assert torch.equal(torch.cat([part.columns[column] for part in parts]), values)
    assert torch.equal(
        torch.cat([part.draws.normal("noise", (3, 2)) for part in parts]), whole.draws.normal("noise", (3, 2))
    )
    assert sum(part.weight for part in parts) / world == pytest.approx(1)
    assert whole.weight == 1


# whose critic compares the rows of a mini-batch; whose loss compares those of all workers (test_clip.py)
COMPARES_ROWS = {"stylegan2", "clip"}


@pytest.mark.parametrize(("name", "phase"), [(name, phase) for name, phase in PHASES if name not in COMPARES_ROWS])
@pytest.mark.parametrize("world", [2, 3])
def test_weighted_mean_of_rank_losses_is_the_global_loss(name, phase, world):
    batch_size, step = 7, 4
    family = build(name)
    family.nets.eval()  # by batch norm's running moments: those of a mini-batch are of its own rank
    (moving,) = (one for one in family.phases if one.name == phase)
    net = family.nets[moving.net]

    def gradient(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        family.nets.zero_grad()
        loss = moving.loss(net, batch)["loss"] * batch.weight
        loss.backward()
        return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in net.parameters()])

    whole = gradient(next(stream(name, batch_size, start=step)))
    parts = [gradient(next(stream(name, batch_size, rank=rank, world=world, start=step))) for rank in range(world)]
    for expected, found in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.allclose(torch.stack(found).mean(0), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", family_names())
def test_preview_is_a_sheet_of_images(name, folders):
    _, family, _ = folders[name]
    preview = family.preview(Rows(tiny_data(name)).columns)
    if name not in SAMPLERS:
        assert preview is None
        return
    assert preview.shape[1:] == family.row_shape
    assert preview.abs().max() <= 1


@pytest.mark.parametrize("name", family_names())
def test_config_is_strict_and_survives_json(name):
    kind = family_class(name).Config
    config = kind(**tiny(name).config)
    assert kind(**json.loads(config.model_dump_json())) == config
    with pytest.raises(ConfigError, match=r"model\.nope: unknown key"):
        parse(kind, {"nope": 1}, "model")


@pytest.mark.parametrize("name", ["dcgan", "wgan_gp", "vae"])
@pytest.mark.parametrize("shape", [(1, 15, 15), (1, 16, 9)])
def test_image_shape_that_does_not_fit_is_refused(name, shape):
    with pytest.raises(SamplerError, match=f"{name}: .*{shape[1]}"):
        build(name, data=tiny_data(name).model_copy(update={"shape": shape}))


def test_samplers_refuse_data_without_what_steers_them():
    kind, unlabelled = family_class("latent_diffusion"), LATENTS.model_copy(update={"classes": ()})
    with pytest.raises(DataError, match="expected labelled images"):
        kind(kind.Config(), unlabelled)
    with pytest.raises(DataError, match="expected images with captions"):
        kind(kind.Config(conditioning="text"), unlabelled)
    kind(kind.Config(conditioning="none"), unlabelled)


def test_unknown_family_is_refused():
    with pytest.raises(ConfigError, match=r"^samplers\.x\.family: expected one of bigbigan, .*, vae, .*found 'nope'$"):
        family_class("nope", "samplers.x.family")
    for name, nearest in (("wgan-gp", "wgan_gp"), ("dcgna", "dcgan"), ("VAE", "vae")):
        with pytest.raises(ConfigError, match=rf"found '{name}'; did you mean {nearest}\?$"):
            family_class(name)


@pytest.mark.parametrize("name", ["base", "__init__", "vae.Model", "../vae", ""])
def test_what_is_no_family_is_never_imported(name):
    with pytest.raises(ConfigError, match="family: expected one of"):
        family_class(name)


def test_to_know_the_families_imports_none():
    code = (
        "import sys; from components.families import family_class, family_names; names = family_names(); "
        "family_class('judge'); print(*sorted(m for m in sys.modules if m.startswith('components.families.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["components.families.base", "components.families.judge"]
