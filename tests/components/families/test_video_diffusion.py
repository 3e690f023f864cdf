"""Diffusion of films: any length, a first frame that is told, noise by length, levels by frame."""

from __future__ import annotations

import pytest
import torch

from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.diffusion.objectives import OBJECTIVES
from components.errors import SamplerError
from components.families import family_class
from components.families.video_diffusion import FilmPreconditioner, beginning, shift
from components.nets.dit import patches, unpatched
from components.sampling.requests import Conditions, Request, Source
from components.sampling.trajectories import drive
from tests.components.families.contract import co_batched
from tests.components.helpers import Rows, build, tiny_data

NAME = "video_diffusion"
LONG = tiny_data(NAME).model_copy(update={"shape": (2, 4, 4, 4)})
LONG = LONG.model_copy(
    update={
        "autoencoder": LONG.autoencoder.model_copy(
            update={"data": LONG.autoencoder.data.model_copy(update={"shape": (1, 13, 8, 8)})}
        )
    }
)


@pytest.fixture(scope="module")
def sampler():
    made = build(NAME, data=LONG)
    for name, parameter in made.nets["denoiser"].named_parameters():
        if "modulation" in name or "head" in name:  # which are zero at first
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    made.nets.eval()
    return made


def asked(sampler, seeds, first=None, **settings) -> Request:
    seeds = torch.tensor(seeds)
    settings = sampler.Settings(num_inference_steps=3, **settings)
    return Request(seeds, settings, Conditions(label=seeds % 3, first=first))


def test_films_of_every_length_are_made_and_others_refused(sampler):
    for frames in (1, 5, 9, 13):
        assert sampler.sample(asked(sampler, [3, 4], frames=frames)).shape == (2, 1, frames, 8, 8)
    assert sampler.sample(asked(sampler, [3])).shape == (1, *sampler.row_shape)
    for frames in (2, 4, 17):
        with pytest.raises(SamplerError, match=rf"^frames: expected 1, 5, 9, ... up to 13, found {frames}$"):
            sampler.sample(asked(sampler, [3], frames=frames))
    request = asked(sampler, [3], frames=5)
    source = Source(torch.zeros(1, 1, 13, 8, 8), 0.5)
    with pytest.raises(SamplerError, match="frames: a film is edited at its own length, 13, found 5"):
        sampler.sample(Request(request.seeds, request.settings, Conditions(source=source)))


def test_a_film_begins_with_the_picture_that_it_is_given(sampler):
    first = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    made = sampler.sample(asked(sampler, [3, 4], first))
    net = sampler.nets["autoencoder"]
    with torch.inference_mode():
        kept = net.decode(net.encode(first[:, :, None])[0]).clamp(-1, 1)
    assert torch.allclose(made[:, :, :1], kept, atol=1e-5), "as its autoencoder shows it"
    others = sampler.sample(asked(sampler, [3, 4], first.flip(0)))
    assert (made[:, :, 1:] - others[:, :, 1:]).abs().amax((1, 2, 3, 4)).min() > 1e-3, "what follows depends on it"
    with pytest.raises(SamplerError, match="first: expected pictures 1x8x8, found 1x8x4"):
        sampler.sample(asked(sampler, [3, 4], first[..., :4]))
    with pytest.raises(SamplerError, match="first: this sampler makes no images that begin with a picture"):
        other = build("latent_diffusion")
        other.sample(Request(torch.tensor([3]), other.Settings(), Conditions(first=first[:1])))


def test_films_with_and_without_a_first_frame_share_forwards(sampler):
    first = torch.zeros(1, 1, 8, 8)
    requests = [asked(sampler, [5]), asked(sampler, [6], first), asked(sampler, [7])]
    made, forwards = co_batched(sampler, requests)
    for request, film in zip(requests, made, strict=True):
        assert torch.allclose(film, sampler.sample(request), atol=1e-4)
    assert max(forward.rows for forward in forwards if forward.net == "denoiser") > 2


def test_what_is_told_clean_has_no_noise_and_level_zero():
    told = FilmPreconditioner("flow", build(NAME).schedule, first=torch.full((2, 1, 1, 2, 2), 0.5))
    x = torch.randn(4, 1, 3, 2, 2)
    question = told.question(x, 2.0)
    c_in = float(OBJECTIVES["flow"](torch.tensor(2.0, dtype=torch.float64)).c_in)
    assert (question["x"][:, :, 0] == 0.5).all() and torch.allclose(question["x"][:, :, 1:], c_in * x[:, :, 1:])
    assert question["level"].shape == (4, 3)
    assert (question["level"][:, 0] == 0).all() and (question["level"][:, 1:] > 0).all()
    assert (told.denoised(x, 2.0, torch.randn_like(x))[:, :, 0] == 0.5).all()


