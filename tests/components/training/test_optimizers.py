"""Optimizers: schedules at points computed by hand, and what weight decay touches."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from components.training import optimizers
from components.training.optimizers import OptimizerConfig


def rate(step: int, num_steps: int = 100, **config) -> float:
    return optimizers.learning_rate(OptimizerConfig(learning_rate=0.8, **config), step, num_steps)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "inverse_sqrt"])
def test_warm_up_is_linear_and_ends_at_the_full_rate(schedule):
    rates = [rate(step, schedule=schedule, warmup=4) for step in range(5)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] <= 0.8
    assert rates[4] > 0.7


def test_constant():
    assert [rate(step) for step in (0, 50, 99)] == [0.8] * 3


def test_cosine():
    points = {0: 0.8, 25: 0.4 * (1 + math.sqrt(0.5)), 50: 0.4, 75: 0.4 * (1 - math.sqrt(0.5)), 100: 0.0}
    for step, expected in points.items():
        assert rate(step, schedule="cosine") == pytest.approx(expected)
    assert rate(60, schedule="cosine", warmup=20) == pytest.approx(0.4), "half-way between warm-up and end"
    assert 0 < rate(99, schedule="cosine") < 0.001


def test_inverse_sqrt():
    points = {9: 0.8, 10: 0.8 * math.sqrt(10 / 11), 39: 0.4, 89: 0.8 / 3, 999: 0.08}
    for step, expected in points.items():
        assert rate(step, schedule="inverse_sqrt", warmup=10) == pytest.approx(expected)
    assert rate(3, schedule="inverse_sqrt") == pytest.approx(0.4)


def test_warm_up_longer_than_the_run():
    assert rate(4, num_steps=5, schedule="cosine", warmup=10) == pytest.approx(0.4)
    assert rate(10, num_steps=5, schedule="cosine", warmup=10) == pytest.approx(0.8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.embedding = nn.Linear(3, 3), nn.Embedding(4, 3)
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3), nn.BatchNorm2d(3), nn.LayerNorm(3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


@pytest.mark.parametrize("name", ["adamw", "adam", "rmsprop"])
def test_weight_decay_spares_biases_norms_and_embeddings(name):
    net = Net()
    optimizer = optimizers.build(OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.3), net)
    names = {parameter: name for name, parameter in net.named_parameters()}
    decayed = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, decay in decayed.items() if decay == 0.3} == {"linear.weight", "inner.0.weight"}
    assert {name for name, decay in decayed.items() if decay == 0} == {
        "linear.bias",
        "embedding.weight",
        *(f"inner.{layer}.{part}" for layer in (1, 2, 3) for part in ("weight", "bias")),
        "inner.0.bias",
    }


def test_weight_decay_shrinks_only_what_it_touches():
    net = Net()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = optimizers.build(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        factor = 0.95 if name in {"linear.weight", "inner.0.weight"} else 1
        assert torch.allclose(parameter, factor * before[name]), name


def test_config_reaches_the_optimizer():
    net = nn.Linear(2, 2)
    adam = optimizers.build(OptimizerConfig(name="adam", learning_rate=0.3, betas=(0.5, 0.9)), net)
    assert type(adam) is torch.optim.Adam
    assert all(group["betas"] == (0.5, 0.9) and group["lr"] == 0.3 for group in adam.param_groups)
    assert type(optimizers.build(OptimizerConfig(learning_rate=0.3), net)) is torch.optim.AdamW
    assert type(optimizers.build(OptimizerConfig(name="rmsprop", learning_rate=0.3), net)) is torch.optim.RMSprop


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"learning_rate": 0},
        {"learning_rate": -1},
        {"learning_rate": float("nan")},
        {"learning_rate": 1, "name": "sgd"},
        {"learning_rate": 1, "warmup": -1},
        {"learning_rate": 1, "weight_decay": -0.1},
        {"learning_rate": 1, "betas": (0.9, 1.0)},
        {"learning_rate": 1, "betas": (-0.1, 0.9)},
        {"learning_rate": 1, "momentum": 0.9},
    ],
)
def test_impossible_values_are_refused(bad):
    with pytest.raises(ValidationError):
        OptimizerConfig(**bad)


def test_number_that_yaml_reads_as_a_string():
    assert OptimizerConfig(learning_rate="1e-4").learning_rate == 1e-4


@pytest.mark.parametrize(
    ("family", "phase", "block"),
    [("dcgan", "generator", {"learning_rate": 1e-4}), ("latent_diffusion", "optimizer", {"name": "adam"})],
)
def test_one_key_of_a_familys_optimizer_leaves_its_others(family, phase, block):
    from components.config import parse
    from components.families import family_class

    config = family_class(family).Config
    usual = getattr(config(), phase)
    assert getattr(parse(config, {phase: block}, "model"), phase) == usual.model_copy(update=block)
