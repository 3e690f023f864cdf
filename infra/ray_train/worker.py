"""One worker of a training: builds the family, continues from the newest checkpoint, and runs the one loop of
components.training behind accelerate; rank 0 alone reports and stores."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Literal

import psutil
import ray.train
import torch
from accelerate import Accelerator
from ray.util.queue import Queue

from components.data.dataset import Dataset, batches, row_weight, rows_of_batch
from components.errors import TrainingError
from components.families.base import START, Family
from components.imports import uncollected
from components.metrics.figures import Figures
from components.training import sharding
from components.training.loop import State, fit
from components.training.metric_averages import NonFiniteError
from components.training.precision import Precision, chosen, fastest
from components.training.weight_sync import fingerprint, refuse_desync
from infra.ray_train import validation
from infra.ray_train.checkpoints import newest_whole, read_state, restore, written_checkpoint
from infra.ray_train.job import Job
from infra.ray_train.mailbox import Sender
from infra.ray_train.preemption import Preemption
from infra.ray_train.progress import RATE
from infra.storage.store import Store

GIB = 2**30
ROWS_TOLD = 16  # of a batch that broke the run
PROGRESS_EVERY = 3.0  # seconds between two words on progress, however rare reports are


def work(settings: dict) -> str | None:
    """One worker's whole life. Returns what went wrong where trying again would not help: every rank finds the same at
    the same step, so none is left waiting for another.

    `settings`: `job`, the `reports` queue, `threads` (0: this node's cores shared), `sharding`, `run` (the run's folder
    in storage), `source` (that of a run to go on from where this one has no state yet)."""
    try:
        worker = Worker(**settings)
        worker.train()
    except NonFiniteError as error:
        return f"{error}; {worker.rows_of(error.step)}"
    except TrainingError as error:
        return str(error)
    return None


class Worker:
    """What a worker has at hand: its place in the group, its device, the job."""

    def __init__(
        self,
        job: Job,
        reports: Queue | Sender,
        threads: int,
        sharding: Literal["none", "fsdp2"],
        run: Store,
        source: Store | None = None,
    ):
        context = ray.train.get_context()
        self.job, self.run, self.source, self.sharded = job, run, source, sharding == "fsdp2"
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
        on_gpu = torch.cuda.is_available()
        keep_to_deterministic_algorithms(job.training.deterministic, on_gpu)
        self.accelerator = _accelerator(on_gpu, self.sharded)
        assert self.accelerator.num_processes == self.world, "accelerate does not see Ray's worker group"
        self.device = self.accelerator.device
        self.family = job.build()
        self.family.to(self.device)
        self.reporter = Reporter(job, reports, self.device, self.world) if self.rank == 0 else None
        self.validator = validation.Validator(job, self.device)
        self.preemption = Preemption()
        self.weight = row_weight(job.training.batch_size, self.rank, self.world)

    def train(self) -> None:
        if self.reporter:
            self.validator.check()
        start, dataset = restore(self.device), Dataset(self.job.folder(self.job.data))
        if start is None and self.source is not None:
            start = newest_whole(self.source, self.device)
        size, seed, crops = self.job.training.batch_size, self.job.seed, self.family.crops
        if start is None and self.job.input(START) is None:
            self.family.begin(lambda: next(batches(dataset, size, seed=seed, crops=crops)).to(self.device))
        stream = batches(dataset, size, self.rank, self.world, seed, start.step if start else 0, crops)
        precision = self.automatic_precision(start)
        if self.reporter:
            self.reporter.begin(start.step if start else 0)
            self.reporter.precision(self.family, precision)
        state = fit(
            self.family,
            (batch.to(self.device) for batch in stream),
            self.job.training,
            start=start,
            wrap=self.wrap,
            report=self.report,
            save=self.save,
            leave=self.between_steps,
            automatic=precision,
        )
        if state.step < self.job.training.steps:
            self.preemption.wait_for_the_end()

    def rows_of(self, step: int) -> str:
        """The rows of a global batch, in words."""
        job, dataset = self.job, Dataset(self.job.folder(self.job.data))
        rows = rows_of_batch(dataset, step, job.training.batch_size, job.seed, self.family.crops).tolist()
        more = f" and {len(rows) - ROWS_TOLD} more" if len(rows) > ROWS_TOLD else ""
        return f"its rows in {job.data}: {', '.join(map(str, rows[:ROWS_TOLD]))}{more}"

    def automatic_precision(self, start: State | None) -> Precision:
        """What `precision: auto` is: as the run began, or else bfloat16 where it is the fastest on every worker."""
        if start is not None and start.precision is not None:
            return start.precision
        here = torch.tensor(float(fastest(self.device.type) == "bfloat16"), device=self.device)
        everywhere = self.accelerator.gather(here[None]).min().item()
        return "bfloat16" if everywhere else "float32"

    def between_steps(self, step: int) -> bool:
        """Whether to leave before the next step."""
        if self.reporter:
            self.reporter.progress(step)
        return self.preemption(step)

    def wrap(self, net: torch.nn.Module, optimizer: torch.optim.Optimizer):
        """Behind data parallelism; a net spread over CPUs goes past accelerate, which would not spread it there."""
        if self.sharded and self.device.type == "cpu":
            from torch.distributed.device_mesh import init_device_mesh

            sharding.shard(net, optimizer, init_device_mesh("cpu", (self.world,)))
            return net, optimizer
        return self.accelerator.prepare(net, optimizer)

    def report(self, step: int, figures: dict[str, float]) -> dict[str, float]:
        """Means over all rows of the global batches, from each worker's means over its own."""
        values = self.weight * torch.tensor(list(figures.values()), device=self.device)
        agreed = dict(zip(figures, self.accelerator.reduce(values, "mean").tolist(), strict=True))
        if self.world > 1 and not self.sharded:
            for phase in self.family.phases:
                net = self.family.nets[phase.net]
                refuse_desync(net, phase.net, self.accelerator.gather(fingerprint(net)[None]))
        if self.reporter:
            self.reporter.figures(step, agreed)
        return agreed

    def save(self, state: State) -> None:
        """Stores a checkpoint and has it validated: here, if no other worker waits, in a task of its own otherwise."""
        began = time.monotonic()
        alone = self.world == 1
        if self.reporter and alone:
            self.reporter.validated(self.run, state, *self.validator.validate(state))
        with written_checkpoint(state) if self.reporter else contextlib.nullcontext() as checkpoint:
            ray.train.report(
                {"step": state.step}, checkpoint=checkpoint, validation=checkpoint is not None and not alone
            )
        self.preemption.saved(time.monotonic() - began)


