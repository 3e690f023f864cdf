"""Figures from a classifier's answers, by hand and against brute force, and intervals."""

import math

import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

from components.evaluation.set_figures import diversity_figure
from components.metrics import classes, intervals
from components.metrics.kernel import CMMD_SCALE, CMMD_SIGMA, KernelReference, cmmd


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_inception_score_spans_one_to_the_number_of_classes():
    sure = 50 * torch.eye(4).repeat(3, 1)
    assert float(classes.inception_score(sure)) == pytest.approx(4)
    assert float(classes.inception_score(sure[:1].repeat(5, 1))) == pytest.approx(1)
    assert float(classes.inception_score(torch.zeros(5, 4))) == pytest.approx(1)


def test_inception_score_of_resampled_sets_is_that_of_the_sets():
    logits, rows = normal(20, 5), intervals.resampled_rows(20, 3, torch.Generator().manual_seed(0))
    weighted = classes.inception_score(logits, intervals.multiplicities(rows, 20))
    assert weighted.tolist() == pytest.approx([float(classes.inception_score(logits[row])) for row in rows])


def test_confidence_is_the_probability_of_the_class_asked_for():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert classes.confidence(logits, torch.tensor([0, 1])).tolist() == pytest.approx([0.25, 0.75])


def test_a_classifier_learns_from_good_samples_and_not_from_wrong_labels():
    labels = torch.arange(60) % 2
    images = (normal(60, 1, 8, 8) * 0.1 + (2 * labels - 1)[:, None, None, None]).float()
    real, real_labels = images[:20], labels[:20]
    assert classes.trained_on_samples(images[20:], labels[20:], real, real_labels).all()
    assert not classes.trained_on_samples(images[20:], 1 - labels[20:], real, real_labels).any()


def test_cmmd_equals_scikit_learns_kernel_over_pairs():
    a, b = normal(12, 6), normal(15, 6, seed=1) + 0.3
    x, y = (values / values.norm(dim=1, keepdim=True) for values in (a, b))
    gamma = 1 / (2 * CMMD_SIGMA**2)
    within = [(rbf_kernel(v, v, gamma=gamma).sum() - len(v)) / (len(v) * (len(v) - 1)) for v in (x, y)]
    expected = CMMD_SCALE * (sum(within) - 2 * rbf_kernel(x, y, gamma=gamma).mean())
    assert cmmd(a, KernelReference(b))[0] == pytest.approx(float(expected), rel=1e-9)


def test_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = normal(400)
    rows = intervals.resampled_rows(400, 2000, torch.Generator().manual_seed(0))
    low, high = intervals.of_mean(values, intervals.multiplicities(rows, 400))
    assert high - low == pytest.approx(2 * 1.96 * float(values.std()) / 20, rel=0.1)
    assert low < float(values.mean()) < high
    # Brown, Cai and DasGupta 2001: 10 of 10 gives 0.7225 to 1
    assert intervals.of_share(1.0, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    assert intervals.of_share(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert intervals.of_spread_share(0.5, 0.25 / 100, 7) == intervals.of_share(0.5, 100)
    assert intervals.of_spread_share(1.0, 0.0, 50) == intervals.of_share(1.0, 50)
    assert intervals.normal(1.0, 0.5) == pytest.approx((0.02, 1.98), abs=0.001)


def test_resamples_keep_the_number_of_each_stratum():
    labels = torch.arange(30) % 3
    for row in intervals.resampled_rows(30, 5, torch.Generator().manual_seed(0), labels):
        assert torch.bincount(labels[row]).tolist() == [10, 10, 10]


def test_diversity_pairs_images_of_one_class_alone():
    images = torch.tensor([0.0, 10.0, 1.0, 12.0])[:, None, None, None]
    labels = torch.tensor([0, 1, 0, 1])

    def distance(a, b):
        return (a - b).abs().flatten()

    assert diversity_figure(distance, images, labels).value == (1 + 2) / 2
    assert diversity_figure(distance, images[:2], labels[:2]) is None
    assert diversity_figure(None, images, labels) is None


def test_label_agreement_is_the_share_of_hits():
    logits = torch.eye(3)[[0, 1, 2, 2]]
    assert classes.label_agreement(logits, torch.tensor([0, 1, 2, 0])) == 0.75
