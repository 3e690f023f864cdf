"""Starting or joining Ray, the same way for every stage that needs it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import ray

from components.errors import InputError
from infra.config import ClusterConfig

# read by Ray's processes when they start
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # on loopback; a cluster sets its own, which setdefault keeps
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon the end of a run is noticed; 2 s by default
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # of 5: how soon a notice is heard
    "RAY_health_check_period_ms": "1000",  # of 3000: five failures are a node's death, which until then counts as alive
    # of 15: all else on the machine, the driver and dvc among it, would take turns before a training's threads
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what future versions do; silences the notice about it
}


LOCAL = "local"
SHARED = "LATENT_FOUNDRY_RAY"  # the address of a session on this machine that the stages of one `dvc repro` share


@contextlib.contextmanager
def session(cluster: ClusterConfig, root: Path) -> Iterator[str]:
    """Ray for the time of the block, whose address it yields; a session that already runs in this process is used and
    left running.

    `root` is the folder that workers import this project from. Raises InputError if the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get(SHARED, LOCAL) if cluster.address == LOCAL else cluster.address
    local = address == LOCAL
    if cluster.address == LOCAL:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody gives notice on one's own machine
        # idle processes started in advance fit none of Ray Train's actors, whose environment differs; they only cost
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # two CPUs more than workers: a group that fills the machine would leave Ray Data and the controller none
    capacity = {"num_cpus": max(os.cpu_count() or 1, cluster.max_workers) + 2, "include_dashboard": False}
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": {"PYTHONPATH": str(root)}},
            logging_level="error",
            log_to_driver=False,  # stages show their own progress; a failed worker's traceback comes with its exception
            **(capacity if local else {}),
        )
    except ConnectionError as error:
        raise InputError(f"cluster.address: no Ray cluster answers at {address!r} ({error})") from None
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def has_gpu(cluster: ClusterConfig) -> bool:
    """Whether workers of the connected cluster take a GPU each."""
    return ray.cluster_resources().get("GPU", 0) > 0 if cluster.use_gpu is None else cluster.use_gpu
