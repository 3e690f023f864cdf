"""What every family promises to the training loop, to evaluation and to serving."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from components import run_folder
from components.config import parse
from components.data import Batch
from components.diffusion.objectives import OBJECTIVES
from components.diffusion.solvers import SOLVERS
from components.errors import ConfigError, DataError, SamplerError
from components.families import FAMILIES, family_class
from components.families.base import Family, Sampler
from components.run_folder import Provenance
from components.sampling import Request
from components.training import Player, State, TrainingConfig, fit, step_player
from tests.components.helpers import (
    IMAGES,
    LATENTS,
    TINY,
    Rows,
    assert_same,
    build,
    copied,
    no_wrap,
    one_exact_thread,
    stream,
)

SAMPLERS = [name for name, kind in FAMILIES.items() if issubclass(kind, Sampler)]
FIGURES = {"accuracy"}  # what a loss tells for the curves only
PHASES = [(name, phase.name) for name in FAMILIES for phase in build(name).phases]
CONFIG = TrainingConfig(steps=5, batch_size=6, report_every=2, save_every=3)
PROVENANCE = Provenance(data="d", code="c", job="j", seed=0, step=5)


def test_every_family_has_a_tiny_example():
    assert TINY.keys() == FAMILIES.keys()


@pytest.fixture(autouse=True, scope="module")
def exact():
    with one_exact_thread():
        yield


class Counted(nn.Module):
    """Stands for a data-parallel wrapper: it only sees what goes through its forward."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.calls, self.inside, self.outside = net, 0, False, []
        for name, module in net.named_modules():
            if not list(module.children()):
                module.register_forward_pre_hook(functools.partial(self.notice, name))

    def notice(self, name: str, module: nn.Module, args: tuple) -> None:
        if not self.inside:
            self.outside.append(name)

    def forward(self, *args, **kwargs):
        self.calls, self.inside = self.calls + 1, True
        answer = self.net(*args, **kwargs)
        self.inside = False
        return answer


def player(family: Family, phase_name: str) -> Player:
    (phase,) = (phase for phase in family.phases if phase.name == phase_name)
    raw = family.nets[phase.net]
    return Player(phase, raw, Counted(raw), torch.optim.SGD(raw.parameters(), lr=0.1))


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_phase_moves_only_its_own_net(name, phase):
    family = build(name)
    family.nets.train()
    moving = player(family, phase)
    before = {net: copied(module) for net, module in family.nets.items()}
    figures = step_player(family, moving, next(stream(name)), 0, CONFIG)
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
    moving = player(family, phase)
    step_player(family, moving, next(stream(name)), 0, CONFIG)
    assert moving.net.calls == 1
    assert moving.net.outside == [], "called around the wrapper, whose gradients would not synchronise"


@pytest.mark.parametrize("name", [name for name in FAMILIES if any(phase.ahead for phase in build(name).phases)])
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
    moving = player(family, phase)
    for net in family.nets.values():
        net.requires_grad_(net is moving.raw)
    losses = moving.phase.loss(moving.net, next(stream(name)))
    for term, value in losses.items():
        assert value.requires_grad == (term not in FIGURES), term
        if value.requires_grad:
            gradients = torch.autograd.grad(value, list(moving.raw.parameters()), retain_graph=True, allow_unused=True)
            assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients), term


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_is_a_function_of_weights_and_batch(name):
    """Nothing is drawn from the global generator, so a run can be continued exactly."""
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        family = build(name)
        family.nets.train()
        losses.append({phase.name: phase.loss(family.nets[phase.net], next(stream(name))) for phase in family.phases})
    assert_same(*losses)


def stored(state: State, path) -> State:
    """Through a file and back, as a checkpoint is read: no pickled code."""
    torch.save(vars(state), path)
    return State(**torch.load(path, weights_only=True))


def trained(
    name: str, steps: int = CONFIG.steps, start: State | None = None, saved=None, **changes
) -> tuple[Family, State]:
    """`start` of None begins afresh; the initial weights of another seed show that a restart restores them all."""
    family = build(name, seed=0 if start is None else 1)
    state = fit(
        family,
        stream(name, start=start.step if start else 0),
        CONFIG.model_copy(update={"steps": steps, **changes}),
        start=start,
        wrap=no_wrap,
        report=lambda step, figures: figures,
        save=saved or (lambda state: None),
    )
    return family, state


