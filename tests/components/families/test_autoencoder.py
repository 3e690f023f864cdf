"""What an autoencoder may be trained for beside pixels and a prior."""

from __future__ import annotations

import copy

import pytest
import torch

from components.autoencoding.equivariance import Change, EquivarianceConfig, draw
from components.config import parse
from components.data.dataset import Batch
from components.errors import SamplerError
from components.families import family_class
from components.metrics.figures import values
from components.metrics.reconstruction import reconstruction_figures
from components.nets.autoencoder.codebook import Codebook
from components.training.loop import TrainingConfig, fit, step_phase
from tests.components.families.contract import CONFIG, active_phase
from tests.components.helpers import IMAGES, Rows, assert_same, build, copied, no_wrap, stream

pytestmark = pytest.mark.usefixtures("exact")

OPTIONS = {
    "perceptual": {"perceptual": {}},
    "adversarial": {"adversarial": {"width": 4}},
    "equivariance": {"equivariance": {"share": 1.0}},
    "codebook": {"codebook": {"size": 8}},
    "finite scalars": {"codebook": {"name": "fsq", "levels": [3, 4]}},
    "scales": {"codebook": {"name": "scales", "sides": [1, 3, 8], "size": 8}},
    "bce": {"perceptual": {}, "adversarial": {"width": 4}, "reconstruction": "bce"},
    "all": {
        "perceptual": {},
        "adversarial": {"width": 4},
        "equivariance": {"share": 1.0},
        "codebook": {"size": 8},
    },
}
TERMS = {
    "perceptual": {"reconstruction", "kl", "perceptual"},
    "adversarial": {"reconstruction", "kl", "adversarial"},
    "equivariance": {"reconstruction", "kl"},
    "codebook": {"reconstruction", "commitment"},
    "finite scalars": {"reconstruction"},
    "scales": {"reconstruction", "commitment"},
    "bce": {"reconstruction", "kl", "perceptual", "adversarial"},
    "all": {"reconstruction", "commitment", "perceptual", "adversarial"},
}


def autoencoder(option: str, seed: int = 0, **changes):
    family = build("vae", seed, **{**OPTIONS[option], **changes})
    if family.config.perceptual:
        family.receive("judge", build("judge"))
    return family


@pytest.mark.parametrize("option", OPTIONS)
def test_every_term_has_a_gradient_and_passes_through_the_wrapped_net(option):
    family = autoencoder(option)
    family.nets.train()
    moving = active_phase(family, "autoencode")
    losses = moving.phase.loss(moving.net, next(stream("vae")))
    assert moving.net.calls == 1
    assert moving.net.outside == []
    assert TERMS[option] <= losses.keys()
    for term in TERMS[option] | {"loss"}:
        gradients = torch.autograd.grad(
            losses[term], list(moving.raw.parameters()), retain_graph=True, allow_unused=True
        )
        assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients), term


@pytest.mark.parametrize("option", OPTIONS)
def test_each_phase_moves_only_its_own_net(option):
    family = autoencoder(option)
    family.nets.train()
    for phase in family.phases:
        before = {net: copied(module) for net, module in family.nets.items()}
        moving = active_phase(family, phase.name)
        step_phase(family, moving, next(stream("vae")), 0, CONFIG)
        assert all(parameter.grad is not None for parameter in moving.raw.parameters()), "an unused weight stalls DDP"
        for net, module in family.nets.items():
            same = all(torch.equal(value, before[net][key]) for key, value in module.state_dict().items())
            assert same == (net != phase.net), net


def trained(option: str, steps: int, start=None, saved=lambda state: None):
    family = autoencoder(option, seed=0 if start is None else 1)
    config = TrainingConfig(steps=steps, batch_size=6, report_every=2, save_every=3)
    batches = stream("vae", start=start.step if start else 0)
    return fit(family, batches, config, start=start, wrap=no_wrap, report=lambda step, figures: figures, save=saved)


@pytest.mark.parametrize("option", ["all", "bce"])
def test_interrupted_run_ends_bit_identical(option):
    saved = []
    whole = trained(option, 5, saved=lambda state: saved.append(copy.deepcopy(state)))
    again = trained(option, 5, start=saved[0])
    assert_same(vars(again), vars(whole))


