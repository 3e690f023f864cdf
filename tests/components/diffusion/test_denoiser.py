"""The denoiser: what steers it reaches the backbone."""

import pytest
import torch

from components.conditioning.classes import ClassConditioner
from components.config import parse
from components.diffusion.backbones import DiT, MMDiT, UNet
from components.diffusion.config import Config
from components.diffusion.denoiser import Denoiser
from components.errors import ConfigError, SamplerError

BACKBONES = [
    UNet(widths=(8, 16), heads=2, context_dim=8),
    DiT(name="dit", width=16, depth=1, heads=2),
    MMDiT(name="mmdit", width=16, depth=1, heads=2),
]


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
@torch.inference_mode()
def test_class_and_level_reach_the_backbone(backbone):
    conditioner = ClassConditioner(3, backbone.class_dim)
    net = Denoiser(conditioner, backbone.build((2, 8, 8), conditioner.rows)).eval()
    for parameter in net.parameters():
        if not parameter.any():  # a DiT's last layer and what modulates its blocks
            torch.nn.init.normal_(parameter, std=0.1)
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
    with pytest.raises(ConfigError, match=r"model\.backbone\.patch: .*greater than or equal to 1, found 0"):
        parse(Config, {"backbone": {"name": "dit", "patch": 0}}, "model")
    with pytest.raises(ConfigError, match=r"model\.backbone: width must be divisible by twice the heads \(8\)"):
        parse(Config, {"backbone": {"name": "dit", "width": 20}}, "model")
    with pytest.raises(ConfigError, match=r"model\.backbone\.widths: unknown key"):
        parse(Config, {"backbone": {"name": "dit", "widths": [8]}}, "model")
    with pytest.raises(ConfigError, match=r"model\.backbone\.width: unknown key"):
        parse(Config, {"backbone": {"width": 8}}, "model")


def test_rows_that_do_not_fit_are_refused():
    backbone = DiT(name="dit", width=8, heads=2, patch=2)
    for shape in [(3, 8), (3, 8, 8)]:
        backbone.refuse_unfit(shape, "ldm")
    with pytest.raises(SamplerError, match=r"^ldm: .*multiples of backbone.patch \(2\), found 8x7$"):
        backbone.refuse_unfit((3, 8, 7), "ldm")
    with pytest.raises(SamplerError, match=r"^ldm: backbone.width: expected 6 channels a head or more$"):
        backbone.refuse_unfit((3, 8, 8, 8), "ldm")
