"""Kills processes of a training at chosen moments and compares what comes out with an undisturbed run."""

from __future__ import annotations

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
    done = command(clone, sys.executable, "-m", "pipelines.prepare")
    assert done.returncode == 0, done.stderr


def start(clone: Path, key: str) -> psutil.Popen:
    with (clone / "chaos.log").open("a") as log:
        return psutil.Popen(
            [sys.executable, "-m", "pipelines.train", key],
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
    return max((path.name for path in (clone / ".cache/ray").glob("*/checkpoint_*")), default="")


def kill(process: psutil.Popen, victim: str) -> None:
    """`victim`: `driver`, the stage itself; `worker`, the process that trains; `raylet`, the whole Ray node."""
    if victim == "driver":
        process.kill()
        return
    wanted = {"worker": "RayTrainWorker", "raylet": "raylet/raylet"}[victim]
    for child in process.children(recursive=True):
        if wanted in " ".join(child.cmdline()[:1]):
            child.kill()
            return
    raise AssertionError(f"found no {victim} below process {process.pid}")


def disturbed(clone: Path, key: str, victims: list[str]) -> dict[str, str]:
    """Trains while one process after the other is killed, each once a new checkpoint was stored; a stage that ends is
    started again by the same command."""
    process, seen = start(clone, key), ""
    for victim in victims:
        deadline = time.monotonic() + PATIENCE
        while newest_checkpoint(clone) <= seen:
            assert time.monotonic() < deadline, f"no new checkpoint before killing the {victim}"
            assert process.poll() is None, (clone / "chaos.log").read_text()[-3000:]
            time.sleep(0.05)
        seen = newest_checkpoint(clone)
        kill(process, victim)
        if victim != "worker":  # Ray replaces a worker by itself
            assert process.wait(PATIENCE) != 0, f"the stage did not notice that its {victim} is gone"
            process = start(clone, key)
    assert process.wait(PATIENCE) == 0, (clone / "chaos.log").read_text()[-3000:]
    return weights(clone, key.partition(".")[2])