@pytest.fixture
def one_process(tmp_path):
    """Data parallelism over a single process: the wrapper and its hooks are those of many."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_all_options_train_alike_behind_data_parallelism(one_process):
    def ended(wrap) -> dict:
        family = autoencoder("all")
        config = TrainingConfig(steps=3, batch_size=6, save_every=3)
        functions = {"wrap": wrap, "report": lambda step, figures: figures, "save": lambda state: None}
        fit(family, stream("vae"), config, start=None, **functions)
        return {net: copied(module) for net, module in family.nets.items()}

    def parallel(net, optimizer):
        return torch.nn.parallel.DistributedDataParallel(net), optimizer

    for net, weights in ended(parallel).items():
        for key, value in ended(no_wrap)[net].items():
            assert torch.allclose(weights[key], value, atol=1e-5), f"{net}.{key}"


def test_options_that_are_off_change_no_initial_weight():
    plain = copied(build("vae").nets["autoencoder"])
    for option in OPTIONS:
        weights = copied(autoencoder(option).nets["autoencoder"])
        if "codebook" not in OPTIONS[option]:
            assert_same(weights, plain)


def test_adversarial_term_waits_for_its_start():
    early, late = (autoencoder("adversarial", adversarial={"width": 4, "start": start}) for start in (0, 1))
    batch = next(stream("vae"))
    found = [family.loss(family.nets["autoencoder"], batch) for family in (early, late)]
    assert torch.equal(found[1]["loss"], found[1]["reconstruction"] + 0.01 * found[1]["kl"])
    assert not torch.equal(found[0]["loss"], found[1]["loss"])
    assert late.discriminator_loss(late.nets["discriminator"], batch)["loss"].item() == 0
    assert early.discriminator_loss(early.nets["discriminator"], batch)["loss"].item() > 0


def test_adaptive_weight_brings_gradients_to_one_size():
    family = autoencoder("adversarial")
    losses = family.loss(family.nets["autoencoder"], next(stream("vae")))
    last = family.nets["autoencoder"].decoder.conv_out.weight
    sizes = [
        torch.autograd.grad(losses[term], last, retain_graph=True)[0].norm()
        for term in ("reconstruction", "adversarial")
    ]
    assert float(losses["adaptive_weight"] * sizes[1] / sizes[0]) == pytest.approx(1, rel=0.05)


def test_changes_turn_and_shrink_latents_and_images_alike():
    change = Change(turns=1, sides=(4, 4), factor=2)
    latents = torch.arange(64.0).reshape(1, 1, 8, 8)
    images = latents.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert change.latents(latents).shape == (1, 1, 4, 4)
    assert change.images(images).shape == (1, 1, 8, 8)
    shrunk = torch.nn.functional.avg_pool2d(change.images(images), 2)
    assert (shrunk - change.latents(latents)).abs().max() < 2
    assert torch.equal(Change(1, (8, 8), 2).latents(latents), torch.rot90(latents, 1, (2, 3)))
    drawn = [draw(EquivarianceConfig(), step, (8, 8), 2, 4) for step in range(200)]
    assert 60 < sum(change is None for change in drawn) < 140
    assert {change.sides for change in drawn if change} == {(side, side) for side in range(2, 9)}
    assert {change.turns for change in drawn if change} == {0, 1, 2, 3}


def test_changes_of_rectangles_keep_their_aspect():
    latents = torch.arange(96.0).reshape(1, 1, 8, 12)
    images = latents.repeat_interleave(2, 2).repeat_interleave(2, 3)
    change = Change(turns=1, sides=(4, 6), factor=2)
    assert change.latents(latents).shape == (1, 1, 6, 4)
    assert change.images(images).shape == (1, 1, 12, 8)
    assert torch.equal(Change(3, (8, 12), 2).latents(latents), torch.rot90(latents, 3, (2, 3)))
    drawn = {draw(EquivarianceConfig(share=1.0), step, (8, 12), 2, 4).sides for step in range(200)}
    assert drawn == {(2, 3), (3, 4), (4, 6), (5, 8), (6, 9), (7, 10), (8, 12)}


def test_codebook_follows_the_latents_and_revives_dead_codes():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]])
    codebook = Codebook(16, 2, decay=0.9, restart_below=0.5).train()
    with torch.no_grad():
        codebook.codes.copy_(50 + codebook.codes)
        codebook.codes[0] = torch.tensor([3.0, 0.1])
        codebook.sums.copy_(codebook.codes)
    for _ in range(60):
        picked = centres[torch.randint(4, (8, 4, 4), generator=generator)].movedim(-1, 1)
        codebook(picked + 0.05 * torch.randn(picked.shape, generator=generator))
    assert torch.cdist(centres, codebook.codes).min(1).values.max() < 0.2
    assert codebook.codes.norm(dim=1).max() < 4, "none is left where no latent is"
    codes = codebook.codes.clone()
    latents = torch.randn(2, 2, 4, 4, generator=generator, requires_grad=True)
    with torch.no_grad():
        codebook(latents)
    quantised = codebook.eval()(latents)
    assert torch.equal(codebook.codes, codes), "only a training forward with gradients moves the codes"
    assert torch.allclose(quantised, codebook.nearest(latents), atol=1e-6)
    quantised.sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents)), "straight through"


def test_reconstructions_of_a_codebook_are_made_of_codes():
    family = autoencoder("codebook")
    images = (Rows(IMAGES).columns["image"][:4].float() / 127.5) - 1
    net = family.nets["autoencoder"].eval()
    with torch.no_grad():
        mean, std = net.encode(images)
        assert not std.any()
        assert torch.allclose(net.decode(mean), net.decode(net.codebook.nearest(mean)), atol=1e-5)


def test_figures_of_reconstructions():
    judge, columns = build("judge"), Rows(IMAGES).columns
    images = (columns["image"].float() / 127.5) - 1
    features = judge.nets["classifier"].features
    exact = values(reconstruction_figures([(images, images)], features))
    assert exact["ssim"] == pytest.approx(1)
    assert exact["reconstruction_fd"] == pytest.approx(0, abs=1e-6)
    others = (images + 0.2).clamp(-1, 1)
    noisy = values(reconstruction_figures([(images, others)], features))
    error = ((images + 0.2).clamp(-1, 1) - images).square().mean((1, 2, 3))
    assert noisy["psnr"] == pytest.approx(float((10 * torch.log10(4 / error)).mean()), rel=1e-4)
    parts = values(reconstruction_figures(zip(images.split(7), others.split(7), strict=True), features))
    assert parts == pytest.approx(noisy, rel=1e-4), "however the set is cut"
    found = values(build("vae").validate(columns, columns, judge))
    assert found.keys() == {"psnr", "ssim", "reconstruction_fd"}
    assert found["psnr"] < 15
    assert found["reconstruction_fd"] > exact["reconstruction_fd"]


def test_the_perceptual_loss_of_an_old_run_is_read():
    old = [{"judge": "runs/judge", "lpips": "", "weight": 0.2}, {"lpips": "alexnet.pth", "judge": ""}]
    configs = [parse(family_class("vae").Config, {"perceptual": block}, "model") for block in old]
    assert [config.perceptual.network for config in configs] == ["judge", "lpips"]
    assert configs[0].perceptual.weight == 0.2
    assert [set(family_class("vae").roles(config)) for config in configs] == [{"judge"}, {"lpips"}]


def test_a_discriminator_that_images_cannot_bear_is_refused():
    with pytest.raises(SamplerError, match=r"adversarial\.halvings: 5 of a side of 16"):
        build("vae", adversarial={"halvings": 5})


@pytest.mark.parametrize("reconstruction", ["mse", "l1", "bce"])
def test_vae_reconstructs_after_some_steps(reconstruction):
    family = build("vae", reconstruction=reconstruction, kl_weight=1e-4)
    images = torch.linspace(-1, 1, 8)[:, None, None, None].expand(8, 1, 16, 16)  # flat, easily learnt
    batch = next(stream("vae", 8))
    batch = Batch({"image": ((images + 1) * 127.5).round().to(torch.uint8)}, batch.draws)
    optimizer = torch.optim.Adam(family.nets.parameters(), lr=0.01)
    before = (family.reconstruct(images) - images).abs().mean()
    family.nets.train()
    for _ in range(150):
        optimizer.zero_grad()
        family.loss(family.nets["autoencoder"], batch)["loss"].backward()
        optimizer.step()
    assert (family.reconstruct(images) - images).abs().mean() < before / 2
