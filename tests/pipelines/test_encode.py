"""Captions that a pretrained encoder embeds once, beside the latents: from images to a sampler that needs no more."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("transformers")

from components.artifacts import run_folder
from components.artifacts.run_folder import Provenance
from components.conditioning.text import texts_of_column
from components.data.dataset import Dataset, batches, write_manifest, write_shards
from components.errors import ConfigError, DataError, SamplerError
from components.interchange.text_encoders import read
from components.nets.text_encoders import FrozenText
from components.sampling.requests import Conditions, Request
from components.training.loop import fit
from pipelines import encode
from pipelines.support import paths
from pipelines.support.params import load
from pipelines.train import make_job
from tests.components.helpers import CAPTION_LENGTH, CAPTIONS, no_wrap
from tests.components.interchange import folders
from tests.pipelines.in_process import encoded
from tests.pipelines.measured import PARAMS, write_run

LATENTS = Path("data/latents")
MODEL = {
    "conditioning": "text",
    "text": {"encoder": "pretrained"},
    "backbone": {"widths": [8, 8], "heads": 2, "context_dim": 8},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Images with captions in two shards, an untrained autoencoder, and a tiny T5 outside the project; Ray's part is
    done in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encode, "session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(encode.encoding, "encode", encoded)
    folders.t5(tmp_path / "elsewhere/t5")
    content = {**PARAMS, "encode": {"latents": {"batch_size": 3, "text": {"encoder": "elsewhere/t5", "length": 10}}}}
    training = {"steps": 2, "batch_size": 4, "report_every": 1, "save_every": 2}
    content["samplers"] = {"ldm": {**PARAMS["samplers"]["ldm"], "model": MODEL, "training": training}}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    write_images(CAPTIONS)
    write_images(CAPTIONS, paths.TEST_IMAGES)
    write_run(paths.RUNS / "vae", "vae")
    return tmp_path


def write_images(captions: tuple[str, ...] | None, folder: Path = paths.TRAIN_IMAGES) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 1, 16, 16), dtype=np.uint8)
    rows = [{"image": image, "label": np.asarray(number % 2)} for number, image in enumerate(pixels)]
    for row, caption in zip(rows, (captions or ()) * 3, strict=False):
        row["caption"] = np.frombuffer(caption.encode().ljust(CAPTION_LENGTH, b"\0"), np.uint8)
    shards = write_shards(folder, rows, 6)
    write_manifest(folder, shards, value_range=(0, 255), classes=("a", "b"))


def test_from_captions_to_a_sampler_that_needs_no_other_folder(project, monkeypatch):
    encode.main([])
    latents = Dataset(LATENTS)
    assert latents.manifest.columns["text"].model_dump() == {"shape": (10, 16), "dtype": "float16"}
    rows, net = latents.take(np.arange(10)), read("elsewhere/t5", 10, "here")
    captions = texts_of_column(rows["caption"])
    assert captions == (CAPTIONS * 3)[:10]
    torch.testing.assert_close(rows["text"].float(), net.encoded(captions).context, rtol=2e-3, atol=2e-3)

    shutil.rmtree("elsewhere")
    job = make_job(load(), "samplers.ldm")
    family = job.build()
    stream = batches(latents, job.training.batch_size, seed=job.seed)
    functions = {"wrap": no_wrap, "report": lambda step, figures: figures, "save": lambda state: None}
    with monkeypatch.context() as patch:
        patch.setattr(FrozenText, "forward", lambda self, **tokens: pytest.fail("the encoder ran in training"))
        state = fit(family, stream, job.training, start=None, **functions)
    run_folder.write(
        paths.RUNS / "ldm", job.family, family, state, Provenance(data="d", code="c", job="j", seed=0, step=2)
    )
    shutil.rmtree(LATENTS)

    sampler = run_folder.load(paths.RUNS / "ldm").family
    settings = sampler.Settings(num_inference_steps=2)
    wanted, unwanted = ("a red cat", "a red cat", "a dog"), ("", "two birds", "")
    images = sampler.sample(
        Request(torch.tensor([1, 1, 1]), settings, Conditions(prompt=wanted, negative_prompt=unwanted))
    )
    assert (images[0] - images[1]).abs().max() > 1e-4 and (images[0] - images[2]).abs().max() > 1e-4


def test_what_cannot_be_embedded_is_refused_before_anything_is_written(project):
    write_images(None)
    with pytest.raises(DataError, match=r"data/images/train: no captions; encode\.text needs some to embed"):
        encode.main([])
    write_images(CAPTIONS)
    (project / "elsewhere/t5/pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(SamplerError, match="may be a pickle"):
        encode.main([])
    assert not LATENTS.exists()


def test_tokens_need_a_codebook_and_use_of_it(project):
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["encode"] = {"latents": {"batch_size": 3, "tokens": {"least_usage": 0.9}}}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"encode\.latents\.tokens: expected an autoencoder with model\.codebook"):
        encode.main([])
    with pytest.raises(DataError, match=r"least_usage: 6 of 12 codes occur; expected 90% of them"):
        encode.refuse_unused({"usage": (0.5,), "vocabulary": (12.0,)}, 0.9, "latents")
    encode.refuse_unused({"usage": (0.5,), "vocabulary": (12.0,)}, 0.5, "latents")
    assert not LATENTS.exists()


def test_a_run_without_an_autoencoder_is_refused_in_one_line(project):
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["inputs"]["latents/autoencoder"] = "runs/plain"
    Path("params.yaml").write_text(yaml.safe_dump(content))
    write_run(paths.RUNS / "plain", "dcgan")
    with pytest.raises(SamplerError, match="^inputs: latents/autoencoder: runs/plain: expected a run that holds an "):
        encode.main([])
    assert not LATENTS.exists()
