"""`dvc repro` with one Ray for all its stages: `python -m pipelines.repro`, and whatever `dvc repro` takes.

    python -m pipelines.repro --preset presets/emoji_text.yaml    # computes what a preset says, from now on
    python -m pipelines.repro --dry                               # says what would run, in a fresh clone too

Every stage can start its own, and does after a plain `dvc repro`; that costs seconds a stage.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
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


def apply(preset: Path, target: Path, before: Path) -> Path | None:
    """Makes a preset what `target` computes, and keeps its blocks that say where, comments included. What it was goes
    to `before`, or to the next free number after it, so that no backup is lost; returns which, None if nothing changed.
    Raises ConfigError of a preset or target that is not valid."""
    load(preset)
    load(target)
    text, present = preset.read_text(), target.read_text()
    kept = [_block(present, name) for name in WHERE if name in yaml.safe_load(present)]
    kept = [block for name, block in kept if name not in yaml.safe_load(text)]
    if kept:
        text = text.rstrip() + "\n\n# Where to compute. Changing anything below reruns nothing.\n" + "\n".join(kept)
    if text == present:
        return None
    with tempfile.TemporaryDirectory() as folder:  # what is written is valid before anything is replaced
        made = Path(folder) / target.name
        made.write_text(text)
        load(made)
    numbered = (before.with_stem(f"{before.stem}.{number}") for number in itertools.count(2))
    free = next(path for path in itertools.chain([before], numbered) if not path.exists())
    write_whole(free, present)
    write_whole(target, text)
    return free


def _block(text: str, name: str) -> tuple[str, str]:
    """A top-level key of a YAML mapping, and its lines with the comments in them."""
    lines, entries = text.splitlines(), yaml.compose(text).value
    starts = [key.start_mark.line for key, _ in entries] + [len(lines)]
    place = [key.value for key, _ in entries].index(name)
    block = lines[starts[place] : starts[place + 1]]
    while block[-1].startswith("#") or not block[-1].strip():  # what is said above the next key
        block.pop()
    return name, "\n".join(block) + "\n"


def refuse_without_repository(root: Path) -> None:
    """Raises ConfigError where DVC would find no repository, as in what a zip file holds."""
    if any((folder / ".git").exists() for folder in (root, *root.parents)):
        return
    told = subprocess.run([*DVC, "config", "core.no_scm"], cwd=root, capture_output=True, text=True)
    if told.stdout.strip().lower() != "true":
        raise ConfigError(
            f"{root}: no git repository, which DVC expects; `git init` makes it one, or, without git, "
            "`dvc config --local core.no_scm true` tells DVC so"
        )


def dry_run(argv: list[str]) -> int:
    """What `dvc repro` would run. DVC 3.67 fails at the first stage whose dependencies are not made yet, because it
    looks them up in its run cache before it says so; here they are in no cache."""
    from dvc.cli import main as dvc
    from dvc.stage import cache

    is_cacheable = cache._can_hash

    def is_made_and_cacheable(stage) -> bool:
        try:
            return is_cacheable(stage)
        except FileNotFoundError:
            return False

    cache._can_hash = is_made_and_cacheable
    return dvc(["repro", *argv])


def main(argv: list[str]) -> None:
    if argv[:1] == [PRESET]:
        if len(argv) < 2:
            raise ConfigError(f"{PRESET}: expected a file after it, such as presets/emoji_text.yaml")
        if (before := apply(Path(argv[1]), DEFAULT, BEFORE)) is not None:
            print(f"{DEFAULT}: now what {argv[1]} says; before: {before}", flush=True)
        argv = argv[2:]
    cluster = load().cluster
    refuse_without_repository(ROOT)
    if "--dry" in argv:
        sys.exit(dry_run(argv))
    cli.expect_writable(ROOT)
    is_current = not argv and subprocess.call([*DVC, "status", "--quiet"]) == 0
    if is_current or cluster.address != ray_session.LOCAL:
        sys.exit(subprocess.call([*DVC, "repro", *argv]))
    with ray_session.session(cluster, ROOT) as address:
        shared = {ray_session.SHARED: address}
        sys.exit(subprocess.call([*DVC, "repro", *argv], env=os.environ | shared))


if __name__ == "__main__":
    cli.run(main)
