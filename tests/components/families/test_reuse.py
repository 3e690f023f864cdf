"""Step caching: deep features are of the same rows and of an evaluation nearby, whoever shares the forwards."""

from __future__ import annotations

import pytest
import torch

from components.diffusion.backbones import DiT, UNet
from components.errors import SamplerError
from components.sampling.requests import Conditions, Request
from components.sampling.trajectories import drive
from tests.components.families.contract import co_batched
from tests.components.families.test_diffusion_options import DESCRIBED, TEXT
from tests.components.helpers import IMAGES, LATENTS, build

pytestmark = pytest.mark.usefixtures("exact")

UNET = {"name": "unet", "widths": (8, 16, 16), "attention": (False, True, False), "heads": 2, "context_dim": 8}
DEEP_DIT = {"name": "dit", "width": 16, "depth": 4, "heads": 2, "context_dim": 8, "patch": 2}
VARIANTS = {  # a family, changes of its tiny config, its data, and what its settings are a block of
    "latents": ("latent_diffusion", {"backbone": UNET}, LATENTS, None),
    "transformer of texts": ("latent_diffusion", {"backbone": DEEP_DIT, **TEXT}, DESCRIBED, None),
    "guide": ("latent_diffusion", {"guide": {"at": 0.5}}, LATENTS, None),
    "films": ("video_diffusion", {"backbone": {**DEEP_DIT, "width": 24, "patch": (1, 2, 2)}}, None, None),
    "refined": ("stable_diffusion", {}, None, None),
    "two encoders": ("sdxl", {}, None, None),
    "stages": ("cascade", {}, IMAGES, "base"),
}


def sampler(name: str):
    """With weights away from the initial ones, so that what is deep matters."""
    family, changes, data, _ = VARIANTS[name]
    made = build(family, data=data, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for net in made.nets.values():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    made.nets.eval()
    return made


def request(made, name: str, seed: int, **settings) -> Request:
    block = VARIANTS[name][3]
    if name == "guide":
        settings["guidance"] = "autoguidance"
    chosen = made.Settings(**(settings if block is None else {block: settings, "up1": {"num_inference_steps": 2}}))
    told = {"prompt": ("ab",)} if made.texts else {"label": torch.tensor([seed % 3])}
    return Request(torch.tensor([seed]), chosen, Conditions(**told))


def asked(made, one: Request) -> list[str]:
    """The calls that a request makes of denoisers, in their order."""
    calls = []
    with torch.inference_mode():
        drive(made.trajectory(one), made.calls, on_call=lambda call: calls.append(call.net))
    return [net for net in calls if "denoiser" in net and "text" not in net]


@pytest.mark.parametrize("block", [UNet(**UNET), DiT(**DEEP_DIT)], ids=["unet", "dit"])
@torch.inference_mode()
def test_a_net_around_features_of_its_own_answers_as_a_whole(block):
    net = block.build((2, 8, 8), 3).eval()
    for parameter in net.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    inputs = {"x": torch.randn(2, 2, 8, 8), "level": torch.tensor([100.0, 700.0]), "label": torch.tensor([0, 2])}
    inputs["context"] = torch.randn(2, 1, 8) if block.class_dim else None
    plain = net(**inputs)
    answer, deep = net(**inputs, tells_deep=True)
    assert torch.equal(answer, plain)
    deeper = net.mid_block if block.name == "unet" else net.trunk.blocks[2]
    deeper.register_forward_pre_hook(lambda module, given: pytest.fail("the deep part was computed"))
    assert torch.allclose(net(**inputs, deep=deep), plain, atol=1e-6)
    assert not torch.allclose(net(**inputs, deep=deep + 1), plain, atol=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_requests_of_any_reuse_share_forwards_and_are_as_alone(name):
    made = sampler(name)
    counts = (1, 2, 3, 2, 1)
    requests = [
        request(made, name, seed, reuse=every, num_inference_steps=3 + seed, guidance_scale=1.0 + (seed > 0))
        for seed, every in enumerate(counts)
    ]
    images, forwards = co_batched(made, requests)
    for one, image in zip(requests, images, strict=True):
        assert torch.allclose(made.sample(one), image, atol=2e-5)
    for part in ("whole", "shallow"):
        assert max(forward.num_calls for forward in forwards if forward.net.endswith(part)) > 1
    plain = request(made, name, 1, reuse=1, num_inference_steps=4)
    spared = request(made, name, 1, reuse=2, num_inference_steps=4)
    assert not torch.allclose(made.sample(plain), made.sample(spared), atol=1e-5)
    (alone,) = made.sample(requests[1])
    both = Request(
        torch.tensor([9, 1]),
        requests[1].settings,
        Conditions(**{key: _twice(value) for key, value in requests[1].conditions.parts().items()}),
    )
    assert torch.allclose(made.sample(both)[1], alone, atol=2e-5)


def _twice(value):
    return value * 2 if isinstance(value, tuple) else value.repeat(2)


def test_the_deep_part_is_computed_at_every_so_manyth_evaluation():
    made = sampler("latents")

    def kinds(**settings) -> str:
        return " ".join(net.rpartition("_")[2] for net in asked(made, request(made, "latents", 0, **settings)))

    assert kinds(num_inference_steps=3) == "denoiser denoiser denoiser"
    assert kinds(num_inference_steps=5, reuse=2) == "whole shallow whole shallow whole"
    assert kinds(num_inference_steps=4, reuse=3, guidance_scale=1.0) == "whole shallow shallow whole"
    assert kinds(num_inference_steps=2, solver="heun", reuse=2) == "whole shallow whole"
    # guidance begins on the way: of the rows that it adds nothing is known; where it ends the others' stay
    sigmas = made.sigmas(made.Settings(num_inference_steps=5))
    interval = (sigmas[3] * 1.01, sigmas[1] * 1.01)
    assert kinds(num_inference_steps=5, reuse=4, guidance_interval=interval) == "whole whole shallow shallow shallow"


def test_what_is_reused_is_of_an_evaluation_nearby():
    """More steps are nearer to each other, and so are their features."""
    made = sampler("latents")

    def error(steps: int) -> float:
        plain, spared = (
            made.sample(request(made, "latents", 2, num_inference_steps=steps, reuse=every)) for every in (1, 2)
        )
        return float((plain - spared).square().mean().sqrt())

    assert 0 < error(40) < error(5) / 3


@pytest.mark.parametrize(
    "backbone",
    [
        {"widths": (8,), "attention": (True,), "heads": 2, "context_dim": 8},
        {**DEEP_DIT, "depth": 2},
        {**DEEP_DIT, "name": "mmdit"},
    ],
    ids=["unet", "dit", "mmdit"],
)
def test_a_net_without_a_deep_part_is_refused(backbone):
    made = build("latent_diffusion", data=LATENTS, backbone=backbone)
    with pytest.raises(SamplerError, match=r"^reuse: the backbone has no deep part; expected two widths or more"):
        made.trajectory(Request(torch.arange(1), made.Settings(reuse=2)))
    made.trajectory(Request(torch.arange(1), made.Settings(reuse=1)))
