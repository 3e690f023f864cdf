"""Rows of (1, L) and of (C, T, H, W) through all stages, by media and families that are files beside these tests.

Trainings and the encoder run in this process; reference, evaluate and reconstruct are the stages themselves.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from components.artifacts import run_folder
from components.artifacts.pyfunc import CANDIDATE, SAMPLER, RegisteredSampler
from components.data.dataset import Dataset, batches, read_manifest
from components.data.info import data_info
from components.data.media import medium
from components.errors import ConfigError, DataError, SamplerError
from components.evaluation.extractor import Extractor
from components.evaluation.features import Extractors
from components.evaluation.protocol import EvaluateConfig
from components.families import family_class
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request, Source
from components.sources import DataConfig
from components.sources import Source as Rows
from pipelines import evaluate, reconstruct, reference
from pipelines.prepare import prepare, summary
from pipelines.support import measurement
from tests import toys
from tests.components.helpers import one_exact_thread
from tests.pipelines.in_process import encode, train

CLASSES = ("low", "high")
SHAPES = {"series": (1, 24), "clip": (3, 4, 4, 6)}
FAMILIES = {"vae": "toy_autoencoder", "judge": "toy_judge", "gen": "toy_generator"}
FAMILIES |= {"ldm": "toy_diffusion", "pixels": "toy_diffusion"}
SETTINGS = {"num_inference_steps": 3, "guidance_scale": 1.5}


def rows(name: str, count: int, seed: int):
    """Rows about one of two means, a class each."""
    of, generator = medium(name), torch.Generator().manual_seed(seed)
    for number in range(count):
        values = 0.3 * torch.randn(SHAPES[name], generator=generator) + (0.4 if number % 2 else -0.4)
        yield {of.column: of.to_stored(values).numpy(), "label": np.array(number % 2, np.int64)}


def params() -> dict:
    def block(name: str, data: str) -> dict:
        return {"family": FAMILIES[name], "data": data, "training": {"steps": 4, "batch_size": 8}}

    images, latents, tried = "data/images/train", "data/latents", {"candidates": [SETTINGS]}
    return {
        "seed": 0,
        "data": {"path": "data/raw"},
        "encode": {},
        "promote": {},
        "autoencoders": {"vae": block("vae", images)},
        "inputs": {"evaluate/judge": "runs/judge"},
        "judges": {"judge": block("judge", images)},
        "samplers": {
            "ldm": {**block("ldm", latents), **tried},
            "pixels": {**block("pixels", images), **tried},
            "gen": block("gen", images),
        },
        "evaluate": {"num_samples": 24, "batch_size": 10, "neighbours": 3, "resamples": 20, "real_draws": 2},
    }


class Project(NamedTuple):
    root: Path
    medium: str

    def sampler(self, name: str):
        return run_folder.load(self.root / "runs" / name).family


@pytest.fixture(scope="module", params=SHAPES)
def project(request, tmp_path_factory):
    """Everything from prepare to evaluate, once a medium. The toys stay installed while its tests run."""
    root, name = tmp_path_factory.mktemp(request.param), request.param
    with toys.installed(), pytest.MonkeyPatch.context() as patch, one_exact_thread():
        patch.chdir(root)
        splits = {"train": lambda: rows(name, 40, 1), "test": lambda: rows(name, 30, 2)}
        written = prepare(
            Rows(CLASSES, {"source": "toy"}, splits, name), DataConfig(rows_per_shard=16), Path("data/images")
        )
        assert summary(written, Path("data/images")).startswith(f"data/images/train: 40 {medium(name).plural} ")
        Path("params.yaml").write_text(yaml.safe_dump(params(), sort_keys=False))
        images = root / "data/images/train"
        info = data_info(read_manifest(images))
        for model in ("vae", "judge", "gen", "pixels"):
            train(root, model, FAMILIES[model], {}, info, images)
        train(root, "ldm", FAMILIES["ldm"], {}, encode(root), root / "data/latents")
        reference.main([])
        for sampler in ("ldm", "pixels", "gen"):
            evaluate.main([f"samplers.{sampler}"])
        reconstruct.main(["autoencoders.vae"])
        yield Project(root, name)


def test_the_data_set_says_its_medium(project):
    dataset, of = Dataset(project.root / "data/images/train"), medium(project.medium)
    facts = dataset.manifest
    assert facts.medium == project.medium and facts.value_range == of.value_range
    assert facts.columns[of.column].dtype == of.dtype and dataset.row_shape == SHAPES[project.medium]
    values = dataset.rows(torch.arange(40))
    assert values.shape == (40, *SHAPES[project.medium]) and values.dtype == torch.float32
    assert torch.equal(of.to_stored(values), dataset.take(torch.arange(40))[of.column])
    assert torch.equal(
        values[:16], of.to_floats(torch.from_numpy(np.stack([r[of.column] for r in rows(of.name, 16, 1)])))
    )


def test_latents_are_those_of_the_rows_and_their_statistics_go_by_channel(project):
    found = Dataset(project.root / "data/latents")
    columns, vae = found.take(torch.arange(40)), project.sampler("vae")
    mean, std = vae.nets["autoencoder"].encode(Dataset(project.root / "data/images/train").rows(torch.arange(40)))
    torch.testing.assert_close(columns["mean"], mean)
    flat, spread = mean.double().movedim(1, 0).flatten(1), std.double().movedim(1, 0).flatten(1)
    total = (flat.var(1, unbiased=False) + spread.square().mean(1)).sqrt()
    statistics = found.manifest.statistics
    torch.testing.assert_close(torch.tensor(statistics["channel_mean"]).double(), flat.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(statistics["channel_std"]).double(), total, rtol=1e-5, atol=1e-6)
    assert found.manifest.medium == project.medium and medium(project.medium).column not in columns


@pytest.mark.parametrize("name", ["ldm", "pixels", "gen", "vae"])
def test_samples_are_rows_alone_as_in_a_batch(project, name):
    sampler = project.sampler(name)
    settings = sampler.Settings(**(SETTINGS if FAMILIES[name] == "toy_diffusion" else {}))
    requests = [
        Request(torch.tensor([seed]), settings, Conditions(torch.tensor([seed % 2]) if sampler.conditional else None))
        for seed in (3, 4, 3)
    ]
    engine = Engine(sampler.calls)
    futures = [engine.submit(lambda request=request: sampler.trajectory(request)) for request in requests]
    made = [future.result(60) for future in futures]
    engine.stop(timeout=60)
    assert made[0].shape == (1, *SHAPES[project.medium]) and made[0].abs().max() <= 1
    for one, request in zip(made, requests, strict=True):
        torch.testing.assert_close(one, sampler.sample(request), rtol=0, atol=1e-5)
    assert not torch.allclose(made[0], made[1])


@pytest.mark.parametrize("name", ["ldm", "pixels"])
def test_what_a_mask_keeps_stays(project, name):
    sampler, shape = project.sampler(name), SHAPES[project.medium]
    given = Dataset(project.root / "data/images/test").rows(torch.arange(2))
    mask = torch.zeros(2, 1, *shape[1:])
    mask[..., : shape[-1] // 2] = 1
    settings = sampler.Settings(**SETTINGS)
    made = sampler.sample(
        Request(torch.arange(2), settings, Conditions(torch.arange(2), source=Source(given, 0.8, mask)))
    )
    kept = mask.expand_as(given) == 0
    torch.testing.assert_close(made[kept], given[kept], rtol=0, atol=1e-6)
    assert not torch.allclose(made[~kept], given[~kept], atol=1e-2)
    with pytest.raises(SamplerError, match=f"source: expected {medium(project.medium).plural} "):
        sampler.sample(
            Request(torch.arange(2), settings, Conditions(torch.arange(2), source=Source(given[..., :-1], 0.8)))
        )


def test_every_solver_schedule_and_weighting_takes_the_shape(project):
    sampler, kind = project.sampler("pixels"), family_class("toy_diffusion")
    for solver in ("ddpm", "heun", "plms", "dpmpp_2m", "unipc"):
        settings = sampler.Settings(solver=solver, guidance_rescale=0.7, **SETTINGS)
        made = sampler.sample(Request(torch.arange(2), settings, Conditions(torch.arange(2))))
        assert made.shape == (2, *SHAPES[project.medium]) and made.isfinite().all()
    stream = batches(Dataset(project.root / "data/images/train"), 6)
    for change in ({"weighting": {"name": "min_snr"}}, {"weighting": {"name": "learned"}}, {"objective": "edm"}):
        family = kind(kind.Config(**change), sampler.data)
        assert family.loss(family.nets["denoiser"], next(stream))["loss"].isfinite()


@pytest.mark.parametrize("name", ["ldm", "pixels", "gen"])
def test_figures_and_previews_are_there(project, name):
    (result,) = json.loads((project.root / f"metrics/{name}.json").read_text())["details"]
    (candidate,) = result["candidates"]
    for figure in ("frechet_distance", "kid", "precision", "recall", "memorised"):
        assert math.isfinite(candidate["figures"][figure]), figure
    assert ("level_error" in candidate["figures"]) == (project.medium == "series"), "the medium's own"
    assert ("contrast" in candidate["figures"]) == (name == "gen"), "the family's own"
    known = {one["name"]: one["figures"] for one in result["known"]}
    assert ("level_error" in known["noise"]) == (project.medium == "series"), "known sets have the medium's too"
    assert known["copy"]["memorised"] == 1 and known["noise"]["frechet_distance"] > 0
    png = (project.root / f"samples/{name}/0-grid.png").read_bytes()
    sheet = Image.open(io.BytesIO(png))
    num_rows = 2 if result["conditional"] else 10
    strips = medium(project.medium).strips(png, num_rows, SHAPES[project.medium])
    assert len(strips) == num_rows and all(Image.open(io.BytesIO(strip)).width == sheet.width for strip in strips)


def test_reconstruction_figures_leave_out_what_is_of_images_alone(project):
    result = json.loads((project.root / "metrics/vae.json").read_text())
    assert math.isfinite(result["psnr"]) and math.isfinite(result["reconstruction_fd"]) and "ssim" not in result


def test_files_hold_what_was_made(project, tmp_path):
    of, row = medium(project.medium), Dataset(project.root / "data/images/train").rows(torch.arange(1))[0]
    file_format = next(iter(of.formats))
    path = tmp_path / f"a.{file_format}"
    path.write_bytes(of.encode(row, file_format))
    stored = of.read(path, SHAPES[project.medium])
    assert stored.shape == SHAPES[project.medium]
    assert np.abs(stored.astype(int) - of.to_stored(row).numpy()).mean() < 8  # a GIF has 256 colours


def test_a_registered_sampler_answers_with_the_mediums_arrays(project, tmp_path):
    (tmp_path / SAMPLER).symlink_to(project.root / "runs/ldm")
    (tmp_path / CANDIDATE).write_text(json.dumps({"settings": SETTINGS}))
    made = RegisteredSampler(tmp_path).predict({"seed": [3, 4], "label": [0, 1]})
    of = medium(project.medium)
    assert made.dtype == of.dtype and made.shape == (2, *of.array_shape(SHAPES[project.medium]))


def test_what_measures_images_alone_refuses_it(project):
    images, of = Dataset(project.root / "data/images/train"), medium(project.medium)
    pretrained = Extractor("dinov2", "hash", None, embed=None, medium="image")
    with pytest.raises(DataError, match=f"train: holds {of.plural}; evaluate.extractor dinov2 takes images, expected "):
        Extractors(pretrained, None).refuse_unless_fits(images.folder, of, images.row_shape)
    for name in ("lpips", "clip_score"):
        with pytest.raises(ConfigError, match=f"evaluate.{name}: it measures images; expected '' for {of.plural}, "):
            measurement.open_perception(EvaluateConfig(**{name: "weights"}), images)


@pytest.mark.parametrize("family", ["vae", "judge", "dcgan", "latent_diffusion"])
def test_families_of_images_refuse_it_by_their_name(project, family):
    kind = family_class(family)
    with pytest.raises(SamplerError, match=f"^{family}: expected rows of channels, height and width, found "):
        kind(kind.Config(), data_info(read_manifest(project.root / "data/images/train")))
