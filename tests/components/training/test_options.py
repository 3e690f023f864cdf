"""Options of the training loop that change what it costs, and saves before the end: the result must not change."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families.base import Family, Phase
from components.families.latent_diffusion import Model as LatentDiffusion
from components.families.vae import Model as VAE
from components.training import ema
from components.training.loop import State, TrainingConfig, fit
from components.training.optimizers import OptimizerConfig
from tests.components.helpers import assert_same, no_wrap

ADAM = OptimizerConfig(name="adam", learning_rate=1e-2)


class Mean(Family):
    """One net that learns the mean of its batches; `calls` counts its losses, `silent` those without sharing."""

    kept = ("net",)

    def __init__(self):
        torch.manual_seed(0)
        self.nets = nn.ModuleDict({"net": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))})
        self.phases = (Phase("learn", "net", self.loss, ADAM),)
        self.calls = 0

    def loss(self, net, batch):
        self.calls += 1
        error = net(batch.columns["x"]) - batch.draws.normal("target", (1,))
        return {"loss": error.square().mean(), "rows": torch.tensor(float(len(error)))}


def stream(start: int = 0, rows: int = 10):
    step = start
    while True:
        draws = Draws.of(0, step, torch.arange(rows))
        yield Batch({"x": draws.normal("x", (3,))}, draws)
        step += 1


def train(family, start: State | None = None, wrap=no_wrap, leave=lambda step: False, batches=None, **config):
    saves = []
    state = fit(
        family,
        batches or stream(start.step if start else 0),
        TrainingConfig(
            **{"steps": 12, "batch_size": 10, "report_every": 4, "save_every": 6, "precision": "float32", **config}
        ),
        start=start,
        wrap=wrap,
        report=lambda step, figures: figures,
        save=lambda state: saves.append(state.step),
        leave=leave,
    )
    return state, saves


def test_a_batch_in_parts_gives_the_gradient_of_the_whole():
    whole, _ = train(Mean())
    family = Mean()
    parts, _ = train(family, accumulate=3)  # of 3, 3 and 4 rows
    assert family.calls == 36
    for key, value in whole.nets["net"].items():
        assert torch.allclose(parts.nets["net"][key], value, atol=1e-6), key
    for row, other in zip(whole.history, parts.history, strict=True):
        assert row["learn/loss"] == pytest.approx(other["learn/loss"], rel=1e-5)
        assert other["learn/rows"] == pytest.approx((3 * 3 + 3 * 3 + 4 * 4) / 10)


def test_parts_share_gradients_once():
    silent = []

    class Shared(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)

        @contextlib.contextmanager
        def no_sync(self):
            silent.append(True)
            yield

    train(Mean(), wrap=lambda net, optimizer: (Shared(net), optimizer), accumulate=5, steps=2)
    assert len(silent) == 2 * 4  # all but the last part of each step


def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(VAE.Config(widths=[8, 8], latent_channels=2), DataInfo(shape=(1, 8, 8)))


def diffusion() -> LatentDiffusion:
    torch.manual_seed(0)
    autoencoder = {"config": vae().config.model_dump(mode="json"), "data": DataInfo(shape=(1, 8, 8))}
    statistics = {"channel_mean": (0.0, 0.0), "channel_std": (1.0, 1.0)}
    info = DataInfo(shape=(2, 4, 4), classes=("a", "b"), statistics=statistics, autoencoder=autoencoder)
    return LatentDiffusion(LatentDiffusion.Config(backbone={"widths": [8, 8], "context_dim": 8}), info)


def rows_for(family):
    for step in range(100):
        draws = Draws.of(0, step, torch.arange(4))
        if isinstance(family, VAE):
            yield Batch({"image": draws.integers("image", 256)[:, None, None, None].expand(4, 1, 8, 8).byte()}, draws)
        else:
            mean = draws.normal("mean", (2, 4, 4))
            yield Batch({"mean": mean, "std": mean.abs(), "label": draws.integers("label", 2)}, draws)


@pytest.mark.parametrize("build", [vae, diffusion])
def test_activations_computed_again_change_no_bit(build):
    plain, again = build(), build()
    expected, _ = train(plain, batches=rows_for(plain), steps=3, batch_size=4)
    state, _ = train(again, batches=rows_for(again), steps=3, batch_size=4, recompute=True)
    for name, weights in expected.nets.items():
        assert_same(state.nets[name], weights)
    recomputed = [module for module in again.nets.modules() if "forward" in vars(module)]
    assert recomputed, "no block is computed again"


def test_bfloat16_reaches_the_networks_and_leaves_the_weights():
    seen = set()
    family = vae()
    family.nets["autoencoder"].encoder.conv_in.register_forward_hook(lambda *call: seen.add(call[-1].dtype))
    state, _ = train(family, batches=rows_for(family), steps=1, batch_size=4, precision="bfloat16")
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in state.nets["autoencoder"].values()} == {torch.float32}


@pytest.mark.parametrize("step", [3, 4, 6])  # beside a report, at one, at a save
def test_a_run_that_leaves_early_saves_where_it_is_and_goes_on_as_if_nothing_had_been(step):
    expected, _ = train(Mean(), ema_snapshots=3)
    left, saves = train(Mean(), leave=lambda at: at == step, ema_snapshots=3)
    assert left.step == step
    assert saves == [step]
    state, saves = train(Mean(), start=left, ema_snapshots=3)
    assert saves == [6, 12] if step < 6 else [12]
    assert_same(state.nets["net"], expected.nets["net"])
    assert_same(state.average["net"], expected.average["net"])
    assert [row["step"] for row in state.history] == [row["step"] for row in expected.history]
    for kept, other in zip(state.snapshots, expected.snapshots, strict=True):
        assert (kept["step"], kept["sigma_rel"]) == (other["step"], other["sigma_rel"])
        assert_same(kept["nets"]["net"], other["nets"]["net"])


def test_what_is_not_finite_is_not_saved_on_leaving():
    def broken():
        for batch in stream():
            batch.columns["x"].fill_(float("nan"))
            yield batch

    with pytest.raises(Exception, match="learn/loss became nan at step 0"):
        train(Mean(), leave=lambda at: at == 1, batches=broken())


def test_snapshots_are_taken_in_equal_parts_with_the_last_at_the_end():
    config = TrainingConfig(steps=10, batch_size=1, ema_snapshots=4)
    assert [step for step in range(1, 11) if config.takes_snapshot(step)] == [3, 5, 8, 10]
    assert not TrainingConfig(steps=10, batch_size=1).takes_snapshot(10)


@pytest.mark.parametrize("sigma_rel", [0.04, 0.07, 0.15, 0.2])
def test_an_average_of_any_width_is_rebuilt_from_snapshots(sigma_rel):
    """Against the average kept all along (Karras et al. 2024, figure 5: small errors between and beyond the traces)."""
    steps = 400
    direct, _ = train(Mean(), steps=steps, ema_sigma_rel=sigma_rel, save_every=steps)
    state, _ = train(Mean(), steps=steps, ema_snapshots=16, save_every=steps)
    assert [snapshot["step"] for snapshot in state.snapshots[::2]] == [25 * part for part in range(1, 17)]
    rebuilt = ema.reconstruct(state.snapshots, sigma_rel, steps)
    for key, value in direct.average["net"].items():
        distance = (rebuilt["net"][key] - value).norm()
        assert distance < 0.1 * (state.nets["net"][key] - value).norm() + 1e-4, key


def test_without_snapshots_the_message_says_what_to_set():
    with pytest.raises(ValueError, match=r"training\.ema_snapshots"):
        ema.reconstruct([], 0.1, 10)


def processor(monkeypatch, tiles=False, instructions=False):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)


@pytest.mark.parametrize("tiles, instructions", [(False, False), (True, False), (False, True)])
def test_precision_auto_is_bfloat16_where_the_processor_multiplies_it(tiles, instructions, monkeypatch):
    processor(monkeypatch, tiles, instructions)
    seen = set()
    family = vae()
    family.nets["autoencoder"].encoder.conv_in.register_forward_hook(lambda *call: seen.add(call[-1].dtype))
    state, _ = train(family, batches=rows_for(family), steps=1, batch_size=4, precision="auto")
    assert seen == {torch.bfloat16 if tiles or instructions else torch.float32}
    assert state.precision == ("bfloat16" if tiles or instructions else "float32")


def test_a_run_goes_on_in_the_precision_that_it_began_in(monkeypatch):
    processor(monkeypatch, instructions=True)
    whole, _ = train(Mean(), steps=12, precision="auto")
    half, _ = train(Mean(), steps=12, precision="auto", leave=lambda step: step == 6)
    processor(monkeypatch)
    assert_same(train(Mean(), start=half, precision="auto")[0].nets, whole.nets)
    other, _ = train(Mean(), steps=12, precision="auto")
    assert not torch.equal(other.nets["net"]["0.weight"], whole.nets["net"]["0.weight"])
