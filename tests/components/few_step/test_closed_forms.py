"""Students on Gaussian data N(MU, S^2), whose paths are known: the consistency function and the mean velocity."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.randomness import Draws
from components.sampling.requests import Request
from components.sampling.trajectories import drive
from tests.components.helpers import IMAGES, assert_same, build, stream

MU, S = 0.3, 0.5  # of what diffuses: normalised rows
PLAIN = {"conditioning": "none", "most_guidance": 1.0}
T_MAX = 0.999
MOST = {"dmd2": {"most_steps": 4, "adversarial": None}}


def spread(time: Tensor) -> Tensor:
    """The standard deviation of z = (1 - time) * clean + time * noise."""
    return ((1 - time) ** 2 * S**2 + time**2).sqrt()


def carried(z: Tensor, time: Tensor, end: Tensor) -> Tensor:
    """Where the probability-flow equation takes z: the quantile stays, since all marginals are Gaussian."""
    return (1 - end) * MU + (z - (1 - time) * MU) * spread(end) / spread(time)


def velocity(z: Tensor, time: Tensor) -> Tensor:
    """E[noise - clean | z]."""
    slope = (time - (1 - time) * S**2) / spread(time) ** 2
    return slope * (z - (1 - time) * MU) - MU


class Exact(nn.Module):
    """A net that answers mean velocities exactly: from `level` over `span` back, all of the way without one."""

    def __init__(self, conditioner: nn.Module):
        super().__init__()
        self.conditioner = conditioner

    def forward(self, x: Tensor, level: Tensor, label: Tensor, span: Tensor | None = None) -> Tensor:
        place = level / 999
        end = torch.zeros_like(place) if span is None else place - span
        time, end = (T_MAX * part.view(-1, *[1] * (x.ndim - 1)) for part in (place, end))
        apart = time - end
        mean = (x - carried(x, time, end)) / apart.where(apart > 1e-6, 1.0)
        return mean.where(apart > 1e-6, velocity(x, time))


def exact(name: str, **changes):
    """A family whose net is exact, on pixels: rows are normalised by 0 and 0.5."""
    family = build(name, data=IMAGES, **PLAIN, **changes)
    family.nets["denoiser"] = Exact(family.nets["denoiser"].conditioner)
    family.calls = {**family.calls, "denoiser": family.nets["denoiser"]}
    return family


def sampled(family, steps: int, count: int = 64) -> tuple[Tensor, Tensor]:
    """The noise that a request begins with and what comes of it, both in normalised values."""
    request = Request(torch.arange(count), family.Settings(num_inference_steps=steps))
    asked = []
    with torch.inference_mode():
        rows = drive(family._trajectory(request), family.calls, asked.append)
    return asked[0].inputs["x"], family.space.normalise(rows)


@pytest.mark.parametrize("name", ["shortcut", "meanflow"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_mean_velocities_lead_along_the_path_without_noise(name, steps):
    z, rows = sampled(exact(name), steps)
    end = carried(z, torch.tensor(T_MAX), torch.tensor(0.0)).clamp(-2, 2)  # pixels end at +-1
    assert torch.allclose(rows, end, atol=1e-4)


@pytest.mark.parametrize(("name", "begin"), [("consistency", 80 / 81), ("dmd2", T_MAX)])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_consistency_model_noises_again_and_stays_on_the_data(name, begin, steps):
    """One step is the path's end; with more the marginals stay, though rows leave their paths."""
    z, rows = sampled(exact(name, **MOST.get(name, {})), steps)
    end = carried(z, torch.tensor(begin), torch.tensor(0.0)).clamp(-2, 2)
    assert torch.allclose(rows, end, atol=1e-4) == (steps == 1)
    error = S / math.sqrt(rows.numel())
    assert abs(float(rows.mean()) - MU) < 5 * error
    assert abs(float(rows.std()) - S) < 5 * error


def test_multistep_consistency_is_the_published_algorithm():
    family = exact("consistency")
    request = Request(torch.arange(2), family.Settings(num_inference_steps=3))
    asked = []
    with torch.inference_mode():
        drive(family._trajectory(request), family.calls, asked.append)
    sigmas = family.sigmas(request.settings)
    draws = Draws.of_seeds(request.seeds)
    for step, (before, after) in enumerate(pairwise(asked)):
        clean = before.inputs["x"] - sigmas[step] / (1 + sigmas[step]) * family.calls["denoiser"](**before.inputs)
        again = clean + sigmas[step + 1] * draws.normal(step, IMAGES.shape)
        assert torch.allclose(after.inputs["x"] * (1 + sigmas[step + 1]), again, atol=1e-4)


