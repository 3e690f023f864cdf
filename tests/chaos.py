"""Kills processes of a training at chosen moments and compares what comes out with an undisturbed run."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from components.files import sha256
from tests.clones import command, environment

PATIENCE = 240  # seconds for any one thing to happen


def prepare(clone: Path) -> None:
    for verb in ("prepare", "hash_code"):
        done = command(clone, sys.executable, "-m", f"pipelines.{verb}")
        assert done.returncode == 0, done.stderr


def start(clone: Path, key: str, by_dvc: bool = False) -> psutil.Popen:
    """The stage by itself, or the `dvc repro` that runs it."""
    group, _, name = key.partition(".")
    stage = f"{group.removesuffix('s')}@{name}"
    arguments = ["dvc", "repro", "--single-item", stage] if by_dvc else ["pipelines.train", key]
    if by_dvc:
        assert command(clone, sys.executable, "-m", "pipelines.hash_inputs", key).returncode == 0
    with (clone / "chaos.log").open("a") as log:
        return psutil.Popen(
            [sys.executable, "-m", *arguments],
            cwd=clone,
            env=environment(clone),
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def weights(clone: Path, name: str) -> dict[str, str]:
    """The sha256 of every weights file of a run folder."""
    return {path.name: sha256(path) for path in sorted((clone / "runs" / name).glob("*.safetensors"))}


def undisturbed(clone: Path, key: str) -> dict[str, str]:
    """Trains once, in peace; leaves nothing that a second training could take up."""
    name = key.partition(".")[2]
    process = start(clone, key)
    assert process.wait(PATIENCE) == 0, (clone / "chaos.log").read_text()[-3000:]
    found = weights(clone, name)
    for path in (clone / "runs" / name, clone / ".cache/ray"):
        shutil.rmtree(path)
    for path in clone.glob("mlflow.db*"):
        path.unlink()
    return found


def newest_checkpoint(clone: Path) -> str:
    """Of those that Ray has on its list, from which it would resume."""
    lists = (clone / ".cache/ray").glob("*/checkpoint_manager_snapshot.json")
    return max((name for path in lists for name in re.findall(r"checkpoint_[\d\-_.]+", path.read_text())), default="")


NAMES = {"worker": "RayTrainWorker", "raylet": "raylet/raylet"}  # how Ray's processes call themselves


def find(process: psutil.Popen, victim: str) -> psutil.Process | None:
    """`victim`: `driver`, the stage itself; `dvc`, what runs it; `worker`, the process that trains; `raylet`, the whole
    Ray node."""
    if victim in ("driver", "dvc"):
        return process
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if NAMES[victim] in " ".join(child.cmdline()[:1]):
                return child
    return None


def wait_for_checkpoint(process: psutil.Popen, clone: Path) -> None:
    """Until the stage's own worker has stored a checkpoint; one orphaned by an earlier kill may store some before."""
    deadline, seen = time.monotonic() + PATIENCE, None
    while seen is None or newest_checkpoint(clone) <= seen:
        assert time.monotonic() < deadline, "no new checkpoint"
        assert process.poll() is None, (clone / "chaos.log").read_text()[-3000:]
        if seen is None and find(process, "worker"):
            seen = newest_checkpoint(clone)
        time.sleep(0.1)


def disturbed(clone: Path, key: str, victims: list[str], seed: int = 0) -> dict[str, str]:
    """Trains while one process after the other is killed, each at a random moment after a new checkpoint was stored; a
    stage that ends is started again by the same command."""
    moments = random.Random(seed)
    process = start(clone, key, victims[0] == "dvc")
    try:
        for number, victim in enumerate(victims):
            wait_for_checkpoint(process, clone)
            time.sleep(moments.uniform(0, 0.7))
            find(process, victim).kill()
            if victim != "worker":  # Ray replaces a worker by itself
                assert process.wait(PATIENCE) != 0, f"the stage did not notice that its {victim} is gone"
                process = start(clone, key, victims[number + 1 : number + 2] == ["dvc"])
        assert process.wait(PATIENCE) == 0, (clone / "chaos.log").read_text()[-3000:]
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return weights(clone, key.partition(".")[2])
