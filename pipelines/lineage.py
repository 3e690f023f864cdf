"""Where a champion comes from: git, dvc.lock, the runs that trained it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

DVC_LOCK = Path("dvc.lock")


def git_revision() -> str:
    """The commit, marked where files differ from it; empty outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def locked_stages() -> dict[str, Any]:
    """dvc.lock's stages; none where DVC did not run."""
    return yaml.safe_load(DVC_LOCK.read_text()).get("stages", {}) if DVC_LOCK.is_file() else {}


def locked_outputs() -> list[dict[str, str]]:
    """What dvc.lock says that each stage wrote, the report left out."""
    return [
        {"stage": stage, "path": out["path"], "md5": out.get("md5", "")}
        for stage, entry in locked_stages().items()
        for out in entry.get("outs", [])
        if stage != "report"
    ]
