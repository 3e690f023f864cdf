"""Rows by class, the ways between images and samples."""

from dataclasses import replace

import pytest
import torch

from components.data.dataset import Dataset
from components.evaluation.pictures import film_strip, interpolations, rows_by_class, walks
from components.sampling.requests import Conditions, Request
from tests.components.helpers import Rows, build, tiny_data
from tests.pipelines.measured import write_images


@pytest.fixture
def dataset(tmp_path):
    write_images(tmp_path / "set", 10, 0)
    return Dataset(tmp_path / "set")


def test_rows_by_class_are_the_first_of_each(dataset):
    assert [rows.tolist() for rows in rows_by_class(dataset, 3)] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize("name", ["bigbigan", "glow", "realnvp", "tarflow", "vae", "vdvae"])
def test_interpolations_end_in_what_comes_back_of_real_rows(name):
    """Of a flow the rows themselves; they depend on no other row."""
    sampler, columns = build(name), Rows(tiny_data(name), 4).columns
    rows, label = sampler.medium.rows(columns), columns["label"]
    starts, ends = (rows[:2], label[:2]), (rows[2:], label[2:])
    found = interpolations(sampler, starts, ends, 3).unflatten(0, (2, 3))
    assert found.abs().max() <= 1
    assert (found[:, 1] - found[:, 0]).abs().max() > 1e-4 and (found[:, 1] - found[:, 2]).abs().max() > 1e-4
    back = interpolations(sampler, ends, starts, 3).unflatten(0, (2, 3))
    torch.testing.assert_close(back.flip(1), found, rtol=0, atol=1e-4)
    if name in ("vae", "bigbigan"):
        torch.testing.assert_close(found[:, 0], sampler.reconstruct(starts[0]), rtol=0, atol=1e-4)
    if name in ("glow", "realnvp", "tarflow"):
        torch.testing.assert_close(found[:, [0, 2]], torch.stack([starts[0], ends[0]], 1), rtol=0, atol=1e-3)


def test_a_sampler_without_latents_of_rows_shows_no_interpolations():
    sampler = build("dcgan")
    rows = torch.zeros(1, *sampler.row_shape), None
    assert interpolations(sampler, rows, rows, 3) is None


def test_walks_go_from_the_first_samples_to_the_last():
    sampler = build("latent_diffusion")
    settings = sampler.Settings(num_inference_steps=3)
    first = Request(torch.tensor([1, 2]), settings, Conditions(label=torch.tensor([0, 1])))
    for last in (
        replace(first, seeds=torch.tensor([3, 4])),
        replace(first, conditions=Conditions(label=torch.tensor([2, 0]))),
    ):
        found = walks(sampler, first, last, 4).unflatten(0, (2, 4))
        torch.testing.assert_close(found[:, 0], sampler.sample(first), rtol=0, atol=1e-4)
        torch.testing.assert_close(found[:, -1], sampler.sample(last), rtol=0, atol=1e-4)
        assert (found[:, 1:] - found[:, :-1]).abs().amax((2, 3, 4)).min() > 1e-4


def test_a_film_strip_ends_in_the_image_and_shows_the_way():
    sampler = build("latent_diffusion")
    request = Request(torch.arange(2), sampler.Settings(num_inference_steps=5), Conditions(label=torch.tensor([0, 1])))
    images, progress = film_strip(sampler, request, frames=4)
    assert images.shape == (4, 2, 1, 16, 16)
    assert progress == sorted(progress) and progress[-1] == 1.0 and 0 < progress[0] < 0.5
    assert torch.equal(images[-1], sampler.sample(request))
    few, _ = film_strip(
        sampler,
        Request(request.seeds, sampler.Settings(num_inference_steps=2), Conditions(label=request.conditions.label)),
        8,
    )
    assert len(few) == 2  # an estimate between the two steps, and the image
    gan = build("dcgan")
    assert film_strip(gan, Request(torch.arange(2), gan.Settings()), frames=4) is None
