"""Training on a Ray cluster: the only module that knows Ray Train and accelerate.

A job is sent whole to every worker. A worker builds the family, continues from the newest checkpoint, and runs the one
loop of components.training; rank 0 alone tracks, prints and stores.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
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
from components.errors import DataError, InputError, TrainingError
from components.families import FAMILIES
from components.families.base import DataInfo, Family
from components.files import sha256
from components.images import encode_png, grid
from components.replicas import fingerprint, refuse_desync
from components.training import State, TrainingConfig, fit
from infra.config import ClusterConfig
from infra.progress import Reports, console
from infra.ray_session import has_gpu
from infra.tracking import RunLogger

STATE_FILE, STATE_HASH = "state.pt", "state.sha256"
logger = logging.getLogger(__name__)


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


def train(job: Job, cluster: ClusterConfig, storage: Path, tracker: RunLogger) -> State:
    """Runs a job to its end on the connected cluster, or takes its result from storage.

    Raises TrainingError for a run that went wrong, InputError if another driver has it, and otherwise what a worker
    raised."""
    name = f"{job.name}-{job.hash[:16]}"
    reports = Reports([console(job.name, job.training.steps), tracker])
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "threads": _threads(cluster), "reports": reports.queue},
        scaling_config=ray.train.ScalingConfig(num_workers=cluster.num_workers, use_gpu=has_gpu()),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    with run_lock(storage, name), reports:
        result = trainer.fit()
    if result.return_value is not None:
        raise TrainingError(f"{job.name}: {result.return_value}")
    with result.checkpoint.as_directory() as folder:
        state = read_state(Path(folder), torch.device("cpu"))
    for row in state.history:  # what an interrupted attempt stored but did not get to track
        tracker.figures(int(row["step"]), {name: value for name, value in row.items() if name != "step"})
    return state


def _threads(cluster: ClusterConfig) -> int:
    return cluster.threads_per_worker or max(1, (os.cpu_count() or 1) // cluster.num_workers)


@contextlib.contextmanager
def run_lock(storage: Path, name: str) -> Iterator[None]:
    """Keeps a second driver from the same run for the time of the block; the lock goes with its process, however that
    ends. Raises InputError naming the first driver."""
    storage.mkdir(parents=True, exist_ok=True)
    path = storage / f"{name}.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(f"{storage / name}: {file.read().strip()} trains this run already") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _worker(settings: dict) -> str | None:
    """One worker's whole life. Returns what went wrong where trying again would not help: every rank finds the same at
    the same step, so none is left waiting for another."""
    try:
        _train_as_worker(settings)
    except TrainingError as error:
        return str(error)
    return None


def _train_as_worker(settings: dict) -> None:
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
        for phase in family.phases if world > 1 else ():
            net = family.nets[phase.net]
            refuse_desync(net, phase.net, accelerator.gather(fingerprint(net)[None]))
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
    write_state(folder, state)
    return ray.train.Checkpoint.from_directory(folder)


def _restore(device: torch.device) -> State | None:
    """The newest checkpoint that is whole; None at the start of a run."""
    newest = ray.train.get_checkpoint()
    if newest is None:
        return None
    # older ones lie beside it, and Ray names them by time
    siblings = sorted((path for path in Path(newest.path).parent.glob("checkpoint_*")), reverse=True)
    for path in [Path(newest.path), *(path for path in siblings if path.name < Path(newest.path).name)]:
        try:
            return read_state(path, device)
        except DataError as error:
            logger.warning("%s; going back to the checkpoint before", error)
    return None


def write_state(folder: Path, state: State) -> None:
    """Writes a checkpoint: the state, and the hash that tells whether it is whole."""
    torch.save(asdict(state), folder / STATE_FILE)
    (folder / STATE_HASH).write_text(sha256(folder / STATE_FILE))


def read_state(folder: Path, device: torch.device) -> State:
    """A checkpoint's state; loading runs no code. Raises DataError if it is not whole."""
    path, recorded = folder / STATE_FILE, folder / STATE_HASH
    if not path.is_file() or not recorded.is_file() or sha256(path) != recorded.read_text():
        raise DataError(f"{path}: checkpoint is missing, truncated or altered")
    return State(**torch.load(path, map_location=device, weights_only=True))


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
