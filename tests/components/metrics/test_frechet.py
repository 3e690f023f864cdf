"""The Fréchet distance against closed forms and against torchmetrics on the same features."""

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from components.metrics.frechet import (
    Moments,
    Sums,
    balanced_figure,
    frechet_distance,
    frechet_figures,
    frechet_infinity,
    frechet_interval,
)
from components.metrics.intervals import Resampling, resampled_rows


def normal(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Features(torch.nn.Module):
    """Lets torchmetrics take features for images."""

    num_features = 8

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def test_moments_are_mean_and_unbiased_covariance_whatever_the_chunks():
    features = 5 + normal(101, 6, 0)
    for chunk in (1, 7, 101, 500):
        moments = Moments.of(features, chunk)
        assert moments.count == 101
        torch.testing.assert_close(moments.mean, features.mean(0))
        torch.testing.assert_close(moments.covariance, torch.cov(features.T))


def test_moments_need_two_vectors():
    with pytest.raises(ValueError, match="at least 2"):
        Moments.of(normal(1, 3, 0))


def test_diagonal_gaussians_have_a_closed_form():
    # commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2
    a = Moments(10, torch.tensor([0.0, 1.0]).double(), torch.diag(torch.tensor([4.0, 9.0]).double()))
    b = Moments(10, torch.tensor([3.0, 1.0]).double(), torch.diag(torch.tensor([1.0, 25.0]).double()))
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 4)
    assert frechet_distance(b, a) == pytest.approx(14)


def test_equals_torchmetrics_on_the_same_features():
    torch.manual_seed(0)
    real, fake = normal(200, 8, 1) @ normal(8, 8, 2), 0.3 + normal(150, 8, 3) @ normal(8, 8, 4)
    theirs = FrechetInceptionDistance(feature=Features()).set_dtype(torch.float64)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = frechet_distance(Moments.of(fake), Moments.of(real))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_singular_covariances_of_fewer_images_than_features():
    few = normal(5, 40, 0)
    assert frechet_distance(Moments.of(few), Moments.of(few)) == pytest.approx(0, abs=1e-6)
    shifted = frechet_distance(Moments.of(few + 2), Moments.of(few))
    assert shifted == pytest.approx(40 * 4, rel=1e-6)


def rows(count: int, seed: int = 0, resamples: int = 200, strata: torch.Tensor | None = None) -> torch.Tensor:
    return resampled_rows(count, resamples, torch.Generator().manual_seed(seed), strata)


def test_moments_of_parts_add_up_in_any_grouping():
    features = 3 + normal(50, 4, 0)
    parts = [Sums.of(part) for part in features.split([1, 20, 29])]
    together = parts[0].plus(parts[1].plus(parts[2])).moments()
    torch.testing.assert_close(together.covariance, torch.cov(features.T))
    torch.testing.assert_close(together.mean, features.mean(0))


def test_interval_covers_the_spread_over_seeds_and_holds_the_distance():
    reference = Moments.of(normal(2000, 4, 0))
    low, high = frechet_interval(0.5 + normal(300, 4, 1), reference, rows(300))
    assert low < frechet_distance(Moments.of(0.5 + normal(300, 4, 1)), reference) < high
    others = torch.tensor(
        [frechet_distance(Moments.of(0.5 + normal(300, 4, seed)), reference) for seed in range(2, 202)]
    )
    spread = float(others.quantile(0.975) - others.quantile(0.025))
    assert high - low == pytest.approx(spread, rel=0.35)


def test_interval_is_a_function_of_its_rows():
    reference, features = Moments.of(normal(50, 4, 0)), normal(50, 4, 1)
    first, again, other = (frechet_interval(features, reference, rows(50, seed, 20)) for seed in (3, 3, 4))
    assert first == again != other


def test_the_distance_at_infinity_is_the_same_of_odd_classes():
    exact = Moments(10**9, torch.zeros(8).double(), torch.eye(8).double())
    for per_class in (1, 3):
        labels = torch.arange(100 * per_class) % 100
        found = [
            frechet_infinity(normal(len(labels), 8, seed), exact, Resampling.of(len(labels), 0, seed, labels).halves)
            for seed in range(20)
        ]
        assert sum(found) / len(found) == pytest.approx(0, abs=0.03), "the samples are of the very distribution"


def test_interval_of_strata_is_the_spread_of_sets_with_as_many_of_each():
    reference = Moments.of(normal(2000, 2, 0))
    labels = torch.arange(200) % 2
    far = 10 * labels[:, None]

    def distance(seed: int) -> float:
        return frechet_distance(Moments.of(normal(200, 2, seed) + far), reference)

    def width(strata: torch.Tensor | None) -> float:
        low, high = frechet_interval(normal(200, 2, 1) + far, reference, rows(200, strata=strata))
        return high - low

    others = torch.tensor([distance(seed) for seed in range(2, 152)])
    spread = float(others.quantile(0.975) - others.quantile(0.025))
    assert width(labels) == pytest.approx(spread, rel=0.35)
    assert width(None) > 2 * spread


def test_extrapolation_takes_the_bias_of_few_samples_away():
    reference = Moments(10**6, torch.zeros(8).double(), torch.eye(8).double())
    plain, limits = [], []
    for seed in range(30):
        features, resampling = 0.2 + normal(60, 8, seed), Resampling.of(60, 20, seed)
        found = frechet_figures(features, reference, resampling)
        plain.append(found["frechet_distance"].value)
        limits.append(found["frechet_infinity"].value)
        low, high = found["frechet_infinity"].interval
        assert low <= max(limits[-1], 0) <= high
    truth, spread = 8 * 0.2**2, torch.tensor(limits).std() / 30**0.5
    assert abs(torch.tensor(limits).mean() - truth) < 3 * spread
    assert torch.tensor(plain).mean() - truth > 5 * spread
    assert frechet_infinity(normal(15, 8, 0), reference, Resampling.of(15, 20, 0).halves) is None


def test_weights_stand_for_repetitions_and_balance_a_lopsided_set():
    features, weights = normal(60, 3, 0), torch.arange(60) % 4
    moments, repeated = Moments.weighted(features, weights), features.repeat_interleave(weights, dim=0)
    torch.testing.assert_close(moments.mean, repeated.mean(0))
    torch.testing.assert_close(Moments.weighted(features, torch.ones(60)).covariance, torch.cov(features.T))
    torch.testing.assert_close(moments.covariance, torch.cov(repeated.T), rtol=0.05, atol=0.05)
    labels = (torch.arange(400) % 4 == 0).long()  # a quarter where the reference has a half
    far = 5 * labels[:, None]
    reference = Moments.of(normal(2000, 3, 1) + 5 * (torch.arange(2000) % 2)[:, None])
    resampling = Resampling.of(400, 20, 0)
    lopsided = normal(400, 3, 2) + far
    found = balanced_figure(lopsided, reference, torch.where(labels > 0, 2.0, 2 / 3), resampling)
    assert found.value < 0.15 < frechet_figures(lopsided, reference, resampling)["frechet_distance"].value
    assert found.interval[0] <= found.value <= found.interval[1]
