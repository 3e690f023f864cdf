"""Over-fitting seen: pixel diffusion on 100 digits of 8x8 pixels, until a tenth of its samples are copies.

Prints every checkpoint, then one result: the step at which the gap between held-out and training rows is above zero,
and the step at which the share of copies passes the bound that the demo's guard sets.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from components.data.dataset import batches
from components.data.info import DataInfo
from components.evaluation.held_out import HeldOutRows
from components.families import family_class
from components.metrics.figures import Interval
from components.metrics.neighbours import memorised_figure
from components.sampling.requests import Request
from components.sources.digits import CLASSES
from components.training.loop import State, TrainingConfig, fit, restore_nets
from tests.benchmarks.common import emit

TRAINED_ON, HELD_OUT, SAMPLES = 100, 300, 100
COPIES = 0.1  # the share that the demo's guard allows
EVERY = 200  # steps
CONFIG = TrainingConfig(steps=3000, batch_size=50, report_every=EVERY, save_every=EVERY, precision="float32")
MODEL = {
    "backbone": {"name": "unet", "widths": [32, 64], "attention": [False, False]},
    "conditioning": "none",
    "optimizer": {"learning_rate": 2e-3, "schedule": "constant", "warmup": 20},
}


class Look(NamedTuple):
    """A checkpoint: the interval of its gap, and the share of its samples that copy a training image."""

    step: int
    gap: Interval
    copies: float


class Digits:
    """Rows of scikit-learn's digits, in the place of components.data.dataset.Dataset."""

    def __init__(self, numbers: Tensor):
        from sklearn.datasets import load_digits

        found = load_digits()
        pixels = torch.tensor(found.images * (255 / 16)).round().to(torch.uint8)[:, None]
        self.columns = {"image": pixels[numbers], "label": torch.tensor(found.target)[numbers]}

    def __len__(self) -> int:
        return len(self.columns["label"])

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self.columns.items()}


class Seen(Exception):
    """Ends a training early: both have been seen."""


def looks(config: TrainingConfig = CONFIG) -> list[Look]:
    """Every checkpoint until the copies pass their bound, or to the end."""
    order = torch.randperm(TRAINED_ON + HELD_OUT, generator=torch.Generator().manual_seed(0))
    train, held_out = Digits(order[:TRAINED_ON]), Digits(order[TRAINED_ON:])
    kind = family_class("latent_diffusion")
    torch.manual_seed(0)
    family, shadow = (kind(kind.Config(**MODEL), DataInfo(shape=(1, 8, 8), classes=CLASSES)) for _ in range(2))
    shadow.nets.eval()
    rows = HeldOutRows(shadow, train, held_out, config)
    features = family.medium.rows(train.columns).flatten(1)
    found: list[Look] = []

    def look(state: State) -> None:
        restore_nets(shadow, state)
        for net, weights in state.average.items():
            shadow.nets[net].load_state_dict(weights)
        gap = rows.figures(shadow, live=False)["loss_gap"].interval
        settings = shadow.Settings(solver="dpmpp_2m", num_inference_steps=12, guidance_scale=1.0)
        samples = shadow.sample(Request(torch.arange(SAMPLES), settings))
        found.append(Look(state.step, gap, memorised_figure(samples.flatten(1), features).value))
        if found[-1].copies > COPIES:
            raise Seen

    functions = {"wrap": lambda net, optimizer: (net, optimizer), "report": lambda step, figures: figures}
    with contextlib.suppress(Seen):
        fit(family, batches(train, config.batch_size), config, start=None, save=look, **functions)
    return found


def first(found: list[Look]) -> tuple[float, float]:
    """The steps at which the gap was first above zero and at which copies first passed their bound; infinite if
    never."""
    opened = (look.step for look in found if look.gap[0] > 0)
    copied = (look.step for look in found if look.copies > COPIES)
    return next(opened, math.inf), next(copied, math.inf)


def main() -> None:
    found = looks()
    for look in found:
        print(f"step {look.step}: gap {look.gap[0]:.3f} to {look.gap[1]:.3f}, copies {look.copies:.2f}", flush=True)
    opened, copied = first(found)
    checkpoints = [look._asdict() for look in found]
    emit("over_fitting", opened, "steps", "before the copies", copies=copied, checkpoints=checkpoints)
