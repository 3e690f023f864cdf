"""The networks against diffusers' own, weight by weight, and the shapes that they promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.nets.autoencoder import AutoencoderKL
from components.nets.blocks import group_norm, norm_groups, sinusoidal_embedding
from components.nets.classifier import Classifier
from components.nets.gan.dcgan import Generator, Trunk
from components.nets.gan.layers import doublings
from components.nets.unet import UNet2DConditionModel


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def scrambled(net: nn.Module) -> nn.Module:
    """Every weight away from its initial value, so that no bias is zero and no norm is the identity."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 1e-3
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("channels", "latent_channels", "widths", "layers", "groups"),
    [(1, 4, (32, 64), 1, None), (3, 2, (32, 32, 64), 2, 32), (1, 4, (32,), 1, 4)],
)
@torch.inference_mode()
def test_autoencoder_is_diffusers_autoencoder(channels, latent_channels, widths, layers, groups):
    diffusers = pytest.importorskip("diffusers")
    ours = scrambled(AutoencoderKL(channels, latent_channels, widths, layers, groups=groups))
    theirs = diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=layers,
        latent_channels=latent_channels,
        norm_num_groups=groups or norm_groups(widths),
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, channels, 16, 16)
    mean, std = ours.encode(images)
    posterior = theirs.encode(images).latent_dist
    assert_close(mean, posterior.mean)
    assert_close(std, posterior.std)
    assert_close(ours.decode(mean), theirs.decode(mean).sample)
    noise = torch.randn_like(mean)
    assert_close(ours(images, noise)[0], theirs.decode(posterior.mean + posterior.std * noise).sample)


@pytest.mark.parametrize(
    ("widths", "attention", "layers", "num_classes", "groups"),
    [
        ((32, 64), (False, True), 2, 11, None),
        ((32, 32, 64), (True, False, True), 1, 0, 32),
        ((32,), (True,), 1, 3, 4),
    ],
)
@torch.inference_mode()
def test_unet_is_diffusers_unet(widths, attention, layers, num_classes, groups):
    diffusers = pytest.importorskip("diffusers")
    ours = scrambled(UNet2DConditionModel(4, widths, attention, layers, 4, 24, num_classes, groups=groups))
    theirs = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=layers,
        attention_head_dim=4,  # the number of heads, in spite of its name
        cross_attention_dim=24,
        num_class_embeds=num_classes or None,
        norm_num_groups=groups or norm_groups(widths),
        down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attention)),
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x, level, context = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 500.5, 999.0]), torch.randn(3, 2, 24)
    label = torch.tensor([0, 1, num_classes - 1]) if num_classes else None
    got = ours(x, level, context, label)
    assert_close(got, theirs(x, level, encoder_hidden_states=context, class_labels=label).sample)


def test_level_embedding_has_cosines_before_sines():
    level = torch.tensor([0.0, 3.0])
    got = sinusoidal_embedding(level, 4)
    angles = level[:, None] * torch.tensor([1.0, 0.01])
    assert torch.allclose(got, torch.cat([angles.cos(), angles.sin()], dim=1))


@pytest.mark.parametrize(
    ("widths", "groups"),
    [
        ([1], 1),
        ([4], 1),
        ([8, 16], 2),
        ([32], 8),
        ([64, 128], 16),
        ([48, 64], 8),
        ([37, 74], 1),
        ([320, 640, 1280], 32),
        ([768], 32),
    ],
)
def test_norm_groups_divide_all_widths_and_leave_four_channels(widths, groups):
    assert norm_groups(widths) == groups


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (4, 4), (32, 32), (48, 24), (64, 32), (100, 25), (37, 1)])
def test_a_norm_has_as_many_groups_as_divide_its_channels(channels, groups):
    assert group_norm(channels, 32, 1e-5).num_groups == groups


@pytest.mark.parametrize(("size", "times"), [(8, 1), (16, 2), (64, 4), (1024, 8)])
def test_doublings(size, times):
    assert doublings(size) == times


@pytest.mark.parametrize("size", [-8, 0, 1, 2, 4, 7, 12, 24, 100])
def test_doublings_refuses_other_sides(size):
    with pytest.raises(ValueError, match=rf"8, 16, 32, 64.*found {size}$"):
        doublings(size)


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
@torch.inference_mode()
def test_gan_shapes(size, channels):
    images = Generator(channels, size, 5, 4).eval()(3 * torch.randn(2, 5))
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    for batch_norm in (True, False):
        net = Trunk(channels, size, 4, batch_norm).eval()
        assert net(images).shape == (2, net.channels, 4, 4)
        assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules()) == (batch_norm and size > 8)


@torch.inference_mode()
def test_classifier_shapes():
    net = Classifier(1, 10, 8, 6)
    images = torch.randn(3, 1, 16, 16)
    assert net.features(images).shape == (3, 6)
    assert net(images).shape == (3, 10)
    assert torch.equal(net(images), net.logits(net.features(images)))
