"""Takes away what models left that params.yaml names no more:

    python -m pipelines.clear_removed -> inputs/models.json

What their stages wrote below metrics/, summary/, samples/, curves/ and inputs/ goes, and their entries in dvc.lock:
what promote and report read is what there is. Trained runs stay below runs/, and everything in DVC's cache: a block
that comes back is restored from there.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.files import write_json
from pipelines.support import cli, paths, yaml_files

PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")
GROUPS = ("autoencoders", "judges", "samplers", "encode")
CLEARED = (paths.METRICS, paths.SUMMARY, paths.SAMPLES, paths.CURVES, paths.INPUTS)
_GROUP_OF = {"evaluate": "samplers", "reconstruct": "autoencoders", "encode": "encode"}


def names(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """The blocks of each group."""
    return {group: list(content.get(group) or {}) for group in GROUPS}


def is_removed(stage: str, content: Mapping[str, Any]) -> bool:
    """Whether a stage of dvc.lock is of a block or an input that params.yaml has no more."""
    kind, is_one_of_several, key = stage.partition("@")
    if not is_one_of_several:
        return False
    if kind == "input":
        return key not in (content.get("inputs") or {})
    kind = kind.removesuffix("_block")
    return key not in (content.get(_GROUP_OF.get(kind, f"{kind}s")) or {})


def left_behind(stages: Mapping[str, Any], removed: list[str]) -> Iterator[Path]:
    """What removed stages wrote that is no other stage's, in the folders that are cleared."""
    written = {stage: {Path(out["path"]) for out in entry.get("outs", [])} for stage, entry in stages.items()}
    kept = set().union(*(outs for stage, outs in written.items() if stage not in removed))
    for stage in removed:
        for path in written[stage] - kept:
            if any(path.is_relative_to(folder) and path != folder for folder in CLEARED):
                yield path


def clear(content: Mapping[str, Any]) -> list[str]:
    """Removes files and entries; returns the stages that these were of."""
    stages = yaml_files.locked_stages(LOCK)
    removed = [stage for stage in stages if is_removed(stage, content)]
    if not removed:
        return []
    for path in left_behind(stages, removed):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others lie there, too
            if path.parent not in CLEARED:
                path.parent.rmdir()
    _remove_entries(removed)
    return removed


def _remove_entries(stages: list[str]) -> None:
    """Under DVC's own lock, which it gives away while a stage's command runs."""
    from dvc.repo import Repo
    from dvc.utils.serialize import modify_yaml

    with Repo(".") as repo, repo.lock, modify_yaml(LOCK) as content:
        for stage in stages:
            content["stages"].pop(stage, None)


def main(argv: list[str]) -> None:
    cli.no_arguments(argv, "python -m pipelines.clear_removed")
    content = yaml_files.mapping(PARAMS)
    for stage in clear(content):
        print(f"{stage}: removed from params.yaml; its figures and pictures are cleared", flush=True)
    write_json(paths.INPUTS / "models.json", names(content))


if __name__ == "__main__":
    cli.run(main)
