"""The driver's side of a training: starts the workers, listens to them, and takes the finished state."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from pathlib import Path

import ray.train
from ray.train.backend import BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from components.artifacts.run_folder import Best
from components.data.media import medium
from components.errors import TrainingError
from components.files import held_alone
from components.training.loop import State
from infra.config import ClusterConfig
from infra.ray_cluster.ray_session import LOCAL, has_gpu
from infra.ray_train import continuation, failures, validation
from infra.ray_train.checkpoints import newest_whole, read_state
from infra.ray_train.job import Job
from infra.ray_train.nodes import NodeMonitor
from infra.ray_train.progress import Reports, console
from infra.ray_train.worker import validate_apart, work
from infra.storage.buckets import is_remote
from infra.storage.staging import node_cache
from infra.storage.store import Store
from infra.tracking.runs import RunLogger

# whole, not by name: for its policy Ray's controller would import this package, and torch with it
ray.cloudpickle.register_pickle_by_value(failures)


class Trainer(DataParallelTrainer):
    """Ray's, with a failure policy of our own, and without actors that nothing here needs: each is a process that takes
    seconds of a core to start, and Ray 2.60 has no setting for them. One hands out Ray Data sets, of which there are
    none."""

    unneeded = (DatasetsCallback,)

    def _create_default_callbacks(self):
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, self.unneeded)]

    def _initialize_and_run_controller(self, **settings):
        policy = failures.FailurePolicy(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**(settings | {"failure_policy": policy}))

    def _register_sigint_handler(self, controller) -> None:
        """Leaves Ctrl-C an interrupt, as it is everywhere: Ray's handler ends the process as if all had gone well."""


class LocalTrainer(Trainer):
    """On a session of this machine, whose end clears up after a controller that died."""

    unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)

    def _initialize_and_run_controller(self, *, scaling_policy: ScalingPolicy, **settings) -> ray.train.Result:
        if type(scaling_policy) is FixedScalingPolicy:
            scaling_policy = _unannounced(scaling_policy.scaling_config)
        return super()._initialize_and_run_controller(scaling_policy=scaling_policy, **settings)


def _unannounced(scaling_config: ray.train.ScalingConfig) -> FixedScalingPolicy:
    """A group of one size, which Ray's autoscaler is not told of, because this machine has none: the controller would
    start an actor for that, and wait for its answer before it starts workers."""

    class Unannounced(FixedScalingPolicy):  # not of this module, which Ray's controller would import, and torch with it
        def after_controller_start(self, train_run_context: object) -> None:
            """Announces nothing."""

        def _maybe_send_resource_request(self) -> None:
            """Announces nothing."""

    return Unannounced(scaling_config)


def train(job: Job, cluster: ClusterConfig, storage: str | Path, tracker: RunLogger) -> State:
    """Runs a job to its end on the connected cluster, or takes its result from storage; of no steps there is
    none to take.

    `storage`: an absolute folder that every node sees, or s3://bucket/prefix, where the job's inputs are staged, too.
    Raises TrainingError for a run that went wrong, InputError if another driver has it, and otherwise what a worker
    raised."""
    if job.training.steps == 0:
        return State(0, {}, {}, {})
    run = _run(job, storage)
    with run_lock(_lock_folder(storage), run.name):
        state = newest_whole(run, "cpu")
        if state is not None:  # what an interrupted attempt stored but did not get to track, before what comes after it
            _track(state, tracker)
        if state is None or state.step < job.training.steps:  # a finished run needs no workers to say so
            source, state = (continuation.begin(job, run) if state is None else None) or (None, state)
            if state is None or state.step < job.training.steps:
                continuation.record(job, run)
                state = _fit(job, cluster, storage, run, tracker, 0 if state is None else state.step, source)
            _track(state, tracker)
    validated = {step: validation.tracked(figures) for step, figures in validation.kept(run).items()}
    state.history = [{**row, **validated.get(int(row["step"]), {})} for row in state.history]
    return state


def best_checkpoint(job: Job, storage: str | Path) -> Best | None:
    """What a finished training keeps besides its last weights, if it was asked to. Raises TrainingError if that is not
    there."""
    return validation.best(_run(job, storage), job.training)


def _run(job: Job, storage: str | Path) -> Store:
    return Store.open(storage) / f"{job.name}-{job.hash[:16]}"


def _track(state: State, tracker: RunLogger) -> None:
    """Each step's figures, unless they are on record."""
    for row in state.history:
        tracker.figures(int(row["step"]), {name: value for name, value in row.items() if name != "step"})


def _fit(
    job: Job,
    cluster: ClusterConfig,
    storage: str | Path,
    run: Store,
    tracker: RunLogger,
    start: int,
    source: Store | None,
) -> State:
    """The finished state of a run, trained from its newest checkpoint on, or from that of `source` where it has none,
    which is of step `start`."""
    if is_remote(storage):
        job = job.in_storage(str(storage), cluster.cache_bytes)
    unit = medium(job.info.decoded.medium).plural
    shown = console(job.name, job.training.steps, job.training.batch_size, unit, start)
    reports = Reports([shown, tracker], here=cluster.address == LOCAL)
    settings = {"job": job, "reports": reports.queue, "threads": cluster.threads_per_worker}
    settings |= {"sharding": cluster.sharding, "run": run, "source": source}
    use_gpu = has_gpu(cluster.use_gpu)
    trainer = (LocalTrainer if cluster.address == LOCAL else Trainer)(
        # not as train_loop_config, which Ray's controller would unpickle, and import torch and the family for it
        functools.partial(work, settings),
        backend_config=_backend(cluster, use_gpu),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=use_gpu,
            elastic_resize_monitor_interval_s=cluster.resize_every,
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=run.parent.path,
            storage_filesystem=None if run.is_local else run.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
        validation_config=_validation(cluster, job, reports, run),
    )
    if cluster.elastic:
        # a group of the wrong size, planned before a node's end was known, is given up after this long; 60 by default
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    nodes = NodeMonitor() if cluster.elastic else contextlib.nullcontext()
    with reports, nodes:
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise failures.mendable(error, run) from None
    if result.return_value is not None:
        raise TrainingError(f"{job.name}: {result.return_value}")
    with result.checkpoint.as_directory() as folder:
        return read_state(Path(folder), "cpu")


def _backend(cluster: ClusterConfig, use_gpu: bool) -> BackendConfig:
    """What joins the workers. A single one on CPUs has nobody to be joined with, and Ray's controller, which imports
    this, then starts without torch."""
    if cluster.max_workers == 1 and cluster.sharding == "none" and not use_gpu:
        return BackendConfig()
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="nccl" if use_gpu else "gloo")


def _validation(cluster: ClusterConfig, job: Job, reports: Reports, run: Store) -> ray.train.ValidationConfig | None:
    """Validation of checkpoints in tasks of their own; a worker that is alone does it itself."""
    if cluster.max_workers == 1:
        return None
    return ray.train.ValidationConfig(
        functools.partial(validate_apart, job=job, reports=reports.queue, run=run),
        ray_remote_kwargs={"num_cpus": 0},  # no share of the cluster, and its loss is no loss to the training
    )


def _lock_folder(storage: str | Path) -> Path:
    """Where drivers of this machine lock their runs: a bucket has no locks that go with a process."""
    return node_cache() / "runs" if is_remote(storage) else Path(storage)


def run_lock(storage: Path, name: str) -> contextlib.AbstractContextManager[None]:
    """Keeps a second driver from the same run for the time of the block. Raises InputError naming the first driver."""
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    return held_alone(
        storage / f"{name}.lock", holder, lambda other: f"{storage / name}: {other} trains this run already"
    )
