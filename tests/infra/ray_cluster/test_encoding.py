"""Encoding a data set on Ray Data: the same bytes from any number of actors, and true whole-set statistics."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import safetensors.torch
import torch
from ray.util import placement_group, remove_placement_group

from components.artifacts import run_folder
from components.data.dataset import Dataset, verify, write_manifest, write_shards
from components.data.info import DataInfo, data_info
from components.families.vae import Model as VAE
from components.files import sha256, whole_folder
from components.interchange import text_encoders
from components.training.ema import copy_of
from components.training.loop import State
from infra.config import ClusterConfig
from infra.ray_cluster import encoding
from infra.storage.store import Store
from tests.components.interchange import folders

CAPTIONS = ("a cat", "a dog", "", "two birds")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """70 random images with captions in three shards, an untrained autoencoder and text encoder."""
    root = tmp_path_factory.mktemp("encode")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 1, 8, 8), dtype=np.uint8)
    captions = [np.frombuffer(text.encode().ljust(10, b"\0"), np.uint8) for text in CAPTIONS]
    rows = (
        {"image": image, "label": np.asarray(number % 3), "caption": captions[number % len(captions)]}
        for number, image in enumerate(pixels)
    )
    with whole_folder(root / "images") as working:
        write_manifest(working, write_shards(working, rows, 30), value_range=(0, 255), classes=("a", "b", "c"))
    torch.manual_seed(0)
    family = VAE(VAE.Config(widths=(8, 8), latent_channels=3), DataInfo(shape=(1, 8, 8), classes=("a", "b", "c")))
    average = copy_of(dict(family.nets))
    provenance = run_folder.Provenance(data="d", code="c", job="j", seed=0, step=1)
    run_folder.write(root / "vae", "vae", family, State(1, average, {}, average), provenance)
    return root


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A tiny text encoder of transformers."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("text") / "clip"
    folders.clip(folder)
    return text_encoders.read(str(folder), 8, "here")


def encode(root, name: str, num_workers: int, text=None):
    with whole_folder(root / name) as folder:
        if text is not None:
            safetensors.torch.save_file(text.state_dict(), folder / encoding.TEXT_WEIGHTS)
        embedder = text and encoding.Text(text.layouts[0], folder)
        work = encoding.Work(root / "vae", root / "images", 16, text=embedder)
        shards, statistics = encoding.encode(work, folder, ClusterConfig(num_workers=num_workers))
        write_manifest(folder, shards, value_range=(0, 255), statistics=statistics)
    return Dataset(root / name)


@contextlib.contextmanager
def held(num_cpus: int):
    """Takes CPUs from the session for the time of the block."""
    group = placement_group([{"CPU": num_cpus}])
    ray.get(group.ready())
    yield
    remove_placement_group(group)


@pytest.fixture(scope="module")
def latents(ray_session, prepared, text):
    with held(2):  # the actors have every CPU that is left, as on a cluster as large as cluster.num_workers
        return encode(prepared, "two", 2, text)


def test_any_number_of_actors_writes_the_same_bytes(prepared, text, latents):
    one, two = encode(prepared, "one", 1, text), latents
    verify(two.folder)
    files = sorted(path.name for path in one.folder.iterdir())
    assert files == sorted(path.name for path in two.folder.iterdir())
    assert [sha256(one.folder / name) for name in files] == [sha256(two.folder / name) for name in files]


def test_rows_keep_their_order_and_labels_and_statistics_are_those_of_draws(prepared, text, latents):
    images = Dataset(prepared / "images")
    rows = latents.take(np.arange(70))
    found, expected = rows["text"].float(), text.encoded((CAPTIONS * 18)[:70]).context
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)  # half precision
    assert torch.equal(rows["label"], images.take(np.arange(70))["label"])
    family = run_folder.load(prepared / "vae").family
    with torch.inference_mode():
        mean, std = family.nets["autoencoder"].encode(images.take(np.arange(70))["image"].float() / 127.5 - 1)
    torch.testing.assert_close(rows["mean"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows["std"], std, rtol=1e-4, atol=1e-5)

    statistics = latents.manifest.statistics
    torch.manual_seed(0)
    draws = torch.cat([mean + std * torch.randn_like(std) for _ in range(200)])
    np.testing.assert_allclose(statistics["channel_mean"], draws.mean((0, 2, 3)), atol=0.01)
    np.testing.assert_allclose(statistics["channel_std"], draws.std((0, 2, 3)), rtol=0.01)


def test_mirrored_images_are_encoded_beside_the_others(prepared, tmp_path):
    """One actor's work, in this process."""
    plain, both = tmp_path / "plain", tmp_path / "both"
    for folder, flips in ((plain, False), (both, True)):
        folder.mkdir()
        work = encoding.Work(prepared / "vae", prepared / "images", 16, flips)
        shard, moments = encoding.actor(work, Store.open(folder))._encode(0)
        write_manifest(folder, [shard], value_range=(0, 255), statistics=moments.statistics())
    rows, without = (Dataset(folder).take(np.arange(30)) for folder in (both, plain))
    assert rows.keys() == {"mean", "std", "mean_flipped", "std_flipped", "label", "caption"}
    assert torch.equal(rows["mean"], without["mean"])
    images = Dataset(prepared / "images").take(np.arange(30))["image"].float() / 127.5 - 1
    with torch.inference_mode():
        mean, std = run_folder.load(prepared / "vae").family.nets["autoencoder"].encode(images.flip(-1))
    torch.testing.assert_close(rows["mean_flipped"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows["std_flipped"], std, rtol=1e-4, atol=1e-5)
    assert data_info(Dataset(both).manifest).flips and not data_info(Dataset(plain).manifest).flips
    center = torch.cat([rows["mean"], rows["mean_flipped"]]).mean((0, 2, 3))
    np.testing.assert_allclose(Dataset(both).manifest.statistics["channel_mean"], center, rtol=1e-4, atol=1e-6)


def test_tokens_of_every_view_are_those_of_its_images(prepared, tmp_path):
    """One actor's work, in this process."""
    config = VAE.Config(widths=(8, 8), latent_channels=2, codebook={"name": "fsq", "levels": [3, 4]})
    torch.manual_seed(0)
    family = VAE(config, DataInfo(shape=(1, 8, 8), classes=("a", "b", "c")))
    average = copy_of(dict(family.nets))
    provenance = run_folder.Provenance(data="d", code="c", job="j", seed=0, step=1)
    run_folder.write(tmp_path / "vae", "vae", family, State(1, average, {}, average), provenance)
    target = tmp_path / "tokens"
    target.mkdir()
    work = encoding.Work(tmp_path / "vae", prepared / "images", 16, flips=True, shifts=1)
    shard, counts = encoding.actor(work, Store.open(target))._encode(0)
    write_manifest(target, [shard], medium="tokens", value_range=(0, 65535), statistics=counts.statistics())
    dataset = Dataset(target)
    rows = dataset.take(np.arange(30))
    assert rows["tokens"].dtype == torch.uint16 and rows["tokens"].shape == dataset.rows(np.arange(30)).shape
    assert rows["views"].shape == (30, 17, 4, 4)
    images = Dataset(prepared / "images").take(np.arange(30))["image"].float() / 127.5 - 1
    net = run_folder.load(tmp_path / "vae").family.nets["autoencoder"]
    with torch.inference_mode():
        assert torch.equal(rows["tokens"][:, 0].long(), net.tokens(images))
        assert torch.equal(rows["views"][:, 8].long(), net.tokens(images.flip(-1)))
        below = torch.cat([images[:, :, 1:], images[:, :, -1:]], dim=2)
        assert torch.equal(rows["views"][:, 2].long(), net.tokens(below))
    info = data_info(dataset.manifest)
    assert info.shape == (1, 4, 4) and info.statistics["vocabulary"] == (12.0,)
    occurring = torch.cat([rows["tokens"], rows["views"]], 1).long().unique()
    assert info.statistics["usage"][0] == pytest.approx(len(occurring) / 12)
    assert 1 < info.statistics["perplexity"][0] <= len(occurring)


def test_what_is_made_in_other_ways_goes_elsewhere():
    plain = encoding.Work(Path("vae"), Path("images"), 16)
    others = [{"batch_size": 8}, {"flips": True}, {"crops": 2}, {"crops": 4}, {"shifts": 0}, {"shifts": 1}]
    others.append({"teacher": encoding.Teacher(Path("judge"), 2)})
    assert len({plain.manner, *(replace(plain, **other).manner for other in others)}) == 8
    assert plain.manner == encoding.Work(Path("elsewhere"), Path("images"), 16).manner
