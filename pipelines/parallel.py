"""`dvc repro` with independent stages side by side: `python -m pipelines.parallel [--stages N] [TARGET ...]`.

Every stage is a `dvc repro --single-item` of its own, started when all that it depends on is there. Stages that run at
the same time share the cluster's workers. The first failure is reported; what runs then is finished, nothing more is
started, and a repetition goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from components.errors import InputError
from infra.config import ClusterConfig
from infra.ray_cluster import ray_session
from pipelines.support import cli
from pipelines.support.params import VARIABLE, load
from pipelines.support.paths import ROOT

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item")
ALONE = ("evaluate",)  # stages that measure times have the machine to themselves

Graph = Mapping[str, set[str]]  # by stage, the stages that it depends on


def read_graph(root: Path, targets: list[str]) -> Graph:
    """The stages of dvc.yaml that `targets` need, or all. Raises InputError for a target that is none."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        graph = repo.index.graph
        stages = {stage.addressing: {other.addressing for other in graph.successors(stage)} for stage in graph}
    unknown = [target for target in targets if target not in stages]
    if unknown:
        raise InputError(f"dvc.yaml: no stage {unknown[0]}; expected one of {', '.join(sorted(stages))}")
    wanted, left = set(), list(targets or stages)
    while left:
        stage = left.pop()
        left += stages[stage] - wanted
        wanted.add(stage)
    return {stage: needs for stage, needs in stages.items() if stage in wanted}


def run(graph: Graph, start: Callable[[str], int], most: int) -> str | None:
    """Starts each stage after those it depends on, at most `most` at a time. `start` runs one and returns its exit
    status. Returns the stage that failed first, None if all succeeded."""
    done: set[str] = set()
    running: dict[Future[int], str] = {}
    failed: str | None = None
    with ThreadPoolExecutor(most) as pool:
        while True:
            for stage in _ready(graph, done, set(running.values())) if failed is None else ():
                if len(running) < most and not _excluded(stage, list(running.values())):
                    running[pool.submit(start, stage)] = stage
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage = running.pop(future)
                if future.result() == 0:
                    done.add(stage)
                else:
                    failed = failed or stage


def _ready(graph: Graph, done: set[str], running: set[str]) -> list[str]:
    return sorted(stage for stage, needs in graph.items() if needs <= done and stage not in done | running)


def _excluded(stage: str, running: list[str]) -> bool:
    kinds = [name.partition("@")[0] for name in (stage, *running)]
    return bool(running) and any(kind in ALONE for kind in kinds)


def share(cluster: ClusterConfig, most: int) -> ClusterConfig:
    """What each of `most` stages has of a cluster."""
    part = max(1, cluster.max_workers // most)
    workers = [min(cluster.num_workers[0], part), part] if cluster.elastic else part
    threads = cluster.threads_per_worker
    if cluster.address == ray_session.LOCAL and not threads:
        threads = max(1, (os.cpu_count() or 1) // (most * part))
    return ClusterConfig(**cluster.model_dump() | {"num_workers": workers, "threads_per_worker": threads})


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.parallel")
    parser.add_argument("--stages", type=int, default=2, help="how many run at the same time")
    parser.add_argument("targets", nargs="*", help="stages, with all that they need; none: all")
    arguments = parser.parse_args(argv)
    if arguments.stages < 1:
        raise InputError(f"--stages: expected 1 or more, found {arguments.stages}")
    cluster = load().cluster
    graph = read_graph(ROOT, arguments.targets)
    settings = {f"{VARIABLE}CLUSTER": json.dumps(share(cluster, arguments.stages).model_dump(mode="json"))}
    if cluster.address == ray_session.LOCAL:  # room for all of them
        wide = cluster.model_copy(update={"num_workers": max(cluster.max_workers, arguments.stages)})
        with ray_session.session(wide, ROOT) as address:
            failed = run(graph, starter(settings | {ray_session.SHARED: address}), arguments.stages)
    else:
        failed = run(graph, starter(settings), arguments.stages)
    if failed is not None:
        print(f"error: {failed} failed first; what it said is above", file=sys.stderr)
        sys.exit(1)


def starter(settings: Mapping[str, str]) -> Callable[[str], int]:
    def start(stage: str) -> int:
        print(f"{stage}: starts", flush=True)
        code = subprocess.call([*DVC, stage], env=os.environ | settings)
        print(f"{stage}: {'done' if code == 0 else f'failed with exit status {code}'}", flush=True)
        return code

    return start


if __name__ == "__main__":
    cli.run(main)
