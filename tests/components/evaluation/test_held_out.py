"""Held-out losses: fixed rows and noise, within their share of the training, unseen by it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.randomness import Draws
from components.diffusion.schedules import NUM_TRAIN_TIMESTEPS
from components.evaluation.held_out import BACKWARD, LEAST, MOST, SHARE, HeldOutRows, evaluations, num_rows
from components.families import family_class, family_names
from components.families.base import Family
from components.metrics.figures import values
from components.metrics.held_out import DENOISING
from components.training.loop import TrainingConfig, restore_nets
from tests.benchmarks import over_fitting
from tests.components.families.contract import CONFIG, stored, trained
from tests.components.helpers import IMAGES, LATENTS, Rows, assert_same, build, one_exact_thread

TOLD = [name for name in family_names() if family_class(name).held_out is not None]
DICE = torch.Generator().manual_seed(0)
LONG = TrainingConfig(steps=10**6, batch_size=64)


@pytest.fixture(autouse=True, scope="module")
def exact():
    with one_exact_thread():
        yield


def rows_of(family: Family, count: int = 20, config: TrainingConfig = CONFIG) -> HeldOutRows:
    """Its rows, of random data; what is held out are other images."""
    own = family.data
    decoded = own.decoded.model_copy(update={"caption_length": own.caption_length})
    family.nets.eval()
    return HeldOutRows(family, Rows(own, count), Rows(decoded, count), config)


@pytest.mark.parametrize("levels", [1, 8])
@pytest.mark.parametrize(("steps", "batch_size", "save_every"), [(400, 128, 100), (5000, 256, 500), (70_000, 64, 999)])
def test_they_stay_within_their_share_of_a_training(levels, steps, batch_size, save_every):
    config = TrainingConfig(steps=steps, batch_size=batch_size, save_every=save_every)
    rows, trained_on = num_rows(levels, config), steps * batch_size * (1 + BACKWARD)
    assert LEAST < rows <= MOST
    assert evaluations(rows, levels, config) <= SHARE * trained_on
    assert rows == MOST or evaluations(rows + 1, levels, config) > SHARE * trained_on, "as many as there is room for"


def test_as_many_rows_are_asked_about_as_is_counted():
    family, asked = build("latent_diffusion"), []
    rows = rows_of(family, 40)
    handle = family.nets["denoiser"].register_forward_pre_hook(
        lambda net, args, given: asked.append(len(given["x"])), with_kwargs=True
    )
    rows.figures(family, live=True)
    rows.figures(family, live=False)
    handle.remove()
    once = CONFIG.model_copy(update={"save_every": CONFIG.steps})
    assert len(rows) == LEAST and sum(asked) == evaluations(LEAST, DENOISING.levels, once)


@pytest.mark.parametrize("name", TOLD)
def test_a_row_has_the_same_losses_alone_and_in_any_batch_and_held_out_rows_look_like_training_rows(name):
    family = build(name)
    rows = rows_of(family)
    columns, keys = rows._train, rows._draws.keys
    with torch.inference_mode():
        together = family.held_out_losses(columns, Draws(keys))
        alone = family.held_out_losses({key: value[3:4] for key, value in columns.items()}, Draws(keys[3:4]))
    assert together.shape == (len(keys), family.held_out.levels)
    assert torch.isfinite(together).all()
    assert torch.allclose(alone[0], together[3], rtol=1e-4, atol=1e-5)
    for column, stored_values in columns.items():
        assert rows._held_out[column].shape == stored_values.shape, column


@pytest.mark.parametrize(("objective", "density"), [("flow", "logit_normal"), ("epsilon", "uniform")])
def test_their_mean_over_levels_estimates_the_loss_that_is_trained(objective, density):
    changes = {"objective": objective, "times": {"density": density, "mean": 0.4}, "label_dropout": 0.0}
    family = build("latent_diffusion", **changes)
    fixed = values(rows_of(family, 200, LONG).figures(family, live=False))["training_loss"]
    columns = Rows(LATENTS, 200).take(torch.arange(1000) % 200)
    with torch.inference_mode():
        batch = Batch(columns, Draws.of(5, 0, torch.arange(1000)))
        drawn = float(family.loss(family.nets["denoiser"], batch)["loss"])
    assert fixed == pytest.approx(drawn, rel=0.06)


def test_levels_rise_from_little_noise_to_much():
    family, seen = build("latent_diffusion"), []
    handle = family.nets["denoiser"].register_forward_pre_hook(
        lambda net, args, given: seen.append(given["level"]), with_kwargs=True
    )
    rows = rows_of(family)
    rows._losses(family, rows._train)
    handle.remove()
    levels = [float(level.unique()) for level in seen]
    assert levels == sorted(levels) and len(set(levels)) == DENOISING.levels
    assert 0 < levels[0] < 200 and 800 < levels[-1] < 999


class ByHeart(nn.Module):
    """The best denoiser of a few clean rows (N, C, H, W) and of nothing else: their mean, by how likely each is."""

    def __init__(self, family: Family, rows: Tensor):
        super().__init__()
        self.family, self.rows = family, rows

    def forward(self, x: Tensor, level: Tensor, **told: Tensor) -> Tensor:
        sigma = self.family.schedule.sigma(level.double() / (NUM_TRAIN_TIMESTEPS - 1))
        x = x.double() * (1 + sigma**2).sqrt().view(-1, 1, 1, 1)
        distances = (x[:, None] - self.rows[None]).square().flatten(2).sum(2)
        shares = torch.softmax(-distances / (2 * sigma[:, None] ** 2), dim=1)
        return torch.einsum("bn,nchw->bchw", shares, self.rows.double()).float()


def test_a_model_that_knows_its_rows_by_heart_has_a_gap_at_every_level():
    family = build("latent_diffusion", data=IMAGES, conditioning="none", objective="x0")
    seen, unseen = ({"image": torch.randint(0, 256, (60, 1, 16, 16), generator=DICE, dtype=torch.uint8)} for _ in "ab")
    family.nets["denoiser"] = ByHeart(family, family.space.normalise(family.medium.rows(seen)))
    losses = [family.held_out_losses(rows, Draws.of_seeds(torch.arange(60))) for rows in (seen, unseen)]
    assert losses[0][:, :4].max() < 1e-6, "little noise hides nothing of what is known"
    figures = DENOISING.figures(losses[1], losses[0])
    assert figures["loss_gap"].interval[0] > 0.5
    by_level = (losses[1] - losses[0]).mean(0)
    assert (by_level[:6] > 0.1).all()


def test_training_and_its_resume_do_not_notice_them(tmp_path):
    """Weights, optimizers and history are the same bits whether or not checkpoints are measured on the way."""
    name = "latent_diffusion"
    shadow = build(name)
    rows = rows_of(shadow)
    found, kept = [], []

    def measured(state):
        restore_nets(shadow, state)
        found.append(rows.figures(shadow, live=True))
        kept.append(stored(state, tmp_path / f"{state.step}.pt"))

    _, plain = trained(name)
    _, watched = trained(name, saved=measured)
    assert_same(vars(plain), vars(watched))
    before = list(found)
    _, resumed = trained(name, start=kept[0], saved=measured)
    assert_same(vars(plain), vars(resumed))
    assert found[len(before) :] == before[1:], "a checkpoint's figures do not depend on how it was come to"


def test_averaged_and_live_weights_have_figures_of_their_own():
    family, state = trained("latent_diffusion")
    rows = rows_of(family)
    live = rows.figures(family, live=True)
    for net, weights in state.average.items():
        family.nets[net].load_state_dict(weights)
    average = rows.figures(family, live=False)
    assert {f"live_{name}" for name in average} == live.keys()
    assert values(average)["held_out_loss"] != values(live)["live_held_out_loss"]
    assert len(average) == 4 + 2 * DENOISING.levels


@pytest.mark.slow
def test_a_run_on_a_hundred_images_shows_the_gap_before_the_memorisation_figure_fires():
    found = over_fitting.looks()
    opened, copied = over_fitting.first(found)
    assert opened < copied < math.inf, found
    assert found[0].copies < over_fitting.COPIES