def test_steps_train_on_all_lengths_alike_on_all_workers():
    told = [build(NAME, data=LONG, image_share=0.2, shorter_share=0.5).trained_frames for _ in range(2)]
    counted = [torch.tensor([frames(step) for step in range(2000)]) for frames in told]
    assert torch.equal(*counted)
    shares = torch.bincount(counted[0], minlength=5) / 2000
    assert torch.allclose(shares, torch.tensor([0, 0.2, 0.2, 0.2, 0.4]), atol=0.04)


def test_longer_films_get_more_noise(sampler):
    short, whole = (sampler.sigmas(sampler.Settings(frames=frames)) for frames in (1, 13))
    assert torch.allclose(torch.tensor(whole), torch.tensor(short) * 2), "four latent frames: the root of four"
    assert shift(1) == 1


def test_a_told_frame_is_not_asked_for():
    """The loss of rows whose first frame is told does not depend on what the net answers there."""
    family = build(NAME, first_share=1.0, image_share=0.0)
    rows = Rows(tiny_data(NAME), 4)
    batch = Batch(rows.columns, Draws.of_seeds(torch.arange(4)))
    seen = []

    def net(x, level, **condition):
        seen.append((x, level))
        answer = torch.zeros_like(x)
        answer[:, :, 0] = 1e6
        return answer

    loss = float(family.loss(net, batch)["loss"])
    ((x, level),) = seen
    assert loss < 100 and (level[:, 0] == 0).all() and (level[:, 1] > 0).all()
    clean = family.space.normalise(family.space.clean(batch, False))
    assert torch.allclose(x[:, :, 0], clean[:, :, 0])


def test_beginnings_are_replaced_where_they_are_told():
    x, first, told = torch.zeros(2, 1, 3, 2, 2), torch.ones(2, 1, 1, 2, 2), torch.tensor([True, False])
    assert beginning(x, first, told).sum((1, 3, 4)).tolist() == [[4, 0, 0], [0, 0, 0]]
    assert beginning(torch.zeros(2, 3), torch.ones(2, 1), told).tolist() == [[1, 0, 0], [0, 0, 0]]


def test_patches_may_have_sides_of_their_own():
    x = torch.randn(2, 3, 2, 4, 6)
    cut = patches(x, (1, 2, 3))
    assert cut.shape == (2, 2 * 2 * 2, 3 * 6) and torch.equal(unpatched(cut, (1, 2, 3), x.shape), x)
    assert torch.equal(cut[0, 1].view(3, 1, 2, 3), x[0, :, :1, :2, 3:])
    assert torch.equal(patches(x, 2), patches(x, (2, 2, 2)))


def test_data_and_backbones_that_do_not_fit_are_refused():
    kind = family_class(NAME)
    images = DataInfo(shape=(1, 16, 16), classes=("a", "b"))
    with pytest.raises(SamplerError, match=r"^video_diffusion: expected rows of channels, 1 and 4 k frames"):
        kind(kind.Config(), images)
    foreign = tiny_data("latent_diffusion").autoencoder.model_copy(update={"data": tiny_data(NAME).decoded})
    with pytest.raises(SamplerError):
        kind(kind.Config(), tiny_data(NAME).model_copy(update={"autoencoder": foreign}))
    with pytest.raises(SamplerError, match=r"video_diffusion: .*multiples of backbone.patch \(1x3x3\), found 2x4x4"):
        build(NAME, backbone={"name": "dit", "patch": (1, 3, 3), "width": 24, "heads": 2})
    films = DataInfo(shape=(1, 5, 8, 8), medium="video", classes=("a", "b"))
    pixels = kind(kind.Config(backbone={"name": "dit", "patch": (1, 4, 4), "width": 24, "depth": 1, "heads": 2}), films)
    made = drive(pixels.trajectory(asked(pixels, [0, 1], frames=1)), pixels.calls)
    assert made.shape == (2, 1, 1, 8, 8), "small films themselves"


@pytest.mark.parametrize(("frame", "cell"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (12, 3)])
def test_a_masked_frame_is_redrawn_by_the_latent_that_holds_it(sampler, frame, cell):
    """The first latent is the first frame; each further one is of four."""
    mask = torch.zeros(1, 1, 13, 8, 8)
    mask[:, :, frame] = 1
    assert sampler._cells(mask)[0, 0, :, 0, 0].tolist() == [float(number == cell) for number in range(4)]


def test_bounded_estimates_begin_with_the_frame_that_was_given():
    """In pixels, where strong guidance leaves [-1, 1]."""
    made = build(NAME, data=LONG.autoencoder.data)
    for parameter in made.nets["denoiser"].parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    first = torch.rand(2, 1, 8, 8) * 2 - 1
    film = made.sample(asked(made, [3, 4], first=first, guidance_scale=5.0, dynamic_threshold=0.9))
    torch.testing.assert_close(film[:, :, 0], first, rtol=0, atol=1e-5)
