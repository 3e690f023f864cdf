"""Trainings whose processes are killed at random moments, against undisturbed ones: an autoencoder, a U-Net, a GAN.

The figure is 1 when every weights file of every family has the sha256 of the undisturbed run's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.benchmarks.common import emit
from tests.chaos import disturbed, prepare, undisturbed
from tests.clones import command, make_clone, tiny_params

TRAINING = {"steps": 800, "batch_size": 16, "report_every": 20, "save_every": 40}
VICTIMS = {
    "autoencoders.vae": ["worker", "driver", "raylet"],
    "samplers.ldm": ["dvc", "worker"],
    "samplers.cgan": ["driver", "raylet"],
}


def main() -> None:
    params = tiny_params()
    for key in VICTIMS:
        group, name = key.split(".")
        params[group][name]["training"] = TRAINING
        params[group][name].pop("watch", None)  # there is no judge
    equal = {}
    with tempfile.TemporaryDirectory() as temporary:
        clone = make_clone(Path(temporary), params)
        prepare(clone)
        for seed, (key, victims) in enumerate(VICTIMS.items()):
            if key == "samplers.ldm":  # its latents come from the autoencoder just trained
                done = command(clone, sys.executable, "-m", "pipelines.encode")
                assert done.returncode == 0, done.stderr
            expected = undisturbed(clone, key)
            equal[key] = disturbed(clone, key, victims, seed) == expected
    emit(
        "chaos_exact",
        int(all(equal.values())),
        "1: every hash is equal",
        "1",
        killed=VICTIMS,
        steps=TRAINING["steps"],
        **equal,
    )


if __name__ == "__main__":
    main()
