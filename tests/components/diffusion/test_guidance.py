"""What a net is asked and answers, at one noise level."""

import pytest
import torch

from components.diffusion.guidance import Guidance, Preconditioner, coefficients_of, level, level_of
from components.diffusion.objectives import OBJECTIVES
from components.diffusion.schedules import ScheduleConfig, build

SIGMAS = (0.0, 0.002, 0.37, 1.0, 14.6, 80.0)


@pytest.mark.parametrize("name", ["flow", "linear", "scaled_linear", "cosine"])
def test_the_level_of_one_sigma_is_that_of_many(name):
    schedule = build(ScheduleConfig(name=name))
    many = level(schedule, torch.tensor(SIGMAS, dtype=torch.float64)).float()
    one = torch.tensor([level_of(schedule, sigma) for sigma in SIGMAS])
    torch.testing.assert_close(one, many, rtol=1e-7, atol=0)
    asked = Preconditioner("flow", schedule).question(torch.zeros(3, 1, 2, 2), SIGMAS[2])
    assert torch.equal(asked["level"], one[2].expand(3)), "every row is told it"


def test_schedules_do_not_share_levels():
    first, second = (build(ScheduleConfig(name="flow", shift=shift)) for shift in (1.0, 3.0))
    assert level_of(first, 1.0) != level_of(second, 1.0)
    tables = [build(ScheduleConfig(name=name)) for name in ("linear", "cosine")]
    assert level_of(tables[0], 1.0) != level_of(tables[1], 1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_coefficients_of_one_level_are_numbers_in_float64(name):
    for sigma in SIGMAS:
        wanted = OBJECTIVES[name](torch.tensor(sigma, dtype=torch.float64))
        assert coefficients_of(name, sigma) == tuple(c.item() for c in wanted)


def test_rescaling_keeps_the_spread_and_bears_answers_without_any():
    better, worse = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    better[2], worse[2] = 1.0, 0.5  # a row of one value
    found = Guidance(3.0, rescale=1.0).combine(better, worse)
    assert torch.allclose(found[:2].flatten(1).std(1), better[:2].flatten(1).std(1))
    assert torch.allclose(found[2], torch.full((1, 4, 4), 2.0)), "guided, and nothing else"
    assert torch.equal(
        Guidance(2.0, rescale=0.7).combine(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).flatten(), torch.zeros(4)
    )
