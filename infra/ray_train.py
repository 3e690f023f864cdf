"""Training on a Ray cluster: the only module that knows Ray Train and accelerate.

A job is sent whole to every worker. A worker builds the family, continues from the newest checkpoint, and runs the one
loop of components.training; rank 0 alone tracks, prints and stores.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time

from dataclasses import asdict, dataclass
from pathlib import Path

import ray.train
import torch
from accelerate import Accelerator
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue


from components import run_folder
from components.config import Strict
from components.data import Dataset, batches, row_weight
from components.families import FAMILIES
from components.families.base import DataInfo, Family
from components.images import encode_png, grid
from components.training import State, TrainingConfig, fit
from infra.config import ClusterConfig
from infra.progress import Reports, console
from infra.ray_session import has_gpu
from infra.tracking import RunLogger

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class Job:
    """Everything that decides a training's result. Equal jobs have equal hashes and continue each other's runs.

    `data` is the absolute folder of the data set, `data_hash` and `code_hash` the content of it and of the code.
    """

    name: str
    family: str
    config: Strict
    info: DataInfo
    training: TrainingConfig
    seed: int
    data: str
    data_hash: str
    code_hash: str

    @property
    def hash(self) -> str:
        facts = {
            "family": self.family,
            "config": self.config.model_dump(mode="json"),
            "info": self.info.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "seed": self.seed,
            "data": self.data_hash,
            "code": self.code_hash,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def build(self) -> Family:
        """The family with its initial weights, equal in every process, and its pretrained nets loaded."""
        torch.manual_seed(self.seed)  # layers initialise from the global generator
        family = FAMILIES[self.family](self.config, self.info)
        for net in family.pretrained:
            run_folder.load_weights(family.nets[net], Path(self.data) / f"{net}.safetensors")
        return family


def train(job: Job, cluster: ClusterConfig, storage: Path, logger: RunLogger) -> State:
    """Runs a job to its end on the connected cluster, or takes its result from storage. Raises what a worker raised."""
    reports = Reports([console(job.name, job.training.steps), logger])
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "threads": _threads(cluster), "reports": reports.queue},
        scaling_config=ray.train.ScalingConfig(num_workers=cluster.num_workers, use_gpu=has_gpu()),
        run_config=ray.train.RunConfig(
            name=f"{job.name}-{job.hash[:16]}",
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    with reports:
        result = trainer.fit()
    with result.checkpoint.as_directory() as folder:
        state = read_state(Path(folder), torch.device("cpu"))
    for row in state.history:  # what an interrupted attempt stored but did not get to track
        logger.figures(int(row["step"]), {name: value for name, value in row.items() if name != "step"})
    return state


def _threads(cluster: ClusterConfig) -> int:
    return cluster.threads_per_worker or max(1, (os.cpu_count() or 1) // cluster.num_workers)


def _worker(settings: dict) -> None:
    """One worker's whole life."""
    job: Job = settings["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(settings["threads"])
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.use_deterministic_algorithms(True)
    accelerator = Accelerator(cpu=not on_gpu)
    assert accelerator.num_processes == world, "accelerate does not see Ray's worker group"

    family = job.build()
    family.nets.to(accelerator.device)
    start = _restore(accelerator.device)
    dataset = Dataset(Path(job.data))
    stream = batches(dataset, job.training.batch_size, rank, world, job.seed, start.step if start else 0)
    weight = row_weight(job.training.batch_size, rank, world)
    reporter = Reporter(job, settings["reports"], start, accelerator.device) if rank == 0 else None

    def report(step: int, figures: dict[str, float]) -> dict[str, float]:
        agreed = _mean_over_workers(accelerator, figures, weight)
        if reporter:
            reporter.figures(step, agreed)
        return agreed

    def save(state: State) -> None:
        checkpoint = None
        if reporter:
            reporter.preview(state, dataset)
            checkpoint = _write_checkpoint(state)
        ray.train.report({"step": state.step}, checkpoint=checkpoint)

    fit(
        family,
        (batch.to(accelerator.device) for batch in stream),
        job.training,
        start=start,
        wrap=lambda net, optimizer: accelerator.prepare(net, optimizer),
        report=report,
        save=save,
    )


def _mean_over_workers(accelerator: Accelerator, figures: dict[str, float], weight: float) -> dict[str, float]:
    """Means over all rows of the global batches, from each worker's means over its own."""
    values = weight * torch.tensor(list(figures.values()), device=accelerator.device)
    return dict(zip(figures, accelerator.reduce(values, "mean").tolist(), strict=True))


def _write_checkpoint(state: State) -> ray.train.Checkpoint:
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    torch.save(asdict(state), folder / STATE_FILE)
    return ray.train.Checkpoint.from_directory(folder)


def _restore(device: torch.device) -> State | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return read_state(Path(folder), device)


def read_state(folder: Path, device: torch.device) -> State:
    """A checkpoint's state; loading runs no code."""
    return State(**torch.load(folder / STATE_FILE, map_location=device, weights_only=True))


class Reporter:
    """Rank 0's voice: figures and pictures go to the driver, which shows and tracks them off the step's path."""

    def __init__(self, job: Job, queue: Queue, start: State | None, device: torch.device):
        self._job, self._queue, self._device = job, queue, device
        self._first = start.step if start else 0
        self._shadow: Family | None = None
        self._began = time.monotonic()

    def figures(self, step: int, figures: dict[str, float]) -> None:
        rate = (step - self._first) * self._job.training.batch_size / (time.monotonic() - self._began)
        self._queue.put(("figures", step, {**figures, "images_per_second": rate}))

    def preview(self, state: State, dataset: Dataset) -> None:
        """Draws with the averaged weights, on a copy of the family, so that training does not notice."""
        if self._shadow is None:
            self._shadow = self._job.build()
            self._shadow.nets.to(self._device)
        for net, weights in state.average.items():
            self._shadow.nets[net].load_state_dict(weights)
        self._shadow.nets.requires_grad_(False).eval()
        images = self._shadow.preview(dataset.take(torch.arange(min(20, len(dataset)))))
        if images is not None:
            self._queue.put(("picture", f"previews/{state.step:07d}.png", encode_png(grid(images, 10), scale=4)))
