"""Mode coverage at points computed by hand, and what counts as collapsed."""

from __future__ import annotations

import math

import pytest
import torch

from components.metrics.figures import values
from components.metrics.modes import (
    Floors,
    balancing_weights,
    collapsed,
    coverage_of,
    imbalance_figure,
    kmeans,
    mode_coverage,
    ndb,
    overfitted,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coverage(labels: torch.Tensor, num_classes: int, **options: float) -> dict[str, float]:
    return values(mode_coverage(labels, num_classes, **options))


def test_uniform_labels_hit_every_class():
    assert coverage(torch.arange(100) % 10, 10) == {"classes_hit": 10, "label_entropy": pytest.approx(1)}


def test_one_class_is_all_that_a_collapsed_sampler_hits():
    assert coverage(torch.full((50,), 3), 10) == {"classes_hit": 1, "label_entropy": 0}


def test_entropy_of_two_classes_of_four():
    assert coverage(torch.tensor([0, 0, 2, 2]), 4)["label_entropy"] == pytest.approx(math.log(2) / math.log(4))


def test_a_stray_label_is_no_mode():
    labels = torch.cat([torch.zeros(999, dtype=torch.int64), torch.tensor([1])])
    assert coverage(labels, 10)["classes_hit"] == 1
    assert coverage(labels, 10, least=0.005)["classes_hit"] == 2


def blobs(per_blob: list[int], seed: int) -> torch.Tensor:
    centres = torch.tensor([[0.0, 0], [20, 0], [0, 20], [20, 20]])
    parts = [
        centre + torch.randn(n, 2, generator=seeded(seed + n)) for n, centre in zip(per_blob, centres, strict=True)
    ]
    return torch.cat(parts)


def test_kmeans_finds_separate_blobs():
    centres = kmeans(blobs([40, 50, 60, 70], 0).double(), 4, seeded())
    found = sorted(tuple(round(float(x) / 20) for x in centre) for centre in centres)
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_bins_that_lost_or_gained_samples_differ():
    real = blobs([200, 200, 200, 200], 0)
    assert ndb(real, blobs([200, 201, 199, 202], 9), 4, seeded()) == 0
    assert ndb(real, blobs([200, 200, 400, 0], 9), 4, seeded()) == 0.5
    assert ndb(real, blobs([800, 0, 0, 0], 9), 4, seeded()) == 1


def test_equal_distributions_differ_by_chance_alone():
    shares = [
        ndb(torch.randn(500, 3, generator=seeded(k)), torch.randn(500, 3, generator=seeded(100 + k)), 20, seeded(k))
        for k in range(10)
    ]
    assert sum(shares) / 10 < 0.15, "about 0.05, plus what k-means fits to one of the samples"


def test_more_bins_than_features_are_refused():
    with pytest.raises(ValueError, match="30 bins"):
        ndb(torch.randn(20, 2), torch.randn(20, 2), 30, seeded())


HEALTHY = {"classes_hit": 10.0, "label_entropy": 0.95, "recall": 0.8}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classes_hit": 2.0}, "collapsed: draws 2 of 10 classes"),
        ({"label_entropy": 0.3}, "collapsed: the entropy of its labels is 0.30"),
        ({"recall": 0.01}, "collapsed: 1.0% of the real images"),
    ],
)
def test_collapse_names_its_sign(change, reason):
    assert collapsed(HEALTHY, 10) is None
    assert collapsed({**HEALTHY, **change}, 10).startswith(reason)


def test_unbalanced_data_are_no_collapse_of_who_draws_them():
    shares = torch.tensor([0.9, 0.06, 0.03, 0.004, 0.003, 0.003])
    perfect = values(coverage_of(shares)) | {"recall": 0.8}
    assert perfect["classes_hit"] == 3 and perfect["label_entropy"] < 0.3
    assert collapsed(perfect, 6).startswith("collapsed: draws 3 of 6 classes")
    assert collapsed(perfect, 6, shares) is None
    assert collapsed({**perfect, "classes_hit": 1.0}, 6, shares) == "collapsed: draws 1 of 3 classes"
    told = collapsed({**perfect, "label_entropy": 0.05}, 6, shares)
    assert told.startswith("collapsed: the entropy of its labels is 0.05") and told.endswith("that of real images 0.24")


def test_missing_figures_say_nothing():
    assert collapsed({}, 10) is None
    assert collapsed({"frechet_distance": 300.0}, 10) is None
    assert collapsed({"recall": 0.2}, 10, floors=Floors(recall=0.3)) is not None


def test_overfitting_is_a_gap_between_training_and_held_out_images():
    assert overfitted({"accuracy_train": 0.9, "accuracy_held_out": 0.85}) is None
    assert overfitted({"accuracy_train": 1.0, "accuracy_held_out": 0.2}).startswith("over-fitted")
    assert overfitted({"accuracy_train": 1.0}) is None


def test_weights_give_the_real_class_shares_and_what_is_missing_is_told():
    labels, real = torch.tensor([0, 0, 0, 1]), torch.tensor([0.5, 0.25, 0.25]).double()
    weights = balancing_weights(labels, real)
    assert weights.tolist() == pytest.approx([8 / 9, 8 / 9, 8 / 9, 4 / 3])  # 2 to 1, as the classes that come
    assert imbalance_figure(labels, real).value == pytest.approx(0.25)
    assert imbalance_figure(torch.tensor([0, 0, 1, 2]), real).value == 0
    assert balancing_weights(torch.tensor([2, 2]), torch.tensor([1.0, 0, 0]).double()).tolist() == [1, 1]
