"""Training speed: our loop against diffusers' networks in the plain loop of its examples, each option on and off."""

from __future__ import annotations

import functools

import torch

from components.training.loop import Wrap
from tests.benchmarks.diffusers_peer import let_torchvision_import, their_rate
from tests.benchmarks.rates import fit_rate
from tests.components.helpers import no_wrap
from tests.gpu import models
from tests.gpu.models import DEMO, MIDDLE, Size
from tests.gpu.part import Part

STEPS, WARM = 25, 8
TOY_STEPS, TOY_WARM = 2, 1
OPTIONS = {  # of our loop
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "float32 channels_last": {"precision": "float32", "channels_last": True},
    "bfloat16 channels_last": {"precision": "bfloat16", "channels_last": True},
    "float32 channels_last cuda_graphs": {"precision": "float32", "channels_last": True, "cuda_graphs": True},
    "bfloat16 cuda_graphs": {"precision": "bfloat16", "cuda_graphs": True},
    "bfloat16 channels_last cuda_graphs": {"precision": "bfloat16", "channels_last": True, "cuda_graphs": True},
}
BEST = "bfloat16 cuda_graphs"  # where none was measured


def run(part: Part) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sizes = {"demo": models.sized(part, DEMO), "middle": models.sized(part, MIDDLE)}
    for name, size in sizes.items():
        against_diffusers(part, name, size)
    part.tell("best.option", best_option(part))


def steps(part: Part) -> tuple[int, int]:
    """How many are timed, and how many come before."""
    return (TOY_STEPS, TOY_WARM) if part.toy else (STEPS, WARM)


def ours(
    part: Part,
    size: Size,
    precision: str,
    channels_last: bool = False,
    cuda_graphs: bool = False,
    wrap: Wrap = no_wrap,
) -> float:
    """Images a second of our loop."""
    family = models.family(size, part.device, channels_last)
    training = {"precision": precision, "cuda_graphs": cuda_graphs, "clip_norm": 1.0}
    return fit_rate(family, models.latents(size), size.batch_size, *steps(part), wrap, **training)


def theirs(part: Part, size: Size, precision: str) -> float:
    family = models.family(size, torch.device("cpu"))
    return their_rate(family, models.latents(size), size.batch_size, *steps(part), precision)


def against_diffusers(part: Part, name: str, size: Size) -> None:
    """Images a second of each option and of the peer, and the ratio of the best of each."""
    let_torchvision_import()
    rates = {
        option: part.measure(f"rates.{name}.{option}", functools.partial(ours, part, size, **chosen))
        for option, chosen in OPTIONS.items()
    }
    peer = {
        precision: part.measure(f"rates.{name}.diffusers {precision}", functools.partial(theirs, part, size, precision))
        for precision in ("float32", "bfloat16")
    }
    told = {}
    for precision, rate in peer.items():
        own = [value for option, value in rates.items() if option.startswith(precision) and value]
        if own and rate:
            told[precision] = max(own) / rate
            told[f"{precision} without options"] = (rates[precision] or 0) / rate
    part.tell(f"ours_over_diffusers.{name}", told or "diffusers was not measured")


def best_option(part: Part) -> str:
    """The fastest at the middle size."""
    rates = part.found["rates"]["middle"]
    return max(OPTIONS, key=lambda option: rates[option] if isinstance(rates[option], int | float) else 0.0)
