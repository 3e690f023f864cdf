"""A training on two Ray nodes of one machine, of which one goes and comes back: `python -m tests.elastic FOLDER`.

Writes told.json into the folder: the steps that were reported, with how many workers and when; when each thing was done
to the second node; the history of the run. A process of its own, because a process has one Ray session.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from components.families import family_class
from components.files import write_json
from infra import ray_train
from infra.config import ClusterConfig
from infra.ray_cluster.ray_session import ENVIRONMENT, UNSAID
from tests.infra.ray_train.jobs import make_job, write_images

ROOT = Path(__file__).resolve().parent.parent
STEPS, STEP_SECONDS = 900, 0.1
PATIENCE = 120.0  # seconds for any one thing to happen
NOTICE = 12.0  # seconds between the notice and the node's end
RESOURCES = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


class Slow(family_class("vae")):
    """Takes its time for a step, so that a run of tiny networks outlasts what is done to it."""

    def loss(self, net, batch):
        time.sleep(STEP_SECONDS)
        return super().loss(net, batch)


class SlowJob(ray_train.Job):
    def build(self):
        import torch

        torch.manual_seed(self.seed)
        return Slow(self.config, self.info)


class Record:
    """A tracker's stand-in: every report with the number of workers and the time."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, float]] = []

    def figures(self, step: int, figures: dict[str, float]) -> None:
        if "system/workers" in figures:
            self.steps.append((step, int(figures["system/workers"]), time.time()))

    def validated(self, step: int, figures: dict[str, float]) -> None:
        pass

    def picture(self, name: str, png: bytes) -> None:
        pass

    def wait_for(self, workers: int, since: float) -> None:
        """Until three reports in a row came from a group of that size after `since`."""
        deadline = time.monotonic() + PATIENCE
        while [w for _, w, at in self.steps if at > since][-3:] != [workers] * 3:
            assert time.monotonic() < deadline, f"no group of {workers}; the last reports: {self.steps[-3:]}"
            time.sleep(0.1)


def drain(address: str, node_id: str, seconds: float) -> None:
    """The notice that a cloud gives before it takes a node away, passed to Ray as its tools do."""
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    deadline = ["--deadline-remaining-seconds", str(int(seconds))]
    command = ["ray", "drain-node", "--address", address, "--node-id", node_id, *reason, *deadline]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def scenario(cluster: Cluster, record: Record, preempt: bool) -> dict[str, float]:
    """What is done to the second node, and when."""
    done: dict[str, float] = {}
    second = cluster.list_all_nodes()[-1]
    record.wait_for(2, 0)
    if preempt:
        drain(cluster.address, second.node_id, NOTICE)
        done["noticed"] = time.time()
        time.sleep(NOTICE)
        cluster.remove_node(second, allow_graceful=False)
        done["preempted"] = time.time()
        record.wait_for(1, done["preempted"])
        second = cluster.add_node(**RESOURCES)
        done["added"] = time.time()
        record.wait_for(2, done["added"])
    cluster.remove_node(second, allow_graceful=False)
    done["killed"] = time.time()
    record.wait_for(1, done["killed"])
    cluster.add_node(**RESOURCES)
    done["back"] = time.time()
    record.wait_for(2, done["back"])
    return done


def main(folder: Path, preempt: bool) -> None:
    for name, value in (ENVIRONMENT | UNSAID).items():
        os.environ.setdefault(name, value)
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1"  # which a session on one machine does without
    images = write_images(folder / "images")
    job = make_job(images, steps=STEPS if preempt else STEPS // 2, report_every=1, save_every=50)
    slow = SlowJob(**{field.name: getattr(job, field.name) for field in dataclasses.fields(job)})
    cluster = Cluster(initialize_head=True, head_node_args={**RESOURCES, "include_dashboard": False})
    cluster.add_node(**RESOURCES)
    ray.init(
        address=cluster.address,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        logging_level="error",
        log_to_driver=False,
    )
    record, result = Record(), []
    config = ClusterConfig(num_workers=(1, 2), resize_every=2, max_failures=5, threads_per_worker=1)
    thread = threading.Thread(
        target=lambda: result.append(ray_train.train(slow, config, folder / "storage", record)), daemon=True
    )
    try:
        thread.start()
        done = scenario(cluster, record, preempt)
        thread.join(PATIENCE + STEPS * STEP_SECONDS)
        assert result, "the training did not end"
        write_json(folder / "told.json", {"steps": record.steps, "done": done, "history": result[0].history})
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), preempt="--preempt" in sys.argv)
