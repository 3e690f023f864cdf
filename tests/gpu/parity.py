"""Every family on the GPU against itself on the CPU.

On a CPU the other side is the same without oneDNN, which rounds elsewhere: the same comparison at toy size.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from components.evaluation import generation
from components.families import family_names
from components.families.base import Sampler
from components.training.loop import ActivePhase, TrainingConfig, step_phase
from tests.components.helpers import build, stream
from tests.gpu.part import Part
from tests.gpu.resume import BATCH, placed, trained

TOLERANCES = {"loss": 1e-4, "gradient": 1e-3, "weights": 5e-3, "sample": 1e-3}  # |found - wanted| / |wanted|, Euclidean


def run(part: Part) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    part.tell("tolerances", TOLERANCES)
    for name in family_names():
        part.measure(f"families.{name}", lambda name=name: compared(name, part.device), needs=2)
    told = [found for found in part.found["families"].values() if isinstance(found, dict)]
    part.tell("passed", f"{sum(found['pass'] for found in told)} of {len(family_names())} families")


def compared(name: str, device: torch.device) -> dict:
    """Differences of each phase's loss and gradient, of weights after steps of every phase, and of a sample."""
    cpu = torch.device("cpu")
    other = contextlib.nullcontext() if device.type == "cuda" else torch.backends.mkldnn.flags(enabled=False)
    wanted = results(name, cpu)
    with other:
        found = results(name, device)
    told = {what: difference(found[what], wanted[what]) for what in wanted}
    passed = {what: parts["relative"] <= TOLERANCES[what.split()[0]] for what, parts in told.items()}
    return {"pass": all(passed.values()), **told, "failed": [what for what, good in passed.items() if not good]}


def results(name: str, device: torch.device) -> dict[str, list[Tensor]]:
    """What is compared, on the CPU in float64."""
    found: dict[str, list[Tensor]] = {}
    for number, phase in enumerate(build(name).phases):
        losses, gradients = one_phase(name, number, device)
        found[f"loss {phase.name}"], found[f"gradient {phase.name}"] = losses, gradients
    steps = max(phase.every for phase in build(name).phases)
    state = trained(name, device, steps=steps, precision="float32")
    found["weights"] = [value for net in state.nets.values() for value in net.values() if value.is_floating_point()]
    family = placed(name, device)
    if isinstance(family, Sampler):
        request = generation.request(family, family.Settings(), 0, 4, seed=0)
        found["sample"] = [family.sample(request)]
    return {what: [value.detach().cpu().double() for value in values] for what, values in found.items()}


def one_phase(name: str, number: int, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """A phase's loss at initial weights and its gradient."""
    family = placed(name, device)
    family.nets.train()
    phase = family.phases[number]
    net = family.nets[phase.net]
    player = ActivePhase(phase, net, net, torch.optim.SGD(net.parameters(), lr=0.0))
    config = TrainingConfig(steps=1, batch_size=BATCH, precision="float32")
    figures = step_phase(family, player, next(stream(name, BATCH)).to(device), 0, config)
    return [figures["loss"]], [weight.grad for weight in net.parameters() if weight.grad is not None]


def difference(found: list[Tensor], wanted: list[Tensor]) -> dict[str, float]:
    one, other = (torch.cat([value.flatten() for value in values]) for values in (found, wanted))
    norm = float(other.norm())
    return {
        "max_abs": float((one - other).abs().max()),
        "relative": float((one - other).norm()) / max(norm, 1e-12),
    }
