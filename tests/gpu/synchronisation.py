"""Where our code makes the host wait for the GPU: in steps of every family's loop, and in sampling.

torch tells of each blocking operation; copies from unpinned memory it does not tell of.
"""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from components.data.dataset import Batch
from components.evaluation import generation
from components.families import family_names
from components.families.base import Sampler
from components.training.loop import TrainingConfig, fit
from tests.components.helpers import no_wrap, stream
from tests.gpu.part import Part
from tests.gpu.resume import BATCH, placed

ROOT = Path(__file__).resolve().parents[2]
FIRST, LAST = 3, 7  # the steps that are watched, the second not included


def run(part: Part) -> None:
    torch.set_warn_always(True)
    for name in family_names():
        part.measure(f"steps.{name}", lambda name=name: of_steps(name, part), needs=1)
    for name in family_names():
        part.measure(f"samples.{name}", lambda name=name: of_a_sample(name, part), needs=1)
    places = Counter()
    for found in part.found["steps"].values():
        places.update(found if isinstance(found, dict) else {})
    part.tell("per_step_over_families", dict(places.most_common(20)))


@contextlib.contextmanager
def noted(places: Counter) -> Iterator[None]:
    """Counts what blocks, by the innermost line of components/ that asked for it."""

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "called a synchronizing" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack() if str(ROOT / "components") in frame.filename]
        if frames:
            path = Path(frames[-1].filename).relative_to(ROOT)
            places[f"{path}:{frames[-1].lineno} {frames[-1].line}"] += 1
        else:
            places["elsewhere"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield


def switch(part: Part, mode: str) -> None:
    if part.on_gpu:
        torch.cuda.set_sync_debug_mode(mode)


def of_steps(name: str, part: Part) -> dict[str, float]:
    """Blocking operations a step, by line."""
    places: Counter = Counter()

    def watched(batches: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            if number == FIRST:
                switch(part, "warn")
            if number == LAST:
                switch(part, "default")
            yield batch.to(part.device)

    config = TrainingConfig(steps=LAST + 1, batch_size=BATCH, clip_norm=1.0, save_every=LAST + 1)
    with noted(places):
        fit(
            placed(name, part.device),
            watched(stream(name, BATCH)),
            config,
            start=None,
            wrap=no_wrap,
            report=lambda step, figures: figures,
            save=lambda state: None,
        )
    switch(part, "default")
    return {place: count / (LAST - FIRST) for place, count in places.most_common()}


def of_a_sample(name: str, part: Part) -> dict[str, int] | str:
    """Blocking operations of one request of four images, by line."""
    family = placed(name, part.device)
    if not isinstance(family, Sampler):
        return "no sampler"
    request = generation.request(family, family.Settings(), 0, 4, seed=0).to(part.device)
    family.sample(request)
    places: Counter = Counter()
    with noted(places):
        switch(part, "warn")
        family.sample(request)
        switch(part, "default")
    return dict(places.most_common())