def validate_apart(checkpoint: ray.train.Checkpoint, job: Job, reports: Queue | Sender, run: Store) -> dict[str, float]:
    """Validates a stored checkpoint, as a Ray task. Nothing goes back through Ray Train: figures come by the queue."""
    torch.set_num_threads(1)  # the workers have the cores
    with checkpoint.as_directory() as folder:
        state = read_state(Path(folder), "cpu")
    picture, figures = validation.Validator(job, "cpu").validate(state)
    Reporter(job, reports, torch.device("cpu")).validated(run, state, picture, figures)
    return {}


def keep_to_deterministic_algorithms(asked: bool, on_gpu: bool) -> None:
    """To be called before the first work on a GPU. Where a layer has none there, torch warns and the run goes on."""
    if asked and on_gpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for
    with uncollected():  # torch imports its compiler for it
        torch.use_deterministic_algorithms(asked, warn_only=on_gpu)
    # else it fills every new tensor with NaN first, 5 to 10 % of a step, for who reads what none has written
    torch.utils.deterministic.fill_uninitialized_memory = False


def _accelerator(on_gpu: bool, sharded: bool) -> Accelerator:
    if on_gpu and sharded:
        from accelerate.utils import FullyShardedDataParallelPlugin

        return Accelerator(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
    return Accelerator(cpu=not on_gpu)


class Reporter:
    """Sends rank 0's metrics to the driver through a queue, so that showing and tracking never block a step."""

    def __init__(self, job: Job, queue: Queue | Sender, device: torch.device, world: int = 1):
        self._job, self._queue, self._device, self._world = job, queue, device, world
        self._process = psutil.Process()
        self._process.cpu_percent()  # the next call tells of the time since this one

    def begin(self, step: int) -> None:
        self._first, self._began = step, time.monotonic()
        self._told = self._began

    def precision(self, family: Family, automatic: Precision) -> None:
        """What the networks are computed in: one of the things that bits depend on."""
        asked = self._job.training.precision
        used = {chosen(asked, automatic, phase.low_precision) for phase in family.phases}
        emulated = "bfloat16" in used and fastest(self._device.type) == "float32"
        self._queue.put(("precision", " and ".join(sorted(used)), emulated))

    def progress(self, step: int) -> None:
        """Where the training is, now and then: reports may be minutes apart. Asks nothing of the device."""
        now = time.monotonic()
        if now - self._told >= PROGRESS_EVERY:
            self._told = now
            self._queue.put(("progress", step, self._rate(step)))

    def _rate(self, step: int) -> float:
        """Images a second since the start."""
        return (step - self._first) * self._job.training.batch_size / (time.monotonic() - self._began)

    def figures(self, step: int, figures: dict[str, float]) -> None:
        self._queue.put(("figures", step, {**figures, RATE: self._rate(step), **self._system()}))

    def validated(self, run: Store, state: State, picture: bytes | None, figures: Figures) -> None:
        """Hands on a checkpoint's validation: figures, and weights if they are to be kept, into the run's storage,
        figures and the picture to the driver."""
        validation.keep(run, state.step, figures)
        validation.keep_best(run, state, figures, self._job.training)
        self._queue.put(("figures", state.step, validation.tracked(figures)))
        if picture is not None:
            self._queue.put(("picture", f"previews/{state.step:07d}.png", picture))

    def _system(self) -> dict[str, float]:
        """How many workers there are, and what rank 0's process takes of its machine."""
        taken = {
            "system/workers": float(self._world),
            "system/cpu_percent": self._process.cpu_percent(),
            "system/memory_gib": self._process.memory_info().rss / GIB,
        }
        if self._device.type == "cuda":
            taken["system/gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / GIB
        return taken
