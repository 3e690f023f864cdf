"""Figures from nearest neighbours on point sets that can be checked by eye."""

import pytest
import torch

from components.metrics import neighbours
from components.metrics.neighbours import Manifold, coverage, density, nearest, share_inside


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 2)  # every figure must be the same across blocks


def line(*places: float) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.float64)[:, None]


def test_radius_reaches_to_the_kth_other_member():
    places = line(0, 1, 3, 7)
    assert Manifold.of(places, 1).radii.tolist() == [1, 1, 2, 4]
    assert Manifold.of(places, 2).radii.tolist() == [3, 2, 3, 6]


def test_more_neighbours_than_others_is_refused():
    with pytest.raises(ValueError, match="more than 3 images"):
        Manifold.of(line(0, 1, 2), 3)


def test_precision_and_recall_of_points_on_a_line():
    real, samples = line(0, 1, 2, 10, 11), line(0.5, 1.5, 5, 6)
    # balls of real, k = 1: [-1, 1], [0, 2], [1, 3], [9, 11], [10, 12]
    # balls of samples: [-0.5, 1.5], [0.5, 2.5], [4, 6], [5, 7]
    assert share_inside(samples, Manifold.of(real, 1)) == 2 / 4
    assert share_inside(real, Manifold.of(samples, 1)) == 3 / 5


def test_density_counts_balls_and_coverage_covered_balls():
    real, samples = Manifold.of(line(0, 1, 2, 10, 11), 1), line(0.5, 1.5, 5, 6)
    assert density(samples, real, 1) == (2 + 2) / (1 * 4)
    assert coverage(samples, real) == 3 / 5


def test_a_copy_of_the_real_set_is_perfect_and_far_samples_are_worthless():
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    real = Manifold.of(points, 3)
    assert share_inside(points, real) == coverage(points, real) == 1
    assert share_inside(points + 100, real) == coverage(points + 100, real) == density(points + 100, real, 3) == 0


def test_density_of_a_fresh_draw_of_the_same_distribution_is_about_one():
    draws = torch.randn(2, 400, 2, generator=torch.Generator().manual_seed(0))
    # Naeem et al. 2020, lemma 1: the expectation is 1
    assert density(draws[1], Manifold.of(draws[0], 5), 5) == pytest.approx(1, abs=0.1)


def test_nearest_finds_a_copy_at_distance_zero():
    train = 1000 + torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    rows, distances = nearest(train[[7, 3, 49]], train)
    assert rows.tolist() == [7, 3, 49]
    assert distances.tolist() == [0, 0, 0]
