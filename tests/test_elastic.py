"""A group of workers shrinks with the cluster and grows with it, and trains the same run all the while."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from components.data.dataset import Dataset, batches
from components.training.loop import fit
from tests.components.helpers import no_wrap
from tests.elastic import STEPS
from tests.infra.ray_train.jobs import make_job

ROOT = Path(__file__).resolve().parent.parent


def run_elastic(folder: Path, *flags: str) -> dict:
    """What tests.elastic tells, from a process of its own."""
    command = [sys.executable, "-m", "tests.elastic", str(folder), *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "told.json").read_text())


def after(steps: list, moment: float, workers: int) -> float:
    """Seconds from a moment to the first step that a group of that size reported afterwards."""
    return min(at for _, size, at in steps if size == workers and at > moment) - moment


def repeated(steps: list, begin: float, end: float) -> int:
    """How many steps were reported again between two moments."""
    numbers = [step for step, _, at in steps if begin < at < end]
    return sum(max(0, earlier - later + 1) for earlier, later in pairwise(numbers))


def check(told: dict, num_steps: int, images: Path) -> None:
    """Whatever was done to the nodes, the curve is that of one worker left in peace."""
    assert [row["step"] for row in told["history"]] == list(range(1, num_steps + 1))
    job = make_job(images, steps=num_steps, report_every=1, save_every=50)
    alone = fit(
        job.build(),
        batches(Dataset(images), job.training.batch_size, seed=job.seed),
        job.training,
        start=None,
        wrap=no_wrap,
        report=lambda step, figures: figures,
        save=lambda state: None,
    )
    for row, other in zip(told["history"], alone.history, strict=True):
        # weights part in their last digits, since Adam divides rounding by rounding, and losses with them in time
        assert row["autoencode/loss"] == pytest.approx(other["autoencode/loss"], rel=0.02), row["step"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_is_killed_shrinks_the_group_and_its_return_grows_it(tmp_path):
    told = run_elastic(tmp_path)
    print("from a node's loss to the next step:", round(after(told["steps"], told["done"]["killed"], 1), 1), "s")
    check(told, STEPS // 2, tmp_path / "images")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_notice_costs_no_step(tmp_path):
    told = run_elastic(tmp_path, "--preempt")
    assert repeated(told["steps"], told["done"]["noticed"], told["done"]["added"]) == 0
    check(told, STEPS, tmp_path / "images")
