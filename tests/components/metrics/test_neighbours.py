"""Figures from nearest neighbours on point sets that can be checked by eye, and against torch-fidelity's definition."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from components.metrics import neighbours
from components.metrics.figures import values
from components.metrics.intervals import Resampling, parts
from components.metrics.neighbours import Inside, Manifold, memorised, nearest, neighbour_figures, squared_distances


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 2)  # every figure must be the same across blocks
    monkeypatch.setattr(neighbours, "_AMONG", 7)


def line(*places: float) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.float64)[:, None]


def normal(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inside(samples: torch.Tensor, real: torch.Tensor, k: int) -> Inside:
    return Inside.of(samples, Manifold.of(real, k), k)


def share(values: torch.Tensor) -> float:
    return float(values.double().mean())


def test_radius_reaches_to_the_kth_other_member():
    places = line(0, 1, 3, 7)
    assert Manifold.of(places, 1).squared_radii.tolist() == pytest.approx([1, 1, 4, 16])
    assert Manifold.of(places, 2).squared_radii.tolist() == pytest.approx([9, 4, 9, 36])


def test_more_neighbours_than_others_is_refused():
    with pytest.raises(ValueError, match="more than 3 images"):
        Manifold.of(line(0, 1, 2), 3)


def test_points_on_a_line():
    found = inside(line(0.5, 1.5, 5, 6), line(0, 1, 2, 10.25, 11.25), 1)
    # balls of real, k = 1: [-1, 1], [0, 2], [1, 3], [9.25, 11.25], [10.25, 12.25]
    # balls of samples: [-0.5, 1.5], [0.5, 2.5], [4, 6], [5, 7]
    assert share(found.precise()) == 2 / 4
    assert share(found.recalled()) == 3 / 5
    assert share(found.dense()) == (2 + 2) / (1 * 4)
    assert share(found.covered()) == 3 / 5


def test_a_copy_of_the_real_set_is_perfect_and_far_samples_are_worthless():
    points = normal(30, 3, 0)
    copy, far = inside(points, points, 3), inside(points + 100, points, 3)
    assert share(copy.precise()) == share(copy.covered()) == share(copy.recalled()) == 1
    assert share(far.precise()) == share(far.covered()) == share(far.recalled()) == share(far.dense()) == 0


def test_density_of_a_fresh_draw_of_the_same_distribution_is_about_one():
    # Naeem et al. 2020, lemma 1: the expectation is 1
    assert share(inside(normal(400, 2, 0), normal(400, 2, 1), 5).dense()) == pytest.approx(1, abs=0.1)


def test_shares_of_parts_are_those_of_the_samples_in_them():
    samples, real = normal(40, 2, 0), normal(30, 2, 1)
    found, halves = inside(samples, real, 2), parts(40, 2, 5, torch.Generator().manual_seed(0))
    assert halves.sum(1).eq(1).all(), "every sample is in one part"
    for split, shares in zip(halves > 0, neighbours._shares_hit(found.samples.T, halves), strict=True):
        assert shares.tolist() == pytest.approx([share(found.samples[part].any(0)) for part in split])
    wide = torch.cat(list(squared_distances(samples, samples))).kthvalue(2 * 2 + 1).values
    assert torch.equal(found.real_wide.T, torch.cat(list(squared_distances(samples, real))) <= wide[:, None])


@pytest.mark.parametrize("per_class", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [2, 4])
def test_parts_are_equal_all_in_all_and_in_every_class(number, per_class):
    labels = torch.arange(100 * per_class) % 100
    found = parts(len(labels), number, 3, torch.Generator().manual_seed(0), labels)
    assert found.sum(1).eq(1).all(), "every sample is in one part"
    sizes = found.sum(2)
    assert sizes.max() - sizes.min() <= 1
    of_classes = found @ torch.nn.functional.one_hot(labels).float()
    assert (of_classes.amax(1) - of_classes.amin(1)).max() <= 1
    assert not torch.equal(found[0], found[1]), "splits differ, of one sample a class too"


def test_intervals_of_recall_and_coverage_tell_the_spread_between_sets(monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 1024)
    real = Manifold.of(normal(150, 4, 0), 3)
    sets = [Inside.of(0.8 * normal(150, 4, seed) + 0.4, real, 3) for seed in range(1, 41)]
    resampling = Resampling.of(150, 20, 0)
    told = [(one.recall_variance(resampling.halves), one.coverage_variance(*resampling.parts)) for one in sets[:8]]
    found = [(share(one.recalled()), share(one.covered())) for one in sets]
    for variances, shares in zip(zip(*told, strict=True), zip(*found, strict=True), strict=True):
        assert (sum(variances) / len(variances)) ** 0.5 == pytest.approx(float(torch.tensor(shares).std()), rel=0.35)
    figures = neighbour_figures(sets[0], resampling)
    for name, value in zip(("recall", "coverage"), found[0], strict=True):
        low, high = figures[name].interval
        assert 0 <= low < value < high <= 1
    none = neighbour_figures(sets[0], Resampling.of(150, 0, 0))
    assert values(none) == values(figures) and all(one.interval is None for one in none.values())


def test_nearest_equals_scikit_learns():
    a, b = normal(20, 6, 0), normal(50, 6, 1)
    rows, distances = nearest(a, b, 3)
    theirs, places = NearestNeighbors(n_neighbors=3).fit(b).kneighbors(a)
    assert rows.tolist() == places.tolist()
    assert distances.flatten().tolist() == pytest.approx(theirs.flatten().tolist())


def test_a_copy_is_at_distance_zero_far_from_the_origin_too():
    train = 1000 + normal(50, 8, 1)
    rows, distances = nearest(train[[7, 3, 49]], train)
    assert rows[:, 0].tolist() == [7, 3, 49]
    assert distances.tolist() == [[0], [0], [0]]
    assert torch.cat(list(squared_distances(train, train))).diagonal().count_nonzero() == 0


def test_a_copy_is_much_nearer_to_one_training_image_than_to_all_others():
    assert memorised(line(0.5, 5, 20, 13, 20.5), line(0, 10, 20, 20)).tolist() == [True, False, True, False, True]
    assert memorised(line(3, 7), line(3, 3, 3)).tolist() == [True, False], "a set of one image has no other"


def test_of_distinct_images_a_copy_is_told_by_the_two_nearest():
    train, samples = normal(200, 8, 0), 0.9 * normal(200, 8, 1)
    samples[:50] = train[:50] + 0.3 * normal(50, 8, 2)
    distances = nearest(samples, train, 2)[1]
    found = memorised(samples, train)
    assert torch.equal(found, distances[:, 0] < distances[:, 1] / 3)
    assert 0 < share(found) < 1


@pytest.mark.parametrize("times", [2, 80])
@pytest.mark.parametrize("apart", [0, 1e-3])
def test_copies_of_images_that_are_stored_repeatedly_are_seen(monkeypatch, times, apart):
    monkeypatch.setattr(neighbours, "_ROWS", 1024)
    monkeypatch.setattr(neighbours, "_AMONG", 1000)
    if times == 80 and apart:
        pytest.skip("as many near copies as there are neighbours to tell the scale by are a cluster")
    once = normal(60, 16, 0)
    train = once.repeat(times, 1) + apart * normal(60 * times, 16, 1)
    copies, fresh = once[:40] + 1e-3 * normal(40, 16, 2), normal(40, 16, 3)
    assert memorised(copies, train).all()
    assert not memorised(fresh, train).any() and not memorised(1000 + fresh, train).any()
