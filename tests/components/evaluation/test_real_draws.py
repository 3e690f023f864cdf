"""Real images drawn as samples are."""

import pytest
import torch

from components.data.info import DataInfo
from components.evaluation.real_draws import drawn_rows, over_draws, training_bias
from components.metrics.figures import named
from components.metrics.frechet import FRECHET_DISTANCE
from components.metrics.kernel import CMMD
from tests.benchmarks import fd_floor
from tests.benchmarks.rates import Data

LABELS = torch.arange(60) // 20  # sorted, as a folder of classes is read


def test_rows_are_of_the_classes_asked_for_without_repetition():
    rows = drawn_rows(torch.arange(30) % 3, LABELS, 60, 30, 0)
    assert len(rows.unique()) == 30 and torch.bincount(LABELS[rows]).tolist() == [10, 10, 10]
    assert torch.equal(rows, drawn_rows(torch.arange(30) % 3, LABELS, 60, 30, 0))
    assert not torch.equal(rows, drawn_rows(torch.arange(30) % 3, LABELS, 60, 30, 1))
    assert len(drawn_rows(torch.zeros(30), LABELS, 60, 30, 0)) == 20, "as many as there are"


def test_rows_by_chance_are_of_the_whole_set():
    rows = drawn_rows(None, LABELS, 60, 30, 0)
    assert len(rows.unique()) == 30 and torch.bincount(LABELS[rows]).min() >= 3
    assert len(drawn_rows(None, None, 10, 30, 0)) == 10


def test_figures_over_draws_are_means_with_the_spread_of_the_draws():
    draws = [named(FRECHET_DISTANCE.figure(value), CMMD.figure(0.0) if value else None) for value in range(41)]
    found = over_draws(draws)
    assert list(found) == ["frechet_distance"], "the first has no other"
    assert found["frechet_distance"].value == 20 and found["frechet_distance"].interval == pytest.approx((1, 39))


def test_an_extractor_that_knows_the_training_images_is_told():
    generator = torch.Generator().manual_seed(0)
    train, held_out = (torch.randn(count, 4, generator=generator) for count in (300, 120))
    found = training_bias(train, torch.arange(300) % 3, held_out, torch.arange(120) % 3, 20, 0)
    low, high = found["training_bias"].interval
    assert low < 0 < high, "equal distributions"
    found = training_bias(1.4 * train, None, held_out, None, 20, 0)
    assert found["training_bias"].interval[0] > 0
    assert found["training_distance"].value > found["held_out_distance"].value
    assert training_bias(train, None, held_out[:3], None, 20, 0) == {}
    of_each = training_bias(train, torch.arange(300) % 120, held_out, torch.arange(120), 20, 0)
    low, high = of_each["training_bias"].interval
    assert low < 0 < high, "one held-out image a class"


def test_a_judge_of_one_half_never_saw_the_other():
    """What the benchmark fd_floor trains its second judge on."""
    columns = {"image": torch.arange(61), "label": torch.cat([LABELS, torch.tensor([2])])}
    one, other = fd_floor.halves(Data(DataInfo(shape=(1, 4, 4), classes=("a", "b", "c")), columns))
    both = torch.cat([one.columns["image"], other.columns["image"]])
    assert both.sort().values.tolist() == list(range(61)), "each image is in one half"
    counts = [torch.bincount(half.columns["label"]) for half in (one, other)]
    assert (counts[0] - counts[1]).abs().max() <= 1, "classes are split alike"
