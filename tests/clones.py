"""Copies of the project for tests that run it as a user does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def tiny_params() -> dict:
    """Every stage and family in miniature."""
    return yaml.safe_load((ROOT / "tests/tiny.params.yaml").read_text())


def make_clone(folder: Path, params: dict) -> Path:
    """The working tree's files with other parameters, committed to a repository of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    apart = json.loads(json.dumps(params))  # without anchors: through an alias `dvc exp run -S` sets nothing
    (folder / "params.yaml").write_text(yaml.safe_dump(apart))
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "--message", "clone"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """That of a user who activated the virtual environment."""
    changes = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "DVC_NO_ANALYTICS": "1",
    }
    return {name: value for name, value in (os.environ | changes).items() if name != "RAY_ADDRESS"}


def command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a command in a clone to its end, with further variables in its environment."""
    env = environment(folder) | variables
    return subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False)
