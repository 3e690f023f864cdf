"""Trained autoencoders, as several verbs open them."""

from __future__ import annotations

from pathlib import Path

from components.artifacts import run_folder
from components.errors import InputError
from components.families.vae import VAE


def load_vae(folder: Path, device: str = "cpu") -> VAE:
    """The autoencoder of a run folder. Raises InputError of one that holds none."""
    vae = run_folder.load(folder, device).family
    if not isinstance(vae, VAE):
        raise InputError(f"{folder}: expected a trained vae, as params.yaml.autoencoders says")
    return vae
