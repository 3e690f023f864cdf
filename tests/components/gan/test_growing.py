"""StyleGAN2's growth: what comes in when, and that it goes with weights, averages and checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from components.errors import TrainingError
from components.nets.gan.stylegan2 import Growth, enlarge
from components.sampling.requests import Request
from components.training import ema
from components.training.loop import State, TrainingConfig, fit
from tests.components.helpers import assert_same, build, copied, no_wrap, stream


def test_growing_brings_in_one_resolution_after_the_other():
    family = build("stylegan2", growing={"steps": 10})
    generator, trunk = family.nets["generator"], family.nets["discriminator"].trunk
    noise, label = torch.zeros(1, generator.noise_size), torch.tensor([0])
    images = torch.randn(1, 1, 16, 16)
    smooth = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4)

    def detail() -> float:
        with torch.no_grad():
            out = generator(torch.ones(1, 5), noise, label)
            return float((out - enlarge(enlarge(F.avg_pool2d(out, 4)))).abs().mean())

    family.grow(0)
    assert [float(generator.growth.share(k)) for k in (1, 2)] == [0, 0]
    assert torch.allclose(trunk(images), trunk(smooth), atol=1e-5), "the discriminator sees no more than 4x4"
    coarse = detail()
    family.grow(10)
    assert [float(generator.growth.share(k)) for k in (1, 2)] == [1, 1]
    assert not torch.allclose(trunk(images), trunk(smooth), atol=1e-3)
    assert detail() > coarse
    for step in (0, 7):
        family.grow(step)
        for phase in family.phases:
            family.nets.zero_grad()
            phase.loss(family.nets[phase.net], next(stream("stylegan2")))["loss"].backward()
            assert all(p.grad is not None for p in family.nets[phase.net].parameters()), "an unused weight stalls DDP"


def test_what_has_grown_goes_with_the_weights():
    family, again = build("stylegan2", growing={"steps": 10}), build("stylegan2", seed=1, growing={"steps": 10})
    asked = Request(torch.arange(2), family.Settings(), family.cycled(2))
    whole = family.sample(asked)
    family.grow(3)
    drawn = family.sample(asked)
    assert not torch.equal(drawn, whole)
    again.nets.load_state_dict(family.nets.state_dict())
    assert torch.equal(again.sample(asked), drawn)
    average = ema.copy_of({"generator": build("stylegan2", growing={"steps": 10}).nets["generator"]})
    ema.update(average, {"generator": family.nets["generator"]}, 0.9)
    assert torch.equal(average["generator"]["growth.units"], family.nets["generator"].growth.units), "not averaged"
    before = {key: value for key, value in copied(family.nets["generator"]).items() if "growth" not in key}
    again.nets["generator"].load_state_dict(before)
    assert torch.equal(again.sample(asked), whole), "weights of older versions are grown"


def trained(start: State | None, saved: dict[int, State], steps: int, **changes) -> State:
    """A training that grows, from a state on; `saved`: where its checkpoints go, by step."""
    return fit(
        build("stylegan2", growing={"steps": 20}, **changes),
        stream("stylegan2", start=start.step if start else 0),
        TrainingConfig(steps=steps, batch_size=6, save_every=steps // 2),
        start=start,
        wrap=no_wrap,
        report=lambda step, figures: figures,
        save=lambda state: saved.setdefault(state.step, copy.deepcopy(state)),
    )


def test_an_interrupted_growth_goes_on_bit_for_bit():
    saved = {}
    whole = trained(None, saved, 6)
    resumed = trained(saved[3], saved, 6)
    assert_same(resumed.nets, whole.nets)
    assert_same(resumed.average, whole.average)
    assert whole.average["generator"]["growth.units"] == 0.5 * Growth.ONE, "a quarter of the way to two resolutions"


def test_a_checkpoint_of_another_layout_is_told_in_one_line():
    def refusal(start: State, **changes) -> str:
        with pytest.raises(TrainingError) as caught:
            trained(start, {}, 2, **changes)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    saved = {}
    trained(None, saved, 2)
    older = copy.deepcopy(saved[1])  # before what has grown went with the weights
    for weights in (older.nets["generator"], older.average["generator"]):
        del weights["growth.units"]
    told = "the checkpoint at step 1 does not fit the average of generator (growth.units: found none, expected of shape"
    assert refusal(older).startswith(told)
    wider = refusal(copy.deepcopy(saved[1]), style_dim=8)
    assert "does not fit generator" in wider and "size mismatch" in wider
    other = copy.deepcopy(saved[1])
    next(iter(other.optimizers.values()))["param_groups"][0]["params"].pop()
    assert "does not fit the optimizer of" in refusal(other)
