"""Kernel distance against torchmetrics, a loop over pairs, and the spread that its standard error claims."""

import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from components.metrics import kernel
from components.metrics.kernel import KernelReference, kernel_distance, kernel_figures


def normal(count: int, seed: int, dim: int = 5) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_torchmetrics_where_both_sets_have_the_same_size(monkeypatch):
    monkeypatch.setattr(kernel, "_ROWS", 7)  # blocks must not show
    generated, reference = 0.2 + normal(60, 0), normal(60, 1)
    ours, _ = kernel_distance(generated, KernelReference(reference))
    assert ours == pytest.approx(float(poly_mmd(reference, generated)), rel=1e-9)


def test_sets_of_different_sizes_by_hand():
    generated, reference = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[0.0], [1.0], [3.0]]).double()
    # k(x, y) = (x y + 1)^3: within 3^3 = 27; among reference 1, 1, 4^3; across 1, 2^3, 4^3 and 1, 3^3, 7^3
    expected = 27 + (1 + 1 + 64) / 3 - 2 * (1 + 8 + 64 + 1 + 27 + 343) / 6
    assert kernel_distance(generated, KernelReference(reference))[0] == pytest.approx(expected)


def test_standard_error_is_the_spread_over_sets_against_one_reference():
    reference = KernelReference(normal(120, 1000))
    pairs = [kernel_distance(0.4 + normal(80, seed), reference) for seed in range(150)]
    distances, errors = torch.tensor(pairs).T
    assert float(errors.mean()) == pytest.approx(float(distances.std()), rel=0.3)


CLASSES = torch.tensor([[-3.0] * 5, [0.0] * 5, [3.0] * 5]).double()


def by_class(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As many of each of three classes far apart, as nobody draws by chance."""
    labels = torch.arange(count) % 3
    return CLASSES[labels] + normal(count, seed), labels


def test_sets_of_chosen_classes_are_compared_class_by_class():
    plain, within, errors = [], [], []
    for seed in range(40):
        (generated, asked), (reference, labels) = by_class(30, seed), by_class(45, 1000 + seed)
        plain.append(kernel_distance(generated, KernelReference(reference))[0])
        value, error = kernel_distance(generated, KernelReference(reference, labels), asked)
        within.append(value)
        errors.append(error)
    mean, spread = torch.tensor(within).mean(), torch.tensor(within).std()
    assert abs(mean) < 3 * spread / len(within) ** 0.5, "one distribution: around 0"
    assert torch.tensor(plain).max() < 0, "pairs of one class are too few among all pairs"
    shifted = [kernel_distance(0.5 + by_class(30, seed)[0], *_fixed()) for seed in range(40)]
    distances, told = torch.tensor(shifted).T
    assert float(told.mean()) == pytest.approx(float(distances.std()), rel=0.35)


def _fixed() -> tuple[KernelReference, torch.Tensor]:
    return KernelReference(*by_class(45, 5000)), torch.arange(30) % 3


def test_classes_by_hand():
    generated, asked = torch.tensor([[1.0], [2.0], [3.0], [5.0]]).double(), torch.tensor([0, 0, 1, 1])
    reference, labels = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([0, 0])
    # k(x, y) = (x y + 1)^3; within 0: 3^3, within 1: 16^3, across: 4^3, 6^3, 7^3, 11^3; shares 1/2 each
    own = 0.25 * 27 + 0.25 * 16**3 + 0.5 * (64 + 216 + 343 + 1331) / 4
    across = (4 * 1 + 2**3 + 3**3 + 4**3 + 6**3) / 8
    assert kernel_distance(generated, KernelReference(reference, labels), asked)[0] == pytest.approx(
        own + 1 - 2 * across
    )


@pytest.mark.parametrize(
    "labels", [[0, 0, 1, 1, 2], [0, 1, 1, 2, 2], [0, 1, 2, 3, 4], [0, 1, 2, 2, 2], [7, 7, 7, 7, 7]]
)
def test_a_class_of_one_joins_others(labels):
    strata = kernel._strata(torch.tensor(labels), 5)
    assert torch.bincount(strata).min() >= 2
    assert kernel_distance(normal(5, 0), KernelReference(normal(9, 1)), torch.tensor(labels))[1] > 0


def test_needs_two_images_a_side():
    for ours, theirs in ((1, 5), (5, 1)):
        with pytest.raises(ValueError, match="2 images or more on each side, found 1"):
            kernel_distance(normal(ours, 0), KernelReference(normal(theirs, 1)))


def test_what_real_images_are_among_themselves_is_computed_once(monkeypatch):
    reference, generated = KernelReference(normal(60, 1)), [normal(20, seed) for seed in (2, 3)]
    expected = [kernel_figures(one, KernelReference(normal(60, 1))) for one in generated]
    assert kernel_figures(generated[0], reference) == expected[0]
    sizes, plain = [], kernel._own_means
    monkeypatch.setattr(kernel, "_own_means", lambda one, *how: sizes.append(len(one)) or plain(one, *how))
    assert kernel_figures(generated[1], reference) == expected[1]
    assert sizes == [20, 20]
