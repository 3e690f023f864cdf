"""The autoencoder of films sees no later frame, to the bit, and takes what one of images has learned."""

from __future__ import annotations

import pytest
import torch

from components.nets.autoencoder import AutoencoderKL
from components.nets.autoencoder.causal import CausalAutoencoder

WIDTHS = (4, 8)


def autoencoder(channels: int = 1) -> CausalAutoencoder:
    """With weights over time that are not the zeros of the start."""
    torch.manual_seed(0)
    net = CausalAutoencoder(channels, 3, WIDTHS, 1)
    for parameter in net.parameters():
        if parameter.ndim == 5:
            torch.nn.init.normal_(parameter, std=0.05)
    return net


@pytest.fixture(scope="module")
def net() -> CausalAutoencoder:
    return autoencoder()


@pytest.mark.parametrize("batch", [1, 3, 16])
@torch.inference_mode()
def test_prefixes_encode_and_decode_to_prefixes_bit_for_bit(net, batch):
    films = torch.randn(batch, 1, 17, 8, 12, generator=torch.Generator().manual_seed(1))
    mean, std = net.encode(films)
    assert mean.shape == (batch, 3, 5, 4, 6)
    decoded = net.decode(mean)
    assert decoded.shape == films.shape
    for frames in (1, 5, 9, 13):
        latents = 1 + frames // net.factor
        found_mean, found_std = net.encode(films[:, :, :frames])
        assert torch.equal(found_mean, mean[:, :, :latents]) and torch.equal(found_std, std[:, :, :latents])
        assert torch.equal(net.decode(mean[:, :, :latents]), decoded[:, :, :frames])


def test_no_gradient_comes_from_later_frames_and_some_from_earlier_ones(net):
    films = torch.randn(1, 1, 9, 8, 8, requires_grad=True)
    for place in range(3):
        mean, _ = net.encode(films)
        (seen,) = torch.autograd.grad(mean[:, :, place].sum(), films)
        reached = seen[0, 0].abs().amax((1, 2)) > 0
        assert reached[: 1 + 4 * place].all() and not reached[1 + 4 * place :].any()


def test_a_number_of_frames_that_is_no_one_and_four_k_is_refused(net):
    with pytest.raises(AssertionError, match="8 frames are not one and a multiple of 4"):
        net.encode(torch.zeros(1, 1, 8, 8, 8))


@pytest.mark.parametrize("channels", [1, 3])
@torch.inference_mode()
def test_inflated_it_treats_each_frame_as_the_autoencoder_of_images_does(channels):
    torch.manual_seed(3)
    image, film = AutoencoderKL(channels, 3, WIDTHS, 1).eval(), CausalAutoencoder(channels, 3, WIDTHS, 1).eval()
    film.inflate(image.state_dict())
    frames = torch.randn(2, channels, 9, 8, 8)
    mean, _ = film.encode(frames)
    for place, frame in enumerate((0, 4, 8)):
        expected, _ = image.encode(frames[:, :, frame])
        assert torch.allclose(mean[:, :, place], expected, atol=1e-5)
    decoded = film.decode(mean)
    for frame in range(9):
        place = -(-frame // 4)
        assert torch.allclose(decoded[:, :, frame], image.decode(mean[:, :, place]), atol=1e-5)
    with pytest.raises(ValueError, match=r"expected the same channels.*decoder.mid_block.* differs$|.* differs$"):
        film.inflate(AutoencoderKL(channels, 3, (4, 16), 1).state_dict())
