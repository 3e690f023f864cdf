"""`dvc repro` with one Ray for all its stages: `python -m pipelines.repro`, and whatever `dvc repro` takes.

    python -m pipelines.repro --preset presets/emoji_text.yaml    # computes what a preset says, from now on
    python -m pipelines.repro --dry                               # says what would run, in a fresh clone too

Every stage can start its own, and does after a plain `dvc repro`; that costs seconds a stage.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from components.errors import ConfigError
from components.files import held_alone
from pipelines.support import cli
from pipelines.support.paths import ROOT

DVC = (sys.executable, "-m", "dvc")
PRESET = "--preset"


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
    refuse_without_repository(ROOT)
    if argv[:1] == [PRESET]:
        argv = compute_preset(argv[1:])
    if not argv and subprocess.call([*DVC, "status", "--quiet"]) == 0:
        return print("Data and pipelines are up to date.")
    # only now: with nothing to do, seconds of imports would be all that this takes
    from infra.ray_cluster import ray_session
    from pipelines.support import params, readiness

    asked = params.load()
    cluster = asked.cluster
    if "--dry" in argv:
        sys.exit(dry_run(argv))
    if all(argument.startswith("-") for argument in argv):  # of stages that are named, trainings look themselves
        readiness.refuse_unready(asked)
    cli.expect_writable(ROOT)
    with alone(ROOT):
        if cluster.address != ray_session.LOCAL:
            sys.exit(repro(argv, {}))
        with ray_session.session(cluster, ROOT) as address:
            sys.exit(repro(argv, {ray_session.SHARED: address}))


def repro(argv: list[str], variables: dict[str, str]) -> int:
    """`dvc repro`, which ends if this process does, with the stage that it runs: Ray goes, too."""
    return subprocess.call([*DVC, "repro", *argv], env=os.environ | variables, preexec_fn=cli.end_with_parent)


def alone(root: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps a second one out of the project before it starts a Ray; DVC would refuse it then. Raises InputError."""
    holder = f"pipelines.repro, process {os.getpid()},"
    return held_alone(
        root / ".cache" / "repro.lock", holder, lambda other: f"{root}: {other} is at work here; wait for it, or end it"
    )


def compute_preset(argv: list[str]) -> list[str]:
    """Puts the preset that the first argument names into params.yaml; returns the other arguments."""
    from pipelines.support import presets
    from pipelines.support.params import DEFAULT

    if not argv:
        raise ConfigError(f"{PRESET}: expected a file after it, such as presets/emoji_text.yaml")
    if (before := presets.apply(Path(argv[0]), DEFAULT, presets.BEFORE)) is not None:
        print(f"{DEFAULT}: now what {argv[0]} says; before: {before}", flush=True)
    return argv[1:]


if __name__ == "__main__":
    cli.run(main)
