"""Small jobs, and the images that they train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from components.data.dataset import read_manifest, write_manifest, write_shards
from components.data.info import data_info
from components.errors import ConfigError
from components.families import family_class
from components.files import whole_folder
from components.training.loop import TrainingConfig
from infra import ray_train


def write_images(folder: Path) -> Path:
    """64 images of two classes, bright left or bright right."""
    pixels = np.random.default_rng(0).integers(0, 80, (64, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(64) % 2
    for image, label in zip(pixels, labels, strict=True):
        image[0, :, :4] += np.uint8(150 * label)
        image[0, :, 4:] += np.uint8(150 * (1 - label))
    rows = ({"image": image, "label": np.asarray(label)} for image, label in zip(pixels, labels, strict=True))
    with whole_folder(folder) as working:
        write_manifest(working, write_shards(working, rows, 40), value_range=(0, 255), classes=("left", "right"))
    return folder


class FailingJob(ray_train.Job):
    """Cannot be built, and leaves a mark beside its data at each try."""

    def build(self):
        with Path(f"{self.data}.tries").open("a") as tries:
            tries.write("x")
        raise ConfigError("model.widths: expected another")


def make_job(images, family="vae", **training) -> ray_train.Job:
    kind = family_class(family)
    model = {
        "vae": {"widths": [8], "latent_channels": 2},
        "judge": {"width": 8},
        "latent_diffusion": {"backbone": {"widths": (8, 16), "heads": 2, "context_dim": 8}},
        "r3gan": {"width": 4, "latent_dim": 4},
        "wgan_gp": {"width": 4, "latent_dim": 4, "num_critic_steps": 2},
    }[family]
    facts = {"steps": 6, "batch_size": 10, "report_every": 2, "save_every": 3, "precision": "float32"} | training
    return ray_train.Job(
        name=family,
        family=family,
        config=kind.Config(**model),
        info=data_info(read_manifest(images)),
        training=TrainingConfig(**facts),
        seed=0,
        data=str(images),
        data_hash="data",
        code_hash="code",
    )
