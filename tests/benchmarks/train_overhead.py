"""The share of a training's wall time outside forward, backward and optimizer step: data, random draws, clipping, the
average of weights, figures, checkpoints.

The demo's U-Net trains as params.yaml says, in one process on all cores, with its figures kept and its state written to
disk as a worker writes it. A second figure counts the random draws and the rest of the loss around the net as overhead
too.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch

from components.data.dataset import Dataset, batches
from components.files import sha256
from components.training import loop
from components.training.loop import State
from pipelines.support import params
from pipelines.support.paths import ROOT
from tests.benchmarks.common import as_a_worker, demo, emit, write_noise

WARM = 5  # steps before the watch is started


class Stopwatch:
    """Seconds spent in named functions, while `on`."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.on = False

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*arguments, **named):
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                if self.on:
                    self.seconds[name] += time.perf_counter() - began

        return call


def fit_watched(watch: Stopwatch, dataset: Dataset, folder: Path) -> tuple[float, int]:
    """Trains under the watch; returns the wall seconds that it ran for, and the steps in them."""
    family, _, batch_size = demo("ldm")
    config = params.load(ROOT / params.DEFAULT).samplers["ldm"].training
    config = config.model_copy(update={"steps": WARM + config.steps})
    (phase,) = family.phases
    object.__setattr__(phase, "loss", watch.timed("loss", phase.loss))
    began = 0.0

    def stream() -> Iterator:
        nonlocal began
        source = batches(dataset, batch_size)
        take = watch.timed("data", source.__next__)
        for step in range(config.steps):
            if step == WARM:
                watch.on, began = True, time.perf_counter()
            yield take()

    def wrap(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
        net.forward = watch.timed("forward", net.forward)
        optimizer.step = watch.timed("optimizer", optimizer.step)
        return net, optimizer

    def save(state: State) -> None:
        torch.save(asdict(state), folder / "state.pt")
        sha256(folder / "state.pt")

    patches = {
        (torch.Tensor, "backward"): "backward",
        (loop, "_clipped"): "gradient norm",
        (loop.MetricAverages, "add"): "figures",
        (loop, "_average"): "average",
    }
    with contextlib.ExitStack() as stack:
        for (owner, name), what in patches.items():
            stack.enter_context(mock.patch.object(owner, name, watch.timed(what, getattr(owner, name))))
        loop.fit(
            family,
            stream(),
            config,
            start=None,
            wrap=wrap,
            report=lambda step, figures: figures,
            save=watch.timed("checkpoint", save),
        )
    return time.perf_counter() - began, config.steps - WARM


def main() -> None:
    as_a_worker()
    _, info, _ = demo("ldm")
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as temporary:
        dataset = write_noise(Path(temporary) / "latents", info, 1438)
        wall, steps = fit_watched(watch, dataset, Path(temporary))
    spent = watch.seconds
    spent["around the net in the loss"] = spent["loss"] - spent["forward"]
    percent = {name: round(100 * seconds / wall, 2) for name, seconds in spent.most_common() if name != "loss"}
    work = spent["loss"] + spent["backward"] + spent["optimizer"]
    emit(
        "train_overhead",
        round(100 * (1 - work / wall), 2),
        "% of wall time outside loss, backward and optimizer",
        "< 5",
        outside_the_net=round(100 * (1 - (work - spent["around the net in the loss"]) / wall), 2),
        percent=percent,
        ms_per_step=round(1000 * wall / steps, 1),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