def gaussian_batch(count: int = 40) -> Batch:
    """Images whose normalised values are drawn from the Gaussian."""
    batch = next(stream("dcgan", batch_size=count))
    values = MU + S * batch.draws.normal("data", IMAGES.shape)
    batch.columns["image"] = ((values * 0.5 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return batch


def test_shortcut_targets_of_exact_velocities_are_the_mean_velocity():
    family = exact("shortcut")
    batch = gaussian_batch()
    place = torch.linspace(0.5, 1, 40, dtype=torch.float64)
    span = torch.tensor([0.5, 0.25]).repeat(20)
    rows = family.rows(batch, family.schedule.sigma(place))
    z = rows.x / (1 + rows.sigma.view(-1, 1, 1, 1)).float()
    told = family.told_span(span) | rows.condition
    wanted = family.velocity(family.nets["denoiser"], z, place, told)
    assert torch.allclose(family.of_halves(rows, z, place, span), wanted, atol=1e-4)


def test_meanflow_derivative_is_that_of_the_exact_mean_velocity():
    """u + (t - r) du/dt is the velocity itself: Geng et al. 2025a, equation 6."""
    family = exact("meanflow")
    rows = family.rows(gaussian_batch(), family.schedule.sigma(torch.linspace(0.2, 1, 40, dtype=torch.float64)))
    place = torch.linspace(0.2, 1, 40, dtype=torch.float64)
    end = place * torch.linspace(0.1, 0.9, 40, dtype=torch.float64)
    z = rows.x / (1 + rows.sigma.view(-1, 1, 1, 1)).float()
    mean = family.velocity(family.nets["denoiser"], z, place, rows.condition | family.told_span(place - end))
    change = family.change(z, place, end, rows.condition)
    time = (T_MAX * place).float().view(-1, 1, 1, 1)
    assert change.abs().max() > 0.1
    assert torch.allclose(mean + change, velocity(z, time), atol=2e-3)


def test_the_pace_of_time_is_its_derivative():
    family = exact("meanflow", schedule={"shift": 2.0})
    place = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(family.time(place).sum(), place)
    assert torch.allclose(family.pace(place), slope)


@pytest.mark.parametrize("backbone", ["unet", "dit", "mmdit"])
def test_forward_mode_agrees_with_differences_of_a_net(backbone):
    """Attention, norms and embeddings have a forward mode; a difference of float32 tells as much as it can."""
    shape = {"unet": {"widths": (8, 16), "heads": 2, "context_dim": 8}}
    shape |= {name: {"name": name, "width": 16, "depth": 2, "heads": 2, "patch": 4} for name in ("dit", "mmdit")}
    family = build("meanflow", data=IMAGES, backbone=shape[backbone])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in family.nets["denoiser"].parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    place, end = torch.tensor([0.5, 0.8], dtype=torch.float64), torch.tensor([0.1, 0.5], dtype=torch.float64)
    z = torch.randn(2, *IMAGES.shape, generator=generator)
    told = {"label": torch.tensor([0, 1])} | family.told_scale(torch.tensor([1.0, 2.0]))
    told |= family.told_interval(torch.zeros(2), torch.ones(2))
    net = family.nets["denoiser"]

    def mean(step: float) -> Tensor:
        own = family.velocity(net, z, place, told | family.told_span(0 * place))
        return family.velocity(net, z + step * T_MAX * own, place + step, told | family.told_span(place + step - end))

    with torch.no_grad():
        difference = (mean(2e-4) - mean(-2e-4)) / 4e-4
    expected = difference * (place - end).float().view(-1, 1, 1, 1)
    assert torch.allclose(family.change(z, place, end, told), expected, atol=2e-2 * float(expected.abs().max()))


def test_consistency_targets_of_the_exact_path_are_its_end():
    """With an exact teacher a pair of levels far along the path has one end, up to the teacher's step."""
    family = exact("consistency", stage_steps=1, stages=16)

    class Taught(nn.Module):
        def forward(self, x: Tensor, level: Tensor, label: Tensor) -> Tensor:
            return velocity(x, (T_MAX * level / 999).view(-1, 1, 1, 1))

    family.received["teacher"].nets["denoiser"] = Taught()
    batch = gaussian_batch()
    errors = []
    for step in (2, 5, 8):
        batch = Batch(batch.columns, batch.draws, step=step)
        errors.append(float(family.loss(family.nets["denoiser"], batch)["error"]))
    assert errors[0] > 5 * errors[1] > 25 * errors[2], errors


def test_levels_of_a_pair_come_closer_stage_by_stage_up_to_the_last():
    family = exact("consistency", stage_steps=10, stages=4)
    sigma = torch.tensor([0.1, 1.0, 80.0], dtype=torch.float64)
    first, second, last, after = (family.shares(sigma, step) for step in (9, 10, 39, 4000))
    assert torch.equal(first, (1 - 0.5 * (1 + 8 * torch.sigmoid(-sigma))).clamp(min=0))
    assert (second >= first).all() and (last > second).all() and torch.equal(last, after)


class Gaussian(nn.Module):
    """A denoiser of normalised rows N(mean, std^2): the exact velocity."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor, level: Tensor, label: Tensor) -> Tensor:
        time = (T_MAX * level / 999).view(-1, 1, 1, 1)
        slope = (time - (1 - time) * self.std**2) / ((1 - time) ** 2 * self.std**2 + time**2)
        return slope * (x - (1 - time) * self.mean) - self.mean


def matched(mean: float, std: float):
    """A student whose rows are N(mean, std^2) and known as such, of an exact teacher."""
    family = exact("dmd2", **MOST["dmd2"])
    family.received["teacher"].nets["denoiser"] = Gaussian(MU, S)
    family.nets["fake"].denoiser = Gaussian(mean, std)
    return family


def test_a_matched_student_is_moved_by_the_difference_of_the_scores():
    mean, std = -0.2, 0.8
    family, batch = matched(mean, std), gaussian_batch()
    clean = (mean + std * batch.draws.normal("made", IMAGES.shape)).requires_grad_()
    batch = replace(batch, ahead={"distil": {"clean": clean}})
    family.loss(family.nets["denoiser"], batch)["loss"].backward()
    rows = family.noised(batch, clean.detach(), "distil")
    sigma = rows.sigma.view(-1, 1, 1, 1)

    def score(mean: float, std: float) -> Tensor:
        return (mean - rows.x) / (std**2 + sigma**2)

    teachers = rows.x + sigma**2 * score(MU, S)
    distance = (clean.detach() - teachers).abs().mean((1, 2, 3), keepdim=True)
    wanted = sigma**2 * (score(mean, std) - score(MU, S)) / distance / clean.numel()
    assert torch.allclose(clean.grad, wanted.float(), rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_a_matched_student_comes_to_the_distribution_of_its_teacher():
    family, batch = matched(-0.5, 1.0), gaussian_batch()
    mean, std = torch.tensor(-0.5, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([mean, std], lr=0.05)
    for step in range(150):
        draws = batch.draws.fold(str(step))
        clean = mean + std * draws.normal("made", IMAGES.shape)
        family.nets["fake"].denoiser = Gaussian(float(mean.detach()), float(std.detach()))
        optimizer.zero_grad()
        made = Batch(batch.columns, draws, step=step, ahead={"distil": {"clean": clean}})
        family.loss(family.nets["denoiser"], made)["loss"].backward()
        optimizer.step()
    assert abs(float(mean.detach()) - MU) < 0.02
    assert abs(float(std.detach()) - S) < 0.02


def test_rows_that_a_matched_student_learns_on_are_those_that_it_samples():
    """Each comes along a path of one, two or four steps as a request's rows do, and stays on the data."""
    family = exact("dmd2", **MOST["dmd2"])
    net = family.nets["denoiser"]
    levels: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, given, inputs: levels.append(inputs["level"]), with_kwargs=True)
    made = family.generate(net, gaussian_batch())["clean"]
    error = S / math.sqrt(made.numel())
    assert abs(float(made.mean()) - MU) < 5 * error and abs(float(made.std()) - S) < 5 * error
    asked = {round(float(level), 3) for part in levels for level in part}
    assert asked == {round(999 * place, 3) for place in (1, 0.75, 0.5, 0.25)}
    assert [len(part) for part in levels[:-1]] == sorted((len(part) for part in levels[:-1]), reverse=True)
    assert len(levels[-1]) == len(made) == 40


def test_rows_of_a_batch_can_be_chosen():
    family = build("shortcut")
    rows = family.rows(next(stream("shortcut")), torch.ones(6, dtype=torch.float64))
    chosen = torch.tensor([True, False] * 3)
    assert_same(rows.where(chosen).condition, {"label": rows.condition["label"][chosen]})
    assert torch.equal(rows.where(chosen).x, rows.x[chosen])
