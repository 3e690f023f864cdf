"""Stages `train` and `encode` without a cluster: a short training, and the encoder's actor called directly."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from components.artifacts import run_folder
from components.data.dataset import Dataset, Shard, batches, read_manifest, write_manifest
from components.data.info import AutoencoderInfo, DataInfo, data_info
from components.families import family_class
from components.families.base import Family
from components.training.loop import State, TrainingConfig, fit
from infra.ray_cluster import encoding
from infra.ray_train.job import Job
from infra.storage.store import Store
from pipelines.support import paths
from pipelines.support.params import Params
from pipelines.train import make_job
from tests.components.helpers import no_wrap

TRAINING = TrainingConfig(steps=4, batch_size=8, report_every=2, save_every=4)


def train(root: Path, name: str, family_name: str, model: dict, info: DataInfo, data: Path) -> None:
    """A few steps, and the run folder runs/NAME."""
    kind = family_class(family_name)
    torch.manual_seed(0)
    family = kind(kind.Config(**model), info)
    if info.autoencoder is not None:
        run_folder.load_weights(family.nets["autoencoder"], root / "runs/vae/autoencoder.safetensors")
    functions = {"wrap": no_wrap, "report": lambda step, figures: figures, "save": lambda state: None}
    state = fit(
        family,
        batches(Dataset(data), TRAINING.batch_size, crops=family.crops),
        TRAINING,
        start=None,
        **functions,
    )
    assert all(math.isfinite(value) for report in state.history for value in report.values())
    provenance = run_folder.Provenance(data="d", code="c", job=name, seed=0, step=TRAINING.steps)
    run_folder.write(root / "runs" / name, family_name, family, state, provenance)


def encode(root: Path, flips: bool = False) -> DataInfo:
    """data/latents of data/images/train by runs/vae."""
    images, target = root / "data/images/train", root / "data/latents"
    target.mkdir()
    facts = read_manifest(images)
    shards, statistics = encoded(encoding.Work(root / "runs/vae", images, 50, flips), target)
    write_manifest(
        target,
        shards,
        medium=facts.medium,
        value_range=facts.value_range,
        classes=facts.classes,
        statistics=statistics,
    )
    config = run_folder.read_config(root / "runs/vae")
    of = AutoencoderInfo(family=config.family, config=config.config, data=config.data)
    return data_info(read_manifest(target), of)


def encoded(work: encoding.Work, target: Path, *_: object) -> tuple[list[Shard], dict[str, tuple[float, ...]]]:
    """encoding.encode by one actor in this process."""
    numbers = np.arange(len(read_manifest(work.images).shards))
    done = encoding.actor(work, Store.open(target))({"shard": numbers})
    return encoding.gathered(work, [dict(zip(done, row, strict=True)) for row in zip(*done.values(), strict=True)])


def fitted(job: Job) -> tuple[Family, State]:
    """A job's training by the loop alone, without Ray or accelerate."""
    family = job.build()
    state = fit(
        family,
        batches(Dataset(Path(job.data)), job.training.batch_size, seed=job.seed, crops=family.crops),
        job.training,
        start=None,
        wrap=no_wrap,
        report=lambda step, figures: figures,
        save=lambda state: None,
    )
    return family, state


def train_stage(asked: Params, key: str) -> run_folder.Run:
    """Trains a block of params.yaml as its stage does, without Ray. Returns the loaded run."""
    job = make_job(asked, key)
    family, state = fitted(job)
    provenance = run_folder.Provenance(data=job.data_hash, code="c", job=job.hash, seed=job.seed, step=state.step)
    run_folder.write(paths.RUNS / job.name, job.family, family, state, provenance)
    return run_folder.load(paths.RUNS / job.name)
