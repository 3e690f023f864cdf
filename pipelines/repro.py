"""`dvc repro` with one Ray for all its stages: `python -m pipelines.repro`, and whatever `dvc repro` takes.

    python -m pipelines.repro --preset presets/emoji_text.yaml    # computes what a preset says, from now on

Every stage can start its own, and does after a plain `dvc repro`; that costs seconds a stage.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from components.errors import ConfigError
from components.files import write_whole
from infra.ray_cluster import ray_session
from pipelines.support import cli
from pipelines.support.params import DEFAULT, WHERE, load
from pipelines.support.paths import ROOT

DVC = (sys.executable, "-m", "dvc")
PRESET = "--preset"
BEFORE = Path("params.before.yaml")  # what a preset replaced


def apply(preset: Path, target: Path, before: Path) -> bool:
    """Makes a preset what `target` computes, and keeps its blocks that say where; what it was goes to `before`. Tells
    whether that changed anything. Raises ConfigError of a preset or target that is not valid."""
    load(preset)
    load(target)
    told, present = (yaml.safe_load(path.read_text()) for path in (preset, target))
    kept = {name: present[name] for name in WHERE if name in present and name not in told}
    text = preset.read_text().rstrip() + "\n\n# Where to compute. Changing anything below reruns nothing.\n"
    text += yaml.safe_dump(kept, sort_keys=False)
    if text == target.read_text():
        return False
    write_whole(before, target.read_text())
    write_whole(target, text)
    return True


def main(argv: list[str]) -> None:
    if argv[:1] == [PRESET]:
        if len(argv) < 2:
            raise ConfigError(f"{PRESET}: expected a file after it, such as presets/emoji_text.yaml")
        if apply(Path(argv[1]), DEFAULT, BEFORE):
            print(f"{DEFAULT}: now what {argv[1]} says; before: {BEFORE}", flush=True)
        argv = argv[2:]
    cluster = load().cluster
    is_current = not argv and subprocess.call([*DVC, "status", "--quiet"]) == 0
    if is_current or cluster.address != ray_session.LOCAL:
        sys.exit(subprocess.call([*DVC, "repro", *argv]))
    with ray_session.session(cluster, ROOT) as address:
        shared = {ray_session.SHARED: address}
        sys.exit(subprocess.call([*DVC, "repro", *argv], env=os.environ | shared))


if __name__ == "__main__":
    cli.run(main)
