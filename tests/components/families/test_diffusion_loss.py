"""The loss of diffusion computed by hand, and denoisers that must hear the noise level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from components.families import family_names
from components.sampling.requests import Request
from components.sampling.trajectories import drive
from tests.components.helpers import IMAGES, build, stream, tiny

pytestmark = pytest.mark.usefixtures("exact")

T_MAX = 0.999  # of the flow


class Recorder(nn.Module):
    """Answers zeros, so that the loss is the mean square of what it should have answered."""

    def forward(self, x: Tensor, level: Tensor, label: Tensor) -> Tensor:
        self.x, self.level = x, level
        return torch.zeros_like(x)


def wanted(objective: str, clean: Tensor, noise: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """The targets as their papers write them, for x = signal * clean + spread * noise."""
    return {
        "epsilon": noise,  # Ho et al. 2020
        "x0": clean,
        "v": signal * noise - spread * clean,  # Salimans and Ho 2022
        "flow": noise - clean,  # Lipman et al. 2023
    }[objective]


@pytest.mark.parametrize(
    ("objective", "schedule"), [("flow", "flow"), ("epsilon", "linear"), ("v", "cosine"), ("x0", "linear")]
)
def test_loss_is_the_one_computed_by_hand(objective, schedule):
    family = build(
        "latent_diffusion",
        data=IMAGES,
        objective=objective,
        schedule={"name": schedule},
        times={"density": "uniform"},
    )
    batch, net = next(stream("dcgan")), Recorder()
    loss = family.loss(net, batch)["loss"]
    time = batch.draws.uniform("time").double()[:, None, None, None]
    if schedule == "flow":
        signal, spread = 1 - T_MAX * time, T_MAX * time
    else:  # between the places of the table, whose first is time 0
        alpha_bar = tables()[schedule]
        snr = torch.log((1 - alpha_bar) / alpha_bar)
        place = time * 999
        low = place.floor().long()
        ratio = torch.exp(torch.lerp(snr[low], snr[(low + 1).clamp(max=999)], place - low))
        signal, spread = (1 / (1 + ratio)).sqrt(), (ratio / (1 + ratio)).sqrt()
    clean = (batch.columns["image"].double() / 127.5 - 1) / 0.5  # to unit variance, for pixels of spread 0.5
    noise = batch.draws.normal("noise", IMAGES.shape).double()
    assert torch.allclose(net.level.double(), 999 * time.flatten(), atol=1e-2)
    assert torch.allclose(net.x.double(), signal * clean + spread * noise, atol=1e-4)
    target = wanted(objective, clean, noise, signal, spread)
    assert float(loss) == pytest.approx(float(target.square().mean()), rel=1e-4)


def tables() -> dict[str, Tensor]:
    """Squared signal levels: Ho et al. 2020, section 4; Nichol and Dhariwal 2021, equation 17."""
    steps = torch.arange(1001, dtype=torch.float64) / 1000
    cosine = torch.cos((steps + 0.008) / 1.008 * torch.pi / 2) ** 2
    betas = (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)
    linear = 1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return {"linear": linear.cumprod(0), "cosine": (1 - betas).cumprod(0)}


DENOISING = [name for name in family_names() if hasattr(build(name), "preconditioner")]


def change_by_level(family, name: str) -> float:
    """The spread of the denoiser's first answer, as a share of the answer, when only the level that it is told differs.
    All weights away from their initial values: a zero-initialised gate would hide the level."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in family.nets["denoiser"].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    family.nets.eval()
    seen = {}

    def denoiser(**inputs: Tensor) -> Tensor:
        answer = family.calls["denoiser"](**inputs)
        if not seen:
            other = family.calls["denoiser"](**{**inputs, "level": inputs["level"] / 3})
            seen["change"] = float((answer - other).std() / answer.std())
        return answer

    request = Request(torch.arange(2), family.Settings(**tiny(name).settings))
    drive(family.trajectory(request), {**family.calls, "denoiser": denoiser})
    return seen["change"]


@pytest.mark.parametrize("name", DENOISING)
def test_every_denoiser_hears_the_noise_level(name):
    assert change_by_level(build(name), name) > 1e-2


@pytest.mark.parametrize(("groups", "deaf"), [(8, True), (2, False)])
def test_a_group_of_one_channel_takes_the_level_away(groups, deaf):
    backbone = {"widths": (8, 8), "heads": 2, "context_dim": 8, "norm_groups": groups}
    family = build("latent_diffusion", backbone=backbone)
    assert (change_by_level(family, "latent_diffusion") < 1e-4) == deaf
