"""`python -m tests.gpu --toy`: every part runs on the CPU, at toy size, and finds what it looks for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.families import family_names
from tests.gpu.__main__ import SECONDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
def test_every_part_runs_at_toy_size(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--toy", "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(SECONDS) <= found.keys()
    assert '"failed: ' not in json.dumps(found), done.stdout
    assert found["parity"]["passed"] == f"{len(family_names())} of {len(family_names())} families"
    assert found["parity"]["resumes"] == f"{len(family_names())} of {len(family_names())} families bit for bit"
    assert found["quality"]["samples"]["count"] == 40
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "samples.png"}


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    asked = [sys.executable, "-m", "tests.gpu", "--out", str(tmp_path / "none")]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert "--toy" in done.stderr
