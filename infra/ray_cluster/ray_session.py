"""Starting or joining Ray, the same way for every stage that needs it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import ray

from components import memory
from components.errors import InputError
from infra.config import ClusterConfig
from infra.ray_cluster import closed_session, local_start

# read by Ray's processes when they start
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon the end of a run is noticed; 2 s by default
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # of 5: how soon a notice is heard
    "RAY_health_check_period_ms": "1000",  # of 3000: five failures are a node's death, which until then counts as alive
    # of 15: all else on the machine, the driver and dvc among it, would take turns before a training's threads
    "RAY_worker_niceness": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "infra.serving.proxy_answers.middlewares",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # of 10: three failures are a proxy's end, and another is started
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what future versions do; silences the notice about it
}
UNSAID = {"RAY_AUTH_MODE": "disabled"}  # where the environment of a cluster that is joined says nothing

LOCAL = "local"
SHARED = "LATENT_FOUNDRY_RAY"  # the address of a session on this machine that the stages of one `dvc repro` share
CODE = ("components", "infra", "pipelines")
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray 2.60: what it tells the process of a submitted job about it


@contextlib.contextmanager
def session(cluster: ClusterConfig, root: Path) -> Iterator[str]:
    """Ray for the time of the block, whose address it yields; a session that already runs in this process is used and
    left running.

    `root` is the folder that workers import this project from. On a cluster that is joined they get a copy of its code:
    other nodes do not see the folder, or hold another version. Raises InputError if the cluster cannot be reached.
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
    if local:
        local_start.refuse_bad_temporary_folder()
    interrupt = signal.getsignal(signal.SIGTERM)
    with closed_session.opened() if local else _joined():
        try:
            with _workers_environment(root, cluster.address == LOCAL) as environment:
                init = functools.partial(
                    ray.init,
                    address=address,
                    runtime_env=environment,
                    logging_level="error",
                    log_to_driver=False,  # stages show their progress; a worker's traceback comes with its exception
                    **(capacity if local else {}),
                )
                if local:
                    local_start.start(init, _clear)
                else:
                    init()
                _keep(interrupt)
        except ConnectionError as error:
            raise InputError(f"cluster.address: no Ray cluster answers at {address!r} ({error})") from None
        except Exception as error:  # Ray 2.60 raises no other kind when its processes are not up in time
            if local and type(error) is Exception:
                raise InputError(f"Ray could not be started on this machine: {str(error).splitlines()[0]}") from None
            raise
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()


def _keep(interrupt: object) -> None:
    """What SIGTERM does in this process: Ray, once it is started, would abort it amid whatever it does."""
    if callable(interrupt) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


def _clear() -> None:
    """What a failed start of a session on this machine has left."""
    ray.shutdown()
    closed_session.end_processes()


@contextlib.contextmanager
def ending_with_ray() -> Iterator[None]:
    """Ends this process with one line and status 2 if Ray's own processes on this machine end within the block. Calls
    to a session that has lost its raylet return never, so nobody else could."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1):
            if lost := closed_session.lost_process():
                folder = ray._private.worker._global_node.get_logs_dir_path()
                print(
                    f"error: Ray's {lost} has ended (its log is in {folder}); start again", file=sys.stderr, flush=True
                )
                closed_session.end_at_once(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    """A cluster's environment says whether it asks for a token; one that says nothing is taken to ask for none."""
    for name, value in UNSAID.items():
        os.environ.setdefault(name, value)
    closed_session.read_settings()
    yield


@contextlib.contextmanager
def _workers_environment(root: Path, here: bool) -> Iterator[dict]:
    """Where workers import this project from: `here`, from its folder. The copy for others is sent within the block."""
    if here:
        yield {"env_vars": {"PYTHONPATH": str(root), **memory.environment()}}
    elif "working_dir" in json.loads(os.environ.get(JOB, "{}")).get("runtime_env", {}):
        yield {}  # this process came with a job, whose working folder its workers get
    else:
        with tempfile.TemporaryDirectory(prefix="code-") as folder:
            copy_code(root, Path(folder))
            yield {"working_dir": folder, "env_vars": memory.environment()}


def copy_code(root: Path, folder: Path) -> None:
    """What the processes of a cluster import: a few hundred kilobytes."""
    for name in CODE:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".terraform"))


def has_gpu(wanted: bool | None = None) -> bool:
    """Whether work on the connected cluster takes GPUs: as wanted; unsaid, where it has some now."""
    return ray.cluster_resources().get("GPU", 0) > 0 if wanted is None else wanted
