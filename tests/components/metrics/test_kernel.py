"""Kernel distance against torchmetrics, a loop over pairs, and the spread that its standard error claims."""

import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from components.metrics import kernel
from components.metrics.kernel import kernel_distance


def normal(count: int, seed: int, dim: int = 5) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_torchmetrics_where_both_sets_have_the_same_size(monkeypatch):
    monkeypatch.setattr(kernel, "_ROWS", 7)  # blocks must not show
    generated, reference = 0.2 + normal(60, 0), normal(60, 1)
    ours, _ = kernel_distance(generated, reference)
    assert ours == pytest.approx(float(poly_mmd(reference, generated)), rel=1e-9)


def test_sets_of_different_sizes_by_hand():
    generated, reference = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[0.0], [1.0], [3.0]]).double()
    # k(x, y) = (x y + 1)^3: within 3^3 = 27; among reference 1, 1, 4^3; across 1, 2^3, 4^3 and 1, 3^3, 7^3
    expected = 27 + (1 + 1 + 64) / 3 - 2 * (1 + 8 + 64 + 1 + 27 + 343) / 6
    assert kernel_distance(generated, reference)[0] == pytest.approx(expected)


def test_standard_error_is_the_spread_over_sets():
    pairs = [kernel_distance(0.4 + normal(80, seed), normal(120, 1000 + seed)) for seed in range(150)]
    distances, errors = torch.tensor(pairs).T
    assert float(errors.mean()) == pytest.approx(float(distances.std()), rel=0.3)


def test_needs_two_images_a_side():
    with pytest.raises(ValueError, match="2 images"):
        kernel_distance(normal(1, 0), normal(5, 1))