@pytest.mark.parametrize("name", FAMILIES)
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


@pytest.mark.parametrize("name", FAMILIES)
def test_looking_on_changes_nothing(name):
    """Sampling during training leaves no trace in it."""
    family = build(name)
    columns = Rows(TINY[name][1]).columns

    def report(step, figures):
        family.preview(columns)
        return figures

    settings = {"start": None, "wrap": no_wrap, "save": lambda state: family.preview(columns)}
    watched = fit(family, stream(name), CONFIG, report=report, **settings)
    assert_same(vars(watched), vars(trained(name)[1]))


@pytest.mark.parametrize("name", FAMILIES)
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


# batch norm sees the rows of its own rank, so the GANs' losses depend on the split
@pytest.mark.parametrize("name", ["vae", "judge", "latent_diffusion"])
@pytest.mark.parametrize("world", [2, 3])
def test_weighted_mean_of_rank_losses_is_the_global_loss(name, world):
    batch_size, step = 7, 4
    family = build(name)
    (phase,) = family.phases

    def gradient(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        family.nets.zero_grad()
        loss = phase.loss(family.nets[phase.net], batch)["loss"] * batch.weight
        loss.backward()
        return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in family.nets[phase.net].parameters()])

    whole = gradient(next(stream(name, batch_size, start=step)))
    parts = [gradient(next(stream(name, batch_size, rank=rank, world=world, start=step))) for rank in range(world)]
    for expected, found in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.allclose(torch.stack(found).mean(0), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The run folder of every family, trained for a few steps, with its family and state."""
    made = {}
    for name in FAMILIES:
        family, state = trained(name)
        folder = tmp_path_factory.mktemp("runs") / name
        run_folder.write(folder, name, family, state, PROVENANCE)
        made[name] = folder, family, state
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_run_folder_holds_the_averaged_weights(name, folders):
    folder, family, state = folders[name]
    run = run_folder.load(folder)
    assert run.config.provenance == PROVENANCE
    assert run.family.config == family.config
    assert run.family.data == family.data
    for net in family.kept:
        expected = copied(family.nets[net]) if net in family.pretrained else state.average[net]
        assert_same(dict(run.family.nets[net].state_dict()), expected, net)
        if net not in family.pretrained:
            with pytest.raises(AssertionError):
                assert_same(expected, copied(family.nets[net]))
    assert not run.family.nets.training
    assert not any(parameter.requires_grad for parameter in run.family.nets.parameters())
    assert run_folder.read_history(folder) == [pytest.approx(report) for report in state.history]


@pytest.mark.parametrize("name", FAMILIES)
def test_run_folder_holds_no_pickle(name, folders):
    folder, family, _ = folders[name]
    files = sorted(path.name for path in folder.rglob("*"))
    assert files == sorted(["config.json", "history.csv", *(f"{net}.safetensors" for net in family.kept)])
    for path in folder.iterdir():
        assert not zipfile.is_zipfile(path), "torch.save writes zip files"
        with path.open("rb") as file, pytest.raises(Exception, match=r".*"):
            pickle.load(file)


@pytest.mark.parametrize("name", FAMILIES)
def test_writing_twice_gives_equal_bytes(name, folders, tmp_path):
    folder, family, state = folders[name]
    run_folder.write(tmp_path / "again", name, family, state, PROVENANCE)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.fixture
def copy(folders, tmp_path):
    def copy_of(name: str):
        _, family, state = folders[name]
        run_folder.write(tmp_path / name, name, family, state, PROVENANCE)
        return tmp_path / name, family

    return copy_of


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_file_is_named(name, copy):
    folder, family = copy(name)
    for file in ["config.json", *(f"{net}.safetensors" for net in family.kept)]:
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        with pytest.raises(SamplerError, match=rf"{folder / file}: missing"):
            run_folder.load(folder)
        (folder / file).write_bytes(content)
    run_folder.load(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_damaged_weights_are_named(name, copy):
    folder, family = copy(name)
    path = folder / f"{family.kept[0]}.safetensors"
    content, weights = path.read_bytes(), safetensors.torch.load_file(path)
    key = next(key for key in weights if key.endswith("weight"))
    path.write_bytes(content[:-8])
    with pytest.raises(SamplerError, match=f"^{path}: not this network's weights"):
        run_folder.load(folder)
    safetensors.torch.save_file({**weights, key: torch.zeros(3, 3, 3)}, path)
    with pytest.raises(SamplerError, match=f"^{path}: not this network's weights.*{key}"):
        run_folder.load(folder)
    weights.pop(key)
    safetensors.torch.save_file(weights, path)
    with pytest.raises(SamplerError, match=f"^{path}: not this network's weights.*{key}"):
        run_folder.load(folder)


BAD_CONFIGS = {
    "schema_version": (lambda content: {**content, "schema_version": 2}, "schema_version"),
    "unknown family": (lambda content: {**content, "family": "nope"}, "unknown family 'nope'"),
    "unknown key": (lambda content: {**content, "extra": 1}, "extra"),
    "config of another family": (lambda content: {**content, "config": {"nope": 1}}, "nope"),
    "data it cannot take": (lambda content: {**content, "data": {**content["data"], "shape": [1, 15, 15]}}, "15"),
    "missing key": (lambda content: {key: content[key] for key in content if key != "data"}, "data"),
    "no mapping": (lambda content: [content], "expected a mapping"),
}


@pytest.mark.parametrize("change", BAD_CONFIGS)
def test_wrong_config_is_named(change, copy):
    folder, _ = copy("dcgan")
    path = folder / "config.json"
    alter, expected = BAD_CONFIGS[change]
    path.write_text(json.dumps(alter(json.loads(path.read_text()))))
    with pytest.raises(SamplerError, match=f"^{path}.*{expected}"):
        run_folder.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null"])
def test_unreadable_config_is_named(content, copy):
    folder, _ = copy("judge")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(SamplerError, match=f"^{folder / 'config.json'}: "):
        run_folder.load(folder)


def test_failed_write_leaves_the_old_folder(copy, monkeypatch):
    folder, family = copy("judge")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(run_folder, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_folder.write(folder, "judge", family, trained("judge", steps=1)[1], PROVENANCE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["judge"]


def request(sampler: Sampler, seeds: list[int], **settings) -> Request:
    labels = torch.tensor(seeds) % sampler.num_classes if sampler.conditional else None
    return Request(torch.tensor(seeds), labels, sampler.Settings(**settings))


def fast(name: str) -> dict:
    return {"num_inference_steps": 4} if name == "latent_diffusion" else {}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_lie_in_range_and_follow_their_seeds(name, folders):
    sampler = run_folder.load(folders[name][0]).family
    images = sampler.sample(request(sampler, [3, 4, 3, 2**62], **fast(name)))
    assert images.shape == (4, *IMAGES.shape)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1
    assert torch.allclose(images[0], images[2], atol=1e-6)
    assert (images[0] - images[1]).abs().max() > 1e-5
    assert (images[0] - images[3]).abs().max() > 1e-5
    torch.manual_seed(99)
    assert torch.equal(sampler.sample(request(sampler, [3, 4, 3, 2**62], **fast(name))), images)


@pytest.mark.parametrize("name", SAMPLERS)
def test_co_batched_equals_alone(name, folders):
    sampler = run_folder.load(folders[name][0]).family
    together = sampler.sample(request(sampler, [5, 6, 7], **fast(name)))
    for place, seed in enumerate([5, 6, 7]):
        alone = sampler.sample(request(sampler, [seed], **fast(name)))
        assert torch.allclose(alone[0], together[place], atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_calls_hold_rows_first(name, folders):
    sampler = run_folder.load(folders[name][0]).family
    with torch.inference_mode():
        trajectory = sampler.trajectory(request(sampler, [1, 2], **fast(name)))
        call = next(trajectory)
        try:
            while True:
                (rows,) = {len(values) for values in call.inputs.values()}
                answer = sampler.calls[call.net](**call.inputs)
                assert len(answer) == rows
                call = trajectory.send(answer)
        except StopIteration as stop:
            assert len(stop.value) == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_preview_is_a_sheet_of_images(name, folders):
    _, family, _ = folders[name]
    preview = family.preview(Rows(TINY[name][1]).columns)
    if name not in SAMPLERS:
        assert preview is None
        return
    assert preview.shape[1:] == IMAGES.shape
    assert preview.abs().max() <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_settings_are_strict(name):
    kind = FAMILIES[name].Settings
    assert parse(kind, {}, "settings") == kind()
    with pytest.raises(ConfigError, match=r"settings\.nope: unknown key"):
        parse(kind, {"nope": 1}, "settings")


@pytest.mark.parametrize("name", FAMILIES)
def test_config_is_strict_and_survives_json(name):
    kind = FAMILIES[name].Config
    config = kind(**TINY[name][0])
    assert kind(**json.loads(config.model_dump_json())) == config
    with pytest.raises(ConfigError, match=r"model\.nope: unknown key"):
        parse(kind, {"nope": 1}, "model")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spacing", ["schedule", "karras"])
def test_latent_diffusion_samples_with_every_solver(solver, spacing, folders):
    sampler = run_folder.load(folders["latent_diffusion"][0]).family
    settings = {"solver": solver, "spacing": spacing, "num_inference_steps": 3}
    together = sampler.sample(request(sampler, [1, 2], **settings))
    assert torch.isfinite(together).all()
    assert torch.allclose(sampler.sample(request(sampler, [2], **settings))[0], together[1], atol=1e-4)


def test_labels_and_guidance_steer_latent_diffusion(folders):
    sampler = build("latent_diffusion")
    seeds = torch.tensor([1, 1])

    def sample(labels, scale):
        labels = None if labels is None else torch.tensor(labels)
        return sampler.sample(Request(seeds, labels, sampler.Settings(num_inference_steps=3, guidance_scale=scale)))

    assert torch.equal(sample(None, 1), sample(None, 5)), "without a class there is nothing to guide towards"
    first, second = sample([0, 1], 1)
    assert not torch.equal(first, second)
    assert not torch.equal(sample([0, 1], 1), sample([0, 1], 3))
    assert torch.allclose(sample([0, 1], 0), sample(None, 1), atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", ["flow", "linear", "scaled_linear", "cosine"])
def test_latent_diffusion_trains_under_every_objective_and_schedule(objective, schedule):
    family = build("latent_diffusion", objective=objective, schedule={"name": schedule})
    loss = family.loss(family.nets["unet"], next(stream("latent_diffusion", batch_size=20)))["loss"]
    assert torch.isfinite(loss)
    assert 0.1 < float(loss.detach()) < 10, "targets are of about unit scale for normalised latents"


@pytest.mark.parametrize("reconstruction", ["mse", "l1", "bce"])
def test_vae_reconstructs_after_some_steps(reconstruction):
    family = build("vae", reconstruction=reconstruction, kl_weight=1e-4)
    images = torch.linspace(-1, 1, 8)[:, None, None, None].expand(8, 1, 16, 16)  # flat, easily learnt
    batch = next(stream("vae", 8))
    batch = Batch({"image": ((images + 1) * 127.5).round().to(torch.uint8)}, batch.draws)
    optimizer = torch.optim.Adam(family.nets.parameters(), lr=0.01)
    before = (family.reconstruct(images) - images).abs().mean()
    family.nets.train()
    for _ in range(60):
        optimizer.zero_grad()
        family.loss(family.nets["autoencoder"], batch)["loss"].backward()
        optimizer.step()
    assert (family.reconstruct(images) - images).abs().mean() < before / 2


def test_normalised_latents_round_trip():
    family = build("latent_diffusion")
    latents = torch.randn(4, *LATENTS.shape)
    normal = family.normalise(latents)
    assert torch.allclose(normal[:, 0], (latents[:, 0] - 0.3) / 1.5)
    assert torch.allclose(family.denormalise(normal), latents, atol=1e-6)


@pytest.mark.parametrize("name", ["dcgan", "wgan_gp", "vae"])
@pytest.mark.parametrize("shape", [(1, 15, 15), (1, 16, 8)])
def test_image_shape_that_does_not_fit_is_refused(name, shape):
    config, data = TINY[name]
    with pytest.raises(SamplerError, match=f"{shape[1]}"):
        FAMILIES[name](FAMILIES[name].Config(**config), data.model_copy(update={"shape": shape}))


def test_latent_diffusion_refuses_images_and_the_judge_unlabelled_ones():
    with pytest.raises(DataError, match="expected a latent data set"):
        FAMILIES["latent_diffusion"](FAMILIES["latent_diffusion"].Config(), IMAGES)
    with pytest.raises(DataError, match="two classes or more"):
        FAMILIES["judge"](FAMILIES["judge"].Config(), IMAGES.model_copy(update={"classes": ()}))


def test_unknown_family_is_refused():
    with pytest.raises(ConfigError, match=r"^samplers\.x\.family: expected one of vae, .*found 'nope'$"):
        family_class("nope", "samplers.x.family")
