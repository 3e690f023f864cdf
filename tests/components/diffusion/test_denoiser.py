"""The denoiser: what steers it reaches the backbone."""

import pytest
import torch

from components.conditioning.classes import ClassConditioner
from components.config import parse
from components.diffusion.backbones import UNet
from components.diffusion.config import Config
from components.diffusion.denoiser import Denoiser
from components.errors import ConfigError

BACKBONE = UNet(widths=(8, 16), heads=2, context_dim=8)


@torch.inference_mode()
def test_class_and_level_reach_the_backbone():
    conditioner = ClassConditioner(3, 8)
    net = Denoiser(conditioner, BACKBONE.build(2, conditioner.rows)).eval()
    x, level, label = torch.randn(1, 2, 8, 8), torch.tensor([100.0]), torch.tensor([0])
    plain = net(x, level, label=label)
    assert plain.shape == x.shape
    assert not torch.allclose(plain, net(x, level, label=torch.tensor([conditioner.null])))
    assert not torch.allclose(plain, net(x, level + 50, label=label))
    with pytest.raises(IndexError):
        net(x, level, label=torch.tensor([conditioner.null + 1]))


@pytest.mark.parametrize("block", [{"widths": [8, 8]}, {"backbone": {}, "heads": 2}])
def test_what_describes_the_backbone_belongs_into_its_block(block):
    with pytest.raises(ConfigError, match=r"^model: (widths|heads): expected in the block backbone: \{name: unet"):
        parse(Config, block, "model")


def test_an_unknown_backbone_or_key_is_refused():
    with pytest.raises(ConfigError, match=r"model\.backbone\.name: .*'unet'.*found 'dot'"):
        parse(Config, {"backbone": {"name": "dot"}}, "model")
    with pytest.raises(ConfigError, match=r"model\.backbone\.width: unknown key"):
        parse(Config, {"backbone": {"width": 8}}, "model")
