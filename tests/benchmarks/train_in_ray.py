"""Images/s of the demo's autoencoder in a Ray Train worker, as `python -m pipelines.train` runs one, against the same
training in a process of its own, the sides alternating; each with all cores, in the precision of `auto`.

python -m tests.benchmarks.train_in_ray
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import yaml

from infra.config import ClusterConfig
from infra.ray_cluster import ray_session
from pipelines.support import params
from pipelines.support.paths import ROOT
from tests.benchmarks.common import as_a_worker, demo, emit, write_noise
from tests.benchmarks.rates import fit_rate, in_turn
from tests.benchmarks.waiting_policy import HERE, told_by
from tests.clones import command, make_clone

MODEL, KEY = "vae", "autoencoders.vae"
WARM, STEPS, ROUNDS = 40, 60, 3


def prepared_clone(folder: Path) -> Path:
    """A copy of the project with its data prepared, whose autoencoder reports after WARM and after all steps."""
    blocks = yaml.safe_load((ROOT / params.DEFAULT).read_text())
    training = blocks["autoencoders"][MODEL]["training"]
    blocks["autoencoders"][MODEL]["training"] = {**training, "steps": WARM + STEPS, "report_every": WARM}
    clone = make_clone(folder, blocks)
    done = command(clone, sys.executable, "-m", "pipelines.prepare")
    assert done.returncode == 0, done.stderr
    return clone


def in_ray(clone: Path, address: str, seeds: list[int]) -> float:
    """Images/s of the last report of a training that nobody has run yet."""
    blocks = yaml.safe_load((clone / params.DEFAULT).read_text())
    (clone / params.DEFAULT).write_text(yaml.safe_dump({**blocks, "seed": seeds.pop()}))
    done = command(clone, sys.executable, "-m", "pipelines.train", KEY, **{ray_session.SHARED: address})
    assert done.returncode == 0, done.stderr
    return float(re.findall(rf"step {WARM + STEPS}/\d+  (\d+) images/s", done.stdout)[-1])


def bare() -> float:
    """Images/s of the loop in this process."""
    family, info, batch_size = demo(MODEL)
    as_a_worker()
    with tempfile.TemporaryDirectory() as temporary:
        return fit_rate(family, write_noise(Path(temporary) / "images", info, 1438), batch_size, STEPS, WARM)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        clone = prepared_clone(Path(temporary))
        with ray_session.session(ClusterConfig(), clone) as address:
            seeds = list(range(1, ROUNDS + 1))
            sides = {
                "in Ray": lambda: in_ray(clone, address, seeds),
                "bare": lambda: float(told_by("train_in_ray", {})),
            }
            rates = in_turn(sides, ROUNDS)
    share = round(rates["in Ray"] / rates["bare"], 3)
    emit("train_in_ray", share, "of the bare loop's images/s, in a Ray Train worker", ">= 0.95", images_per_s=rates)


if __name__ == "__main__":
    print(bare()) if sys.argv[1:] == [HERE] else main()
