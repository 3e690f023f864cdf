"""The second opinion: principal components against scikit-learn's, and a distance that sees a shift."""

import pytest
import torch
from sklearn.decomposition import PCA

from components.metrics.intervals import Resampling
from components.metrics.principal import PixelReference, Projection, pixel_figure, small


def images(count: int, seed: int) -> torch.Tensor:
    noise = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return 2 * noise * torch.linspace(0.1, 1, 8) - 1


def test_components_are_those_of_scikit_learn():
    pixels = small(images(90, 0))
    ours, theirs = Projection.of(pixels, 5), PCA(5).fit(pixels.double().numpy())
    found, expected = ours(pixels), torch.from_numpy(theirs.transform(pixels.double().numpy()))
    torch.testing.assert_close(found.abs(), expected.abs(), atol=1e-6, rtol=1e-6)
    assert Projection.of(pixels).basis.shape == (64, 64)


@pytest.mark.parametrize(
    ("shape", "numbers"), [((3, 32, 32), 3 * 256), ((1, 8, 20), 8 * 16), ((1, 4000), 1024), ((3, 4, 32, 32), 3 * 256)]
)
def test_long_axes_are_averaged_down(shape, numbers):
    assert small(torch.ones(2, *shape)).tolist() == [[1.0] * numbers] * 2


def test_the_distance_sees_a_shift_and_little_of_a_fresh_draw():
    reference = PixelReference.of(small(images(200, 0)), small(images(150, 1)))
    same, moved = (
        pixel_figure(small(rows), reference, Resampling.of(150, 20, 0))
        for rows in (images(150, 2), images(150, 2).roll(3, dims=3))
    )
    assert moved.value > 4 * same.value and moved.interval[0] > same.interval[1]
    assert pixel_figure(small(images(9, 0)), reference, Resampling.of(9, 0, 0)).interval is None
