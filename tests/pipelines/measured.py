"""A tiny project, trained by nobody: real folders in the shapes that the stages write, small enough for seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml

from components.artifacts import run_folder
from components.data.dataset import write_manifest, write_shard
from components.families import family_class
from components.families.base import Family
from components.training.loop import State
from tests.components.helpers import IMAGES, tiny, tiny_data

PARAMS = {
    "seed": 0,
    "data": {"source": "digits", "path": "data/raw", "image_size": 16},
    "autoencoders": {"vae": {"family": "vae", "data": "data/images/train", "training": {"steps": 1, "batch_size": 4}}},
    "judges": {"judge": {"family": "judge", "data": "data/images/train", "training": {"steps": 1, "batch_size": 4}}},
    "samplers": {
        "ldm": {
            "family": "latent_diffusion",
            "data": "data/latents",
            "training": {"steps": 1, "batch_size": 4},
            "candidates": [
                {"solver": "ddim", "num_inference_steps": 2, "guidance_scale": 1.0},
                {"solver": "heun", "num_inference_steps": 3, "guidance_scale": 2.0},
            ],
        },
        "dcgan": {"family": "dcgan", "data": "data/images/train", "training": {"steps": 1, "batch_size": 4}},
    },
    "encode": {"latents": {}},
    "inputs": {"latents/autoencoder": "runs/vae", "evaluate/judge": "runs/judge"},
    "promote": {"refuse_collapsed": False},  # what nobody trained draws next to nothing
    "evaluate": {"num_samples": 24, "batch_size": 10, "neighbours": 3, "resamples": 20, "real_draws": 3},
}


def write_images(folder: Path, count: int, seed: int, size: int = 16) -> None:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    shard = write_shard(folder, 0, {"image": pixels, "label": np.arange(count, dtype=np.int64) % len(IMAGES.classes)})
    write_manifest(folder, [shard], value_range=(0, 255), classes=IMAGES.classes)


def untrained(family_name: str) -> Family:
    kind = family_class(family_name)
    return kind(kind.Config(**tiny(family_name).config), tiny_data(family_name))


def write_run(folder: Path, family_name: str, snapshots: list[dict] | None = None) -> None:
    torch.manual_seed(0)
    family = untrained(family_name)
    average = {net: family.nets[net].state_dict() for net in family.kept}
    history = [{"step": step, "first/loss": 2.0 / step, "second/loss": 1.0, "first/kl": -0.5} for step in (1, 2, 3)]
    provenance = run_folder.Provenance(data="d" * 64, code="c" * 64, job=f"{family_name:j<16}", seed=0, step=3)
    state = State(3, {}, {}, average, history, snapshots=snapshots or [])
    run_folder.write(folder, family_name, family, state, provenance)


def write_run_with_averages(folder: Path, family_name: str = "latent_diffusion") -> None:
    """A run that kept averages of other weights than its own, at two steps."""
    torch.manual_seed(1)
    family = untrained(family_name)
    nets = {net: family.nets[net].state_dict() for net in family.kept if net not in family.pretrained}
    snapshots = [
        {
            "step": step,
            "sigma_rel": width,
            "nets": {n: {k: v * step / 3 for k, v in w.items()} for n, w in nets.items()},
        }
        for step in (1, 3)
        for width in (0.05, 0.1)
    ]
    write_run(folder, family_name, snapshots)


def write_project(root: Path) -> None:
    """Real images, trained models, params.yaml. `pipelines.reference` has not run."""
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    write_images(root / "data/images/train", 40, 1)
    write_images(root / "data/images/test", 30, 2)
    for name, family in {"vae": "vae", "judge": "judge", "ldm": "latent_diffusion", "dcgan": "dcgan"}.items():
        write_run(root / "runs" / name, family)
