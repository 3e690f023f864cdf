"""`dvc repro` with one Ray for all its stages: `python -m pipelines.repro`, and whatever `dvc repro` takes.

Every stage can start its own, and does after a plain `dvc repro`; that costs seconds a stage.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from infra import ray_session
from pipelines import cli
from pipelines.params import load

ROOT = Path(__file__).resolve().parent.parent
DVC = (sys.executable, "-m", "dvc")


def main(argv: list[str]) -> None:
    cluster = load().cluster
    is_current = not argv and subprocess.call([*DVC, "status", "--quiet"]) == 0
    if is_current or cluster.address != ray_session.LOCAL:
        sys.exit(subprocess.call([*DVC, "repro", *argv]))
    with ray_session.session(cluster, ROOT) as address:
        shared = {ray_session.SHARED: address}
        sys.exit(subprocess.call([*DVC, "repro", *argv], env=os.environ | shared))


if __name__ == "__main__":
    cli.run(main)
