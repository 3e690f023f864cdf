"""Where a champion comes from: git, dvc.lock, the runs that trained it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from pipelines.support import cli, yaml_files
from pipelines.support.params import DEFAULT, TRAINED

DVC_LOCK = Path("dvc.lock")


def git_revision() -> str:
    """The commit, marked where files differ from it; empty outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def git_commit() -> str:
    """The commit alone; empty outside a git checkout."""
    return git_revision().removesuffix("-dirty")


def locked_stages() -> dict[str, Any]:
    """dvc.lock's stages, without those of models that params.yaml names no more; none where DVC did not run."""
    stages = yaml_files.locked_stages(DVC_LOCK)
    content = yaml_files.mapping(DEFAULT) if stages and DEFAULT.is_file() else {}
    known = {"evaluate", *(name for group in (*TRAINED, "encode") for name in content.get(group) or {})}
    return {name: entry for name, entry in stages.items() if "@" not in name or _model_of(name) in known}


def _model_of(stage: str) -> str:
    """The block behind a stage: `sampler@ldm` and `input@ldm/guide` are of ldm."""
    return stage.partition("@")[2].partition("/")[0]


def graph() -> list[list[dict[str, Any]]]:
    """The stages of dvc.lock by how many lie before them: each with its name, the last stages that it waits for, and
    the seconds that its last run took, None where that is not on record."""
    stages = locked_stages()
    made = {out["path"]: stage for stage, entry in stages.items() for out in entry.get("outs", [])}

    def makers(path: str) -> set[str]:
        return {stage for out, stage in made.items() if f"{path}/".startswith(f"{out}/") or out.startswith(f"{path}/")}

    after = {
        stage: sorted(set().union(*(makers(dep["path"]) for dep in entry.get("deps", []))) - {stage})
        for stage, entry in stages.items()
    }

    def depth(stage: str) -> int:
        return 1 + max(map(depth, after[stage]), default=-1)

    def before(stage: str) -> set[str]:
        return set(after[stage]).union(*map(before, after[stage]))

    levels: dict[int, list[dict[str, Any]]] = {}
    for stage in stages:
        direct = [other for other in after[stage] if not any(other in before(third) for third in after[stage])]
        told = {"name": stage, "after": direct, "seconds": read_duration(stage)}
        levels.setdefault(depth(stage), []).append(told)
    return [levels[level] for level in sorted(levels)]


def read_duration(stage: str) -> float | None:
    path = cli.DURATIONS / f"{stage}.json"
    try:
        return json.loads(path.read_text())["seconds"]
    except (OSError, ValueError, KeyError, TypeError):  # it is told for the reader's interest alone
        return None


def locked_outputs() -> list[dict[str, str]]:
    """What dvc.lock says that each stage wrote, the report left out."""
    return [
        {"stage": stage, "path": out["path"], "md5": out.get("md5", "")}
        for stage, entry in locked_stages().items()
        for out in entry.get("outs", [])
        if stage != "report"
    ]
