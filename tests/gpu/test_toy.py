"""`python -m tests.gpu --toy`: every part runs on the CPU, at toy size, and finds what it looks for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.families import family_names
from tests.gpu.__main__ import SECONDS

ROOT = Path(__file__).resolve().parents[2]


def toy(folder: Path, *parts: str) -> dict:
    """What the parts find, all of them if none is named."""
    asked = [sys.executable, "-m", "tests.gpu", "--toy", "--out", str(folder), *(("--only", *parts) if parts else ())]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "results.json").read_text())
    assert set(parts or SECONDS) <= found.keys()
    assert '"failed: ' not in json.dumps(found), done.stdout
    return found


@pytest.mark.timeout(600)
def test_quality_by_the_clock_runs_at_toy_size(tmp_path):
    found = toy(tmp_path, "environment", "quality")["quality"]
    assert found["samples"]["count"] == 40
    low, high = found["real"]["interval"]
    assert low <= found["real"]["frechet_distance"] <= high


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_at_toy_size(tmp_path):
    found = toy(tmp_path)
    assert found["parity"]["passed"] == f"{len(family_names())} of {len(family_names())} families"
    assert found["parity"]["resumes"] == f"{len(family_names())} of {len(family_names())} families bit for bit"
    assert found["quality"]["samples"]["count"] == 40
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "samples.png"}


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    asked = [sys.executable, "-m", "tests.gpu", "--out", str(tmp_path / "none")]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert "--toy" in done.stderr
