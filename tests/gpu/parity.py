"""Every family on the GPU against itself on the CPU, and a run that is resumed on the GPU against one that is not.

On a CPU the other side is the same without oneDNN, which rounds elsewhere: the same comparison at toy size.
"""

from __future__ import annotations

import contextlib
import copy
import os

import torch
from torch import Tensor

from components.evaluation import generation
from components.families import family_names
from components.families.base import Family, Sampler
from components.training.loop import ActivePhase, State, TrainingConfig, fit, step_phase
from tests.components.helpers import assert_same, build, no_wrap, stream
from tests.gpu.part import SHOWN, Part

TOLERANCES = {"loss": 1e-4, "gradient": 1e-3, "weights": 5e-3, "sample": 1e-3}  # |found - wanted| / |wanted|, Euclidean
STEPS, HALF = 4, 2
BATCH = 6


def run(part: Part) -> None:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA begins; what deterministic algorithms ask for
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    part.tell("tolerances", TOLERANCES)
    for name in family_names():
        part.measure(f"families.{name}", lambda name=name: compared(name, part.device), needs=2)
    for name in family_names():
        part.measure(f"resume.{name}", lambda name=name: resumed(name, part.device), needs=2)
    told = [found for found in part.found["families"].values() if isinstance(found, dict)]
    part.tell("passed", f"{sum(found['pass'] for found in told)} of {len(family_names())} families")
    exact = [name for name, found in part.found["resume"].items() if isinstance(found, dict) and found["resumes"]]
    part.tell("resumes", f"{len(exact)} of {len(family_names())} families bit for bit")


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


def placed(name: str, device: torch.device) -> Family:
    family = build(name)
    family.nets.to(device)
    return family


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


def trained(
    name: str,
    device: torch.device,
    *,
    start: State | None = None,
    steps: int = STEPS,
    stop: int | None = None,
    precision: str = "auto",
) -> State:
    """A tiny family's state after `steps` steps, or after `stop` of them."""
    family = placed(name, device)
    source = stream(name, BATCH, start=start.step if start else 0)
    return fit(
        family,
        (batch.to(device) for batch in source),
        TrainingConfig(steps=steps, batch_size=BATCH, precision=precision, report_every=1, save_every=steps),
        start=start,
        wrap=no_wrap,
        report=lambda step, figures: figures,
        save=lambda state: None,
        leave=lambda step: step == stop,
    )


def resumed(name: str, device: torch.device) -> dict:
    """Whether two runs have the same bits, and a run that was interrupted those of one that was not, in the precision
    that `auto` picks; with deterministic algorithms, or without where a layer has none."""
    told: dict = {"deterministic": True}
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        straight = copy.deepcopy(trained(name, device))
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        told = {"deterministic": False, "why": str(error)[:SHOWN]}
        torch.use_deterministic_algorithms(False)
        straight = copy.deepcopy(trained(name, device))
    half = copy.deepcopy(trained(name, device, stop=HALF))
    differs = {
        "repeats": first_difference(straight, trained(name, device)),
        "resumes": first_difference(straight, trained(name, device, start=half)),
    }
    torch.use_deterministic_algorithms(False)
    told |= {what: where is None for what, where in differs.items()}
    return told | {f"{what}_differs_at": where for what, where in differs.items() if where is not None}


def first_difference(wanted: State, found: State) -> str | None:
    """Where a run's weights, averages or optimizers first have other bits; None if nowhere."""
    try:
        for what in ("nets", "average", "optimizers"):
            assert_same(getattr(found, what), getattr(wanted, what), what)
    except AssertionError as error:
        return str(error).splitlines()[0][:SHOWN]
    return None
