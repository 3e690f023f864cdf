"""Crops and buckets from a folder to trained samplers, of pixels and of latents."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from components.data.dataset import Dataset, batches, read_manifest, verify
from components.data.info import data_info
from components.data.randomness import Draws
from components.errors import DataError
from components.sampling.requests import Request
from infra.ray_cluster import encoding
from infra.storage.store import Store
from pipelines import encode, prepare
from pipelines.support.fitness import small_buckets
from pipelines.support.params import load
from pipelines.train import make_job
from tests.components.helpers import assert_same, one_exact_thread
from tests.pipelines.in_process import encoded, train, train_stage
from tests.pipelines.measured import write_run

IMAGES = "data/images/train"
TRAINING = {"training": {"steps": 3, "batch_size": 4, "report_every": 1, "save_every": 3, "precision": "float32"}}
MODEL = {"backbone": {"widths": [8, 8], "heads": 2, "context_dim": 8}, "conditioning": "none"}
VAE = {"latent_channels": 2, "widths": [4, 8]}
SIZES = ((20, 20), (12, 40), (40, 12), (30, 26))


def params() -> dict:
    sampler = {"family": "latent_diffusion", "model": {**MODEL, "crops": True, "flips": True}, **TRAINING}
    crops = {"cover": 1.25, "frame": 1.5, "aspect": 4}
    return {
        "seed": 0,
        "promote": {},
        "data": {"source": "folder", "path": "own", "image_size": 16, "crops": crops, "rows_per_shard": 5},
        "autoencoders": {"vae": {"family": "vae", "data": IMAGES, "model": VAE, **TRAINING}},
        "judges": {"judge": {"family": "judge", "data": IMAGES, "model": {"width": 4}, **TRAINING}},
        "encode": {"latents": {"flips": True, "crops": 3}},
        "samplers": {"ldm": {**sampler, "data": "data/latents"}, "pixels": {**sampler, "data": IMAGES}},
        "inputs": {"latents/autoencoder": "runs/vae", "evaluate/judge": "runs/judge"},
        "evaluate": {"neighbours": 1},
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("crops")
    with pytest.MonkeyPatch.context() as patch, one_exact_thread():
        patch.chdir(root)
        patch.setattr(encode, "session", lambda *_: contextlib.nullcontext())
        patch.setattr(encode.encoding, "encode", encoded)
        for number, size in zip(range(24), itertools.cycle(SIZES), strict=False):
            path = root / f"own/{'ab'[number % 2]}/{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.linear_gradient("L").rotate(90 * number).resize(size[::-1]).save(path)
        Path("params.yaml").write_text(yaml.safe_dump(params()))
        prepare.main([])
        train(root, "vae", "vae", VAE, data_info(read_manifest(root / IMAGES)), root / IMAGES)
        encode.main([])
        yield root


@pytest.mark.parametrize("more", [0, 1])
def test_sizes_with_fewer_images_than_a_batch_are_told(project, more, monkeypatch):
    monkeypatch.chdir(project)
    dataset, content = Dataset(project / IMAGES), params()
    batch_size = min(map(len, dataset.buckets)) + more
    for block in content["samplers"].values():
        block["training"] = {**TRAINING["training"], "batch_size": batch_size}
    Path("other.yaml").write_text(yaml.safe_dump(content))
    notes = small_buckets(load(Path("other.yaml")), {"train": dataset.manifest})
    assert len(notes) == more
    assert all(note.startswith(f"sizes of crops with fewer images than a batch of {batch_size}") for note in notes)


@pytest.mark.parametrize(
    ("folder", "sizes", "mirrored"),
    [(IMAGES, ((16, 16), (8, 32), (32, 8)), ()), ("data/latents", ((8, 8), (4, 16), (16, 4)), ("mean_flipped",))],
)
def test_a_data_set_has_crops_of_every_bucket(project, folder, sizes, mirrored):
    manifest = verify(project / folder)
    assert data_info(manifest).crops == sizes
    dataset = Dataset(project / folder)
    assert sum(map(len, dataset.buckets)) == len(dataset)
    stream = batches(dataset, 4, seed=0, crops=True)
    row = "image" if not mirrored else "mean"
    seen = set()
    for batch in itertools.islice(stream, 12):
        seen.add(tuple(batch.columns[row].shape[2:]))
        assert batch.columns["crop"].shape == (4, 4) and batch.columns["raw_size"].shape == (4, 2)
        for name in mirrored:
            assert batch.columns[name].shape == batch.columns[row].shape
    assert seen == set(sizes)


def test_latents_of_crops_are_those_of_the_crops_that_are_told(project):
    latents, images = (Dataset(project / folder) for folder in ("data/latents", IMAGES))
    rows = torch.tensor(images.buckets[1])
    assert torch.equal(latents.take(rows)["raw_size"], images.take(rows)["raw_size"])
    write_run(project / "runs/judge", "judge")
    teacher = encoding.Teacher(project / "runs/judge", 1)
    work = encoding.Work(project / "runs/vae", project / IMAGES, 16, flips=True, crops=1, teacher=teacher)
    maker = encoding.actor(work, Store.open(project))
    shard = images.manifest.buckets[0].shards  # the first of the second bucket
    expected = [maker._crop(shard, view) for view in range(3)]
    inside = images.shard_rows(shard)
    found = latents.crops(inside, Draws.of(0, 9, torch.from_numpy(inside)))
    for row in range(len(inside)):
        views = [one for one in expected if one["crop"][row].tolist() == found["crop"][row].tolist()]
        assert any(torch.equal(torch.from_numpy(one["mean"][row]), found["mean"][row]) for one in views)
    maps = {name: one.shape[2:] for name, one in expected[0].items() if name.startswith("teacher_map")}
    sides = {"0": (4, 16), "1": (2, 8), "0_flipped": (4, 16), "1_flipped": (2, 8)}
    assert maps == {f"teacher_map_{ending}": size for ending, size in sides.items()}


@pytest.mark.parametrize("name", ["ldm", "pixels"])
def test_a_sampler_trains_on_crops_the_same_each_time_and_draws_its_own_size(project, name, monkeypatch):
    monkeypatch.chdir(project)
    with one_exact_thread():
        runs = [train_stage(load(), f"samplers.{name}") for _ in range(2)]
        assert_same(*(dict(run.family.nets["denoiser"].state_dict()) for run in runs))
        sampler = runs[0].family
        images = sampler.sample(Request(torch.arange(2), sampler.Settings(num_inference_steps=2)))
    assert images.shape == (2, 1, 16, 16)


def test_latents_without_crops_are_refused_before_training(project, monkeypatch):
    monkeypatch.chdir(project)
    content = params()
    content["encode"]["latents"]["crops"] = 0
    Path("other.yaml").write_text(yaml.safe_dump(content))
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.train.data_info", lambda *told: data_info(*told).model_copy(update={"crops": ()}))
        with pytest.raises(
            DataError, match=r"model\.crops needs crops to train on; expected data\.crops, and crops in"
        ):
            make_job(load(Path("other.yaml")), "samplers.ldm")
