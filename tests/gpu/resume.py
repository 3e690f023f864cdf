"""A run that is resumed on the GPU against one that is not, of every family."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator

import torch

from components.families import family_names
from components.families.base import Family
from components.training.loop import State, TrainingConfig, fit
from tests.components.helpers import assert_same, build, no_wrap, stream
from tests.gpu.part import SHOWN, Part

STEPS, HALF = 4, 2
BATCH = 6


def run(part: Part) -> None:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA begins; what deterministic algorithms ask for
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in family_names():
        part.measure(f"families.{name}", lambda name=name: resumed(name, part.device), needs=2)
    part.tell("resumes", all_of(part, "resumes"))


def all_of(part: Part, what: str) -> str:
    """How many families have it."""
    good = [name for name, found in part.found["families"].items() if isinstance(found, dict) and found[what]]
    return f"{len(good)} of {len(family_names())} families bit for bit"


def placed(name: str, device: torch.device) -> Family:
    family = build(name)
    family.to(device)
    return family


def trained(
    name: str,
    device: torch.device,
    *,
    start: State | None = None,
    steps: int = STEPS,
    stop: int | None = None,
    precision: str = "auto",
    cuda_graphs: bool = False,
) -> State:
    """A tiny family's state after `steps` steps, or after `stop` of them."""
    family = placed(name, device)
    source = stream(name, BATCH, start=start.step if start else 0)
    return fit(
        family,
        (batch.to(device) for batch in source),
        TrainingConfig(
            steps=steps,
            batch_size=BATCH,
            precision=precision,
            cuda_graphs=cuda_graphs,
            report_every=1,
            save_every=steps,
        ),
        start=start,
        wrap=no_wrap,
        report=lambda step, figures: figures,
        save=lambda state: None,
        leave=lambda step: step == stop,
    )


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def resumed(name: str, device: torch.device, cuda_graphs: bool = False) -> dict:
    """Whether two runs have the same bits, and a run that was interrupted those of one that was not, in the precision
    that `auto` picks; with deterministic algorithms, or without where a layer has none."""
    how = {"cuda_graphs": cuda_graphs}
    try:
        with deterministic():
            return {"deterministic": True, **_resumed(name, device, how)}
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        return {"deterministic": False, "why": str(error)[:SHOWN], **_resumed(name, device, how)}


def _resumed(name: str, device: torch.device, how: dict) -> dict:
    straight = copy.deepcopy(trained(name, device, **how))
    half = copy.deepcopy(trained(name, device, stop=HALF, **how))
    differs = {
        "repeats": first_difference(straight, trained(name, device, **how)),
        "resumes": first_difference(straight, trained(name, device, start=half, **how)),
    }
    told = {what: where is None for what, where in differs.items()}
    return told | {f"{what}_differs_at": where for what, where in differs.items() if where is not None}


def first_difference(wanted: State, found: State) -> str | None:
    """Where a run's weights, averages or optimizers first have other bits; None if nowhere."""
    try:
        for what in ("nets", "average", "optimizers"):
            assert_same(getattr(found, what), getattr(wanted, what), what)
    except AssertionError as error:
        return str(error).splitlines()[0][:SHOWN]
    return None
