"""What a teacher sees of the images, beside their latents: from images to a training that asks neither it nor the
decoder."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from components.artifacts import run_folder
from components.data.dataset import Dataset, batches
from components.diffusion import alignment
from components.diffusion.alignment import misalignment, on_grid
from components.errors import ConfigError, SamplerError
from pipelines import encode
from pipelines.support import paths
from pipelines.support.params import load
from pipelines.train import make_job
from tests.pipelines.in_process import encoded
from tests.pipelines.measured import PARAMS, write_images, write_run

LATENTS = Path("data/latents")
DIT = {"name": "dit", "width": 16, "depth": 2, "heads": 2, "context_dim": 8, "patch": 2}
MODEL = {"backbone": DIT, "align": {"layer": 1}, "flips": True}
INPUTS = {**PARAMS["inputs"], "latents/teacher": "runs/judge", "ldm/teacher": "runs/judge"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Images, an untrained autoencoder and judge; Ray's part is done in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encode, "session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(encode.encoding, "encode", encoded)
    for folder in (paths.TRAIN_IMAGES, paths.TEST_IMAGES):
        write_images(folder, 20, 1)
    write_run(paths.RUNS / "vae", "vae")
    write_run(paths.RUNS / "judge", "judge")
    return tmp_path


def asked(finest_patch: int = 1, patch: int = 2, **changes) -> None:
    """params.yaml with an aligned sampler; `changes` of inputs."""
    sampler = {**PARAMS["samplers"]["ldm"], "model": {**MODEL, "backbone": {**DIT, "patch": patch}}}
    content = {**PARAMS, "encode": {"latents": {"flips": True, "finest_patch": finest_patch}}}
    content |= {"samplers": {"ldm": sampler}, "inputs": {**INPUTS, **changes}}
    Path("params.yaml").write_text(yaml.safe_dump(content))


def test_from_images_to_a_training_that_asks_neither_teacher_nor_decoder(project, monkeypatch):
    asked()
    encode.main([])
    latents, images = Dataset(LATENTS), Dataset(paths.TRAIN_IMAGES).rows(np.arange(20))
    stored, net = latents.take(np.arange(20)), run_folder.load(paths.RUNS / "judge").family.nets["classifier"]
    for ending, seen in (("", images), ("_flipped", images.flip(-1))):
        with torch.inference_mode():
            maps = net.maps(seen)[1:]
        found = [stored[f"teacher_map_{number}{ending}"] for number in range(2)]
        assert [one.dtype for one in found] == [torch.float16] * 2
        torch.testing.assert_close([one.float() for one in found], list(maps), rtol=2e-3, atol=2e-3)

    family = make_job(load(), "samplers.ldm").build()
    batch = next(batches(latents, 12))
    assert 0 < batch.mirrored.sum() < 12
    teacher, decoder = family.received["teacher"].nets["classifier"], family.nets["autoencoder"]
    live, wanted = family._seen(family.space.clean(batch, True)), []
    with monkeypatch.context() as patch:
        patch.setattr(type(teacher), "maps", lambda *_: pytest.fail("the teacher ran in training"))
        patch.setattr(type(decoder), "decode", lambda *_: pytest.fail("the decoder ran in training"))
        patch.setattr(alignment, "misalignment", lambda *both: wanted.append(both[1]) or misalignment(*both))
        assert family.loss(family.nets["denoiser"], batch)["alignment"] > 0
    ends = ["_flipped" if mirrored else "" for mirrored in batch.mirrored]
    own = [
        torch.stack([batch.columns[f"teacher_map_{number}{end}"][row].float() for row, end in enumerate(ends)])
        for number in range(2)
    ]
    assert torch.equal(wanted[0], on_grid(own, (4, 4))) and wanted[0].shape == on_grid(live, (4, 4)).shape


def test_maps_are_kept_no_finer_than_asked_and_finer_tokens_are_refused(project):
    asked(finest_patch=2)
    encode.main([])
    columns = Dataset(LATENTS).manifest.columns
    assert [columns[f"teacher_map_{number}"].shape[1:] for number in range(2)] == [(4, 4), (4, 4)]
    make_job(load(), "samplers.ldm")
    asked(finest_patch=2, patch=1)
    with pytest.raises(
        ConfigError, match=r"align: the teacher's maps lie .* at 4x4, coarser than 8x8 tokens; expected"
    ):
        make_job(load(), "samplers.ldm")


def test_a_teacher_that_is_not_the_one_of_the_data_is_refused(project):
    asked()
    encode.main([])
    make_job(load(), "samplers.ldm")
    asked(**{"ldm/teacher": "runs/other"})
    with pytest.raises(ConfigError, match=r"inputs: ldm/teacher: runs/other: expected runs/judge, as latents/teacher"):
        load()
    shutil.copytree(paths.RUNS / "judge", paths.RUNS / "other")
    weights = paths.RUNS / "judge/classifier.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    asked()
    with pytest.raises(SamplerError, match=r"^inputs: ldm/teacher: runs/judge: expected the run whose features data/l"):
        make_job(load(), "samplers.ldm")
    asked(**{"ldm/teacher": "runs/other", "latents/teacher": "runs/other"})
    make_job(load(), "samplers.ldm")


def test_a_teacher_of_other_images_is_refused_before_anything_is_written(project):
    asked()
    config = paths.RUNS / "judge/config.json"
    content = json.loads(config.read_text())
    content["data"]["shape"] = [1, 8, 8]
    config.write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match=r"^inputs: latents/teacher: runs/judge: expected .* \(?1.*found one on image"
    ):
        encode.main([])
    assert not LATENTS.exists()
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["encode"]["latents"] = {"tokens": {}}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="inputs: latents/teacher: expected a role of autoencoder"):
        load()
