"""Trained autoencoders, as several verbs open them."""

from __future__ import annotations

from pathlib import Path

from components.artifacts import run_folder
from components.errors import InputError
from components.families.base import Autoencoder


def load_autoencoder(folder: Path, device: str = "cpu") -> Autoencoder:
    """The autoencoder of a run folder. Raises InputError of one that holds none."""
    run = run_folder.load(folder, device)
    if not isinstance(run.family, Autoencoder):
        raise InputError(
            f"{folder}: expected a trained autoencoder, as params.yaml.autoencoders says, found a {run.config.family}"
        )
    return run.family
