"""CUDA graphs against what they replay, of every family: a training's weights and how it resumes, and a sample."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping

import torch

from components.cuda_graphs import Replayed, replayed
from components.evaluation import generation
from components.families import family_names
from components.families.base import Sampler
from components.sampling.trajectories import drive
from tests.gpu.part import Part
from tests.gpu.resume import BATCH, all_of, deterministic, first_difference, placed, resumed, trained


def run(part: Part) -> None:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA begins; what deterministic algorithms ask for
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    part.tell("rows", BATCH)
    for name in family_names():
        part.measure(f"families.{name}", lambda name=name: compared(name, part), needs=3)
    part.tell("resumes", all_of(part, "resumes"))
    part.tell("trains", all_of(part, "trains"))


def compared(name: str, part: Part) -> dict:
    """Whether a training and a sample with graphs have the bits of those without."""
    family, told = placed(name, part.device), {}
    with deterministic():
        differs = first_difference(
            copy.deepcopy(trained(name, part.device)), trained(name, part.device, cuda_graphs=True)
        )
    told["trains"] = differs is None
    if differs is not None:
        told["trains_differs_at"] = differs
    told |= {"phases": sum(phase.one_backward for phase in family.phases), "of": len(family.phases)}
    told |= resumed(name, part.device, cuda_graphs=True)
    if isinstance(family, Sampler):
        family.nets.eval()
        told |= sampled(family, part)
    return told


def sampled(family: Sampler, part: Part) -> dict:
    """Twice, so that the second time all is replayed."""
    request = generation.request(family, family.Settings(), 0, 4, seed=0).to(part.device)

    def images(calls: Mapping[str, Callable]) -> torch.Tensor:
        return drive(family.trajectory(request), calls)

    calls = replayed(family.calls) if part.on_gpu else dict(family.calls)
    wanted, first, second = images(family.calls), images(calls), images(calls)
    told = {"samples": bool(wanted.equal(first) and wanted.equal(second))}
    told["sample_apart"] = float((wanted - second).abs().max())
    nets = {name: net for name, net in calls.items() if isinstance(net, Replayed) and net.why_launched}
    return told | ({"launched": {name: net.why_launched for name, net in nets.items()}} if nets else {})
