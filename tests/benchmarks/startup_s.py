"""Seconds from `python -m pipelines.train` to its first step, and where they go.

A copy of the project trains the demo's judge for a few steps, watched from outside: when each of Ray's processes
appears, and when the report of the first step is printed. Then once more on a Ray that runs already, as the stages of
`make demo` share one.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import yaml

from infra.config import ClusterConfig
from infra.ray_cluster import ray_session
from pipelines.support import params
from pipelines.support.paths import ROOT
from tests.benchmarks.common import emit
from tests.clones import command, environment, make_clone

# the first sight of a process whose command line holds the text ends the phase
MARKS = {
    "driver: imports, checks, tracking": "gcs_server",
    "Ray's start": "ray::TrainController",
    "controller until the worker is up": "ray::RayTrainWorker",
}
LAST = "worker until its first step"
ROUNDS = 2
LOOK_EVERY = 0.05  # seconds


def prepared_clone(folder: Path) -> Path:
    """A copy of the project whose judge trains for two steps and reports each, with its data prepared."""
    blocks = yaml.safe_load((ROOT / params.DEFAULT).read_text())
    blocks["judges"]["judge"]["training"] = {"steps": 2, "batch_size": 128, "report_every": 1}
    clone = make_clone(folder, blocks)
    done = command(clone, sys.executable, "-m", "pipelines.prepare")
    assert done.returncode == 0, done.stderr
    return clone


def phases(clone: Path, seed: int, shared: str = "") -> dict[str, float]:
    """Trains once from nothing; the seconds of each phase, `processes` that were started, and `total`; this alone on a
    Ray at the address `shared`, whose processes are no children of the stage."""
    blocks = yaml.safe_load((clone / params.DEFAULT).read_text())
    (clone / params.DEFAULT).write_text(yaml.safe_dump({**blocks, "seed": seed}))  # else Ray has the run already
    began = time.monotonic()
    process = psutil.Popen(
        [sys.executable, "-u", "-m", "pipelines.train", "judges.judge"],
        cwd=clone,
        env=environment(clone) | ({ray_session.SHARED: shared} if shared else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first_step, lines = threading.Event(), []
    seconds: list[float] = []

    def listen() -> None:
        for line in process.stdout:
            lines.append(line)
            if "step 1/" in line:
                seconds.append(time.monotonic() - began)
                first_step.set()
        first_step.set()

    listener = threading.Thread(target=listen)
    listener.start()
    seen: dict[str, float] = {}
    processes: set[int] = set()
    while not first_step.wait(LOOK_EVERY):
        look(process, seen, processes, time.monotonic() - began)
    process.wait(120)
    listener.join()
    assert process.returncode == 0 and seconds and (shared or len(seen) == len(MARKS)), "".join(lines)
    if shared:
        return {"total": seconds[0]}
    ends = [0.0, *(seen[mark] for mark in MARKS.values()), seconds[0]]
    spent = {name: later - sooner for name, sooner, later in zip([*MARKS, LAST], ends, ends[1:], strict=False)}
    return {**spent, "total": seconds[0], "processes": float(len(processes))}


def look(process: psutil.Process, seen: dict[str, float], processes: set[int], now: float) -> None:
    """Notes the marks whose process has appeared by `now`, and all that were started."""
    for child in process.children(recursive=True):
        processes.add(child.pid)
        try:
            line = " ".join(child.cmdline()[:2])
        except psutil.Error:  # it has ended
            continue
        for mark in MARKS.values():
            if mark in line:
                seen.setdefault(mark, now)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        clone = prepared_clone(Path(temporary))
        rounds = [phases(clone, seed) for seed in range(ROUNDS + 1)][1:]  # the first compiles bytecode
        with ray_session.session(ClusterConfig(), clone) as address:
            on_shared = [phases(clone, ROUNDS + 1 + seed, address)["total"] for seed in range(ROUNDS)]
    median = {name: round(statistics.median(found[name] for found in rounds), 2) for name in rounds[0]}
    emit(
        "startup_s",
        median.pop("total"),
        "s from the command to the first step",
        "told and cut",
        **median,
        on_a_shared_ray=round(statistics.median(on_shared), 2),
    )


if __name__ == "__main__":
    main()
