"""Each remedy does what its paper says, in any variant that takes it."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from components.config import parse
from components.data.randomness import Draws
from components.errors import ConfigError
from components.families import family_class, family_names
from components.gan import augment
from components.gan.base import GAN
from components.gan.config import GANConfig
from components.nets.gan.layers import MinibatchStd, PairwiseDistances, spectral_normalise
from components.training.loop import ActivePhase, State, TrainingConfig, fit, step_phase
from tests.components.helpers import assert_same, build, copied, no_wrap, one_exact_thread, stream

VARIANTS = [name for name in family_names() if issubclass(family_class(name), GAN)]
REMEDIES = {
    "label_smoothing": {"loss": "non_saturating", "label_smoothing": 0.1},
    "least_squares": {"loss": "least_squares"},
    "hinge": {"loss": "hinge"},
    "wasserstein": {"loss": "wasserstein"},
    "relativistic": {"loss": "relativistic"},
    "instance_noise": {"instance_noise": {"std": 0.2, "steps": 10}},
    "diffaugment": {"diffaugment": ("colour", "translation", "cutout")},
    "ada": {"ada": {}},
    "spectral_norm": {"spectral_norm": ("generator", "discriminator")},
    "r1_r2": {"r1": 1.0, "r2": 1.0},
    "gradient_penalty": {"gradient_penalty": 1.0},
    "clip_weights": {"clip_weights": 0.01},
    "lecam": {"lecam": 0.1},
    "orthogonal": {"orthogonal": 1e-3},
    "feature_matching": {"feature_matching": 1.0},
    "topk": {"topk": {"steps": 10}},
    "unroll": {"unroll": {"steps": 2}},
}
ON_THE_CRITIC = {  # of the common frame; BigBiGAN's joint discriminator is another
    "minibatch_std": {"minibatch_std": True},
    "minibatch_discrimination": {"minibatch_discrimination": {"kernels": 3, "dim": 2}},
}
CONFIG = TrainingConfig(steps=5, batch_size=6)


def moved(family, name: str, batch=None) -> dict[str, torch.Tensor]:
    """The figures of one step of a phase."""
    family.nets.train()
    (phase,) = (phase for phase in family.phases if phase.name == name)
    net = family.nets[phase.net]
    active = ActivePhase(phase, net, net, torch.optim.SGD(net.parameters(), lr=0.1))
    return step_phase(family, active, batch or next(stream("dcgan")), 0, CONFIG)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("remedy", [*REMEDIES, *ON_THE_CRITIC])
def test_any_variant_takes_any_remedy(variant, remedy):
    if variant == "bigbigan" and remedy in ON_THE_CRITIC:
        pytest.skip("its joint discriminator has no such place")
    family = build(variant, **{**REMEDIES, **ON_THE_CRITIC}[remedy])
    for phase in family.phases:
        figures = moved(family, phase.name)
        assert all(torch.isfinite(value) for value in figures.values())
        assert all(parameter.grad is not None for parameter in family.nets[phase.net].parameters())


def test_all_remedies_at_once():
    compatible = {key: value for name in REMEDIES for key, value in REMEDIES[name].items() if key != "loss"}
    family = build("r3gan", **compatible, **ON_THE_CRITIC["minibatch_discrimination"], loss="least_squares")
    assert torch.isfinite(moved(family, "discriminate")["loss"])
    assert torch.isfinite(moved(family, "generate")["loss"])


@pytest.mark.parametrize("loss", ["hinge", "wasserstein", "relativistic"])
def test_smoothing_without_targets_is_refused(loss):
    with pytest.raises(ValidationError, match=f"{loss} has none"):
        GANConfig(loss=loss, label_smoothing=0.1)


def test_a_remedy_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"model\.diffaugment\.0"):
        parse(GANConfig, {"diffaugment": ["sharpen"]}, "model")


# -- what the discriminator sees


IMAGES = torch.rand(40, 2, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
DRAWS = Draws.of(0, 3, torch.arange(40))


@pytest.mark.parametrize("name", augment.DIFFERENTIABLE)
def test_augmentation_follows_each_rows_own_draws_and_lets_gradients_through(name):
    whole = augment.diffaugment(IMAGES, DRAWS, (name,))
    assert whole.shape == IMAGES.shape
    assert torch.allclose(augment.diffaugment(IMAGES[7:9], Draws(DRAWS.keys[7:9]), (name,)), whole[7:9], atol=1e-6)
    assert (whole != IMAGES).flatten(1).any(1).float().mean() > 0.9
    images = IMAGES.clone().requires_grad_()
    augment.diffaugment(images, DRAWS, (name,)).sum().backward()
    assert (images.grad != 0).flatten(1).any(1).all()


def test_translation_shifts_by_whole_pixels_within_an_eighth():
    marked = torch.zeros(400, 1, 16, 16)
    marked[:, :, 8, 8] = 1
    found = augment.translation(marked, Draws.of(0, 0, torch.arange(400))).nonzero()[:, 2:] - 8
    assert len(found) == 400
    assert {tuple(shift) for shift in found.tolist()} == {
        (down, right) for down in range(-2, 3) for right in range(-2, 3)
    }


def test_cutout_takes_a_square_of_half_the_side():
    cut = augment.cutout(torch.ones(200, 1, 16, 16), Draws.of(0, 0, torch.arange(200)))
    sizes = (cut == 0).sum((1, 2, 3))
    assert sizes.max() == 64
    assert sizes.min() >= 16, "at a corner a quarter of it remains"


def test_colour_keeps_the_contrast_within_bounds():
    changed = augment.colour(IMAGES, DRAWS)
    ratio = changed.std((1, 2, 3)) / IMAGES.std((1, 2, 3))
    assert 0.2 < ratio.min() < ratio.max() < 3


ADA = GANConfig(ada={}).ada


def test_adaptive_augmentation_is_absent_at_zero_and_everywhere_at_one():
    names = ("flip", "rotate90", *ADA.transforms)
    assert torch.allclose(augment.adaptive(IMAGES, DRAWS, torch.tensor(0.0), names), IMAGES, atol=1e-5)
    changed = augment.adaptive(IMAGES, DRAWS, torch.tensor(1.0), names)
    assert ((changed - IMAGES).abs().flatten(1).amax(1) > 0.01).all()


@pytest.mark.parametrize("name", ["flip", "brightness"])
def test_adaptive_augmentation_takes_its_share_of_rows(name):
    images, draws = IMAGES[:1].expand(2000, -1, -1, -1), Draws.of(0, 1, torch.arange(2000))
    changed = augment.adaptive(images, draws, torch.tensor(0.3), (name,))
    share = float(((changed - images).abs().flatten(1).amax(1) > 1e-3).float().mean())
    assert share == pytest.approx(0.15 if name == "flip" else 0.3, abs=0.05), "half of all flips leave the image"


def test_a_quarter_turn_is_exact():
    turned = augment.adaptive(IMAGES, DRAWS, torch.tensor(1.0), ("rotate90",))
    for image, original in zip(turned, IMAGES, strict=True):
        assert any(torch.allclose(image, original.rot90(turns, (1, 2)), atol=1e-4) for turns in range(4))


def test_probability_rises_while_reals_are_too_easily_told_and_falls_when_not():
    p = torch.tensor(0.5)
    sure, unsure = torch.ones(8), torch.tensor([1.0, -1] * 4)
    assert float(augment.next_probability(p, sure, 0.6, 100)) == pytest.approx(0.51)
    assert float(augment.next_probability(p, unsure, 0.6, 100)) == pytest.approx(0.49)
    assert float(augment.next_probability(torch.tensor(1.0), sure, 0.6, 100)) == 1
    assert float(augment.next_probability(torch.tensor(0.0), unsure, 0.6, 100)) == 0


@pytest.mark.parametrize("config", [{"ada": {"ramp_steps": 10}}, {"lecam": 0.1}])
def test_state_of_remedies_lives_in_the_discriminator(config):
    """So that checkpoints carry it; and only its own phase moves it."""
    family = build("dcgan", **config)
    (buffer,) = {"ada_p", "score_means"} & {name for name, _ in family.nets["discriminator"].named_buffers()}
    before = copied(family.nets["discriminator"])[buffer]
    for _ in range(3):
        moved(family, "discriminate")
    after = copied(family.nets["discriminator"])[buffer]
    assert not torch.equal(before, after) or buffer == "ada_p"
    moved(family, "generate")
    assert torch.equal(copied(family.nets["discriminator"])[buffer], after)


def test_state_of_remedies_survives_a_restart():
    remedies = {"ada": {"ramp_steps": 5}, "lecam": 0.1, "spectral_norm": ("generator", "discriminator")}

    def run(steps: int, start: State | None = None) -> State:
        config, begun = TrainingConfig(steps=steps, batch_size=6), start.step if start else 0
        family = build("r3gan", seed=begun, **remedies)
        settings = {"report": lambda step, figures: figures, "save": lambda state: None, "wrap": no_wrap}
        return fit(family, stream("r3gan", start=begun), config, start=start, **settings)

    with one_exact_thread():
        assert_same(run(5, run(3)).nets, run(5).nets)


def test_every_phase_follows_its_own_rate_and_schedule():
    """Two time scales (Heusel et al. 2017), each with a schedule of its own."""
    family = build(
        "dcgan",
        generator={"name": "adam", "learning_rate": 1e-4, "schedule": "cosine"},
        discriminator={"name": "adam", "learning_rate": 4e-4, "warmup": 2},
    )
    config = TrainingConfig(steps=4, batch_size=6, report_every=1)
    told = {"report": lambda step, figures: figures, "save": lambda state: None, "wrap": no_wrap}
    history = fit(family, stream("dcgan"), config, start=None, **told).history
    rates = {name: [figures[f"{name}/learning_rate"] for figures in history] for name in ("discriminate", "generate")}
    assert rates["discriminate"] == pytest.approx([2e-4, 4e-4, 4e-4, 4e-4])
    assert rates["generate"] == pytest.approx([1e-4 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)])


def test_instance_noise_falls_to_nothing():
    family = build("dcgan", instance_noise={"std": 0.5, "steps": 10})
    batches = stream("dcgan")
    batch = next(batches)
    inputs = family.real_inputs(batch)
    assert float((family.augmented(inputs, batch, "real")["images"] - inputs["images"]).std()) == pytest.approx(
        0.5, rel=0.1
    )
    for _ in range(5):
        batch = next(batches)
    inputs = family.real_inputs(batch)
    assert float((family.augmented(inputs, batch, "real")["images"] - inputs["images"]).std()) == pytest.approx(
        0.25, rel=0.1
    )
    for _ in range(5):
        batch = next(batches)
    inputs = family.real_inputs(batch)
    assert torch.equal(family.augmented(inputs, batch, "real")["images"], inputs["images"])


# -- nets


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 7, 3), nn.ConvTranspose2d(3, 7, 4), nn.Linear(9, 5), nn.Embedding(6, 4)]
)
def test_spectral_norm_against_svd(layer):
    net = nn.Sequential(layer)
    spectral_normalise(net)
    net.train()
    original = layer.parametrizations.weight.original
    for _ in range(200):
        layer.weight  # noqa: B018 - every look at it is one power iteration
    matrix = original.transpose(0, 1).flatten(1) if isinstance(layer, nn.ConvTranspose2d) else original.flatten(1)
    expected = original / torch.linalg.svdvals(matrix)[0]
    assert torch.allclose(layer.weight, expected, atol=1e-4)


def test_spectral_norm_rests_while_its_net_does():
    layer = nn.Linear(9, 5)
    spectral_normalise(layer)
    layer.weight  # noqa: B018
    state = copied(layer)
    layer.requires_grad_(False)
    layer.weight  # noqa: B018
    layer.requires_grad_(True).eval()
    layer.weight  # noqa: B018
    assert_same(copied(layer), state)


def test_minibatch_std_by_hand():
    maps = torch.tensor([0.0, 4.0, 1.0, 1.0])[:, None, None, None].expand(4, 2, 3, 3)
    widened = MinibatchStd()(maps)
    assert widened.shape == (4, 3, 3, 3)
    assert torch.allclose(widened[:, 2], torch.tensor([0.0, 4, 1, 1]).std(unbiased=False))
    assert MinibatchStd()(torch.randn(7, 2, 3, 3)).shape == (7, 3, 3, 3)


def test_minibatch_discrimination_sees_copies():
    layer = PairwiseDistances(5, 4, 3)
    copies, varied = torch.randn(1, 5).expand(6, 5), 10 * torch.randn(6, 5)
    assert torch.allclose(layer(copies), torch.full((6, 4), 5.0)), "all five others are at distance 0"
    assert layer(varied).mean() < 1


# -- losses


def test_clipped_weights_stay_within_their_bound():
    family = build("wgan", clip_weights=0.01)
    moved(family, "discriminate")
    assert max(p.detach().abs().max().item() for p in family.nets["discriminator"].parameters()) <= 0.01
    moved(family, "generate")
    assert max(p.detach().abs().max().item() for p in family.nets["generator"].parameters()) > 0.01


def test_lazy_penalties_come_at_times_and_weigh_as_much_more():
    family = build("r3gan", penalise_every=3, r2=0.0, r1=2.0)
    batches = stream("dcgan")
    figures = [moved(family, "discriminate", next(batches)) for _ in range(4)]
    assert ["r1" in found for found in figures] == [True, False, False, True]
    first = figures[0]
    assert float(first["loss"]) == pytest.approx(float(first["adversarial"] + 3 * 1.0 * first["r1"]), rel=1e-5)


def test_topk_leaves_bad_rows_without_gradient():
    family = build("wgan_gp", topk={"share": 0.5, "steps": 1})
    family.nets.eval()
    batches = stream("dcgan")
    next(batches)
    images = torch.randn(6, 1, 16, 16, requires_grad=True)
    family.generator_objective({"images": images}, next(batches))["loss"].backward()
    assert int((images.grad.flatten(1).abs().sum(1) > 0).sum()) == 3


def test_feature_matching_is_zero_for_the_real_images_themselves():
    family = build("wgan_gp", feature_matching=1.0)
    batch = next(stream("dcgan"))
    same = family.generator_objective(family.real_inputs(batch), batch)["feature_matching"]
    other = family.generator_objective({"images": torch.zeros(6, 1, 16, 16)}, batch)
    assert float(same) == pytest.approx(0, abs=1e-9)
    assert float(other["feature_matching"]) > 0


def test_unrolled_loss_is_that_of_a_discriminator_some_steps_on():
    family = build("wgan_gp", loss="non_saturating", unroll={"steps": 2, "learning_rate": 0.5})
    batch = next(stream("dcgan"))
    fake = {"images": torch.randn(6, 1, 16, 16).clamp(-1, 1).requires_grad_()}
    before = copied(family.nets["discriminator"])
    found = family.generator_objective(fake, batch)["adversarial"]
    assert_same(copied(family.nets["discriminator"]), before)
    critic = family.nets["discriminator"]
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.5)
    real = family.real_inputs(batch)
    for _ in range(2):  # the same moves by an ordinary optimizer
        optimizer.zero_grad()
        family.loss.discriminator(*critic(real, {"images": fake["images"].detach()}).scores, 1.0).backward()
        optimizer.step()
    expected = family.loss.generator(critic(fake).scores[0], None)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    (through,) = torch.autograd.grad(found, fake["images"])
    (direct,) = torch.autograd.grad(expected, fake["images"])
    assert not torch.allclose(through, direct, rtol=1e-3), "the moves themselves depend on the images"
