"""Images of another height than width, from prepare to serving."""

from __future__ import annotations

import base64
import io
import json

import openai
import pytest
import torch
import yaml
from PIL import Image

from components.artifacts import run_folder
from components.data.dataset import Dataset, read_manifest
from components.data.info import data_info
from components.errors import SamplerError
from components.families import family_class
from components.sampling.requests import Conditions, Request, Source
from infra.config import ServeConfig
from pipelines import evaluate, prepare, reconstruct, reference
from pipelines.support.report_pictures import autoencoder_pictures, champion_film
from tests.components.helpers import one_exact_thread
from tests.infra.local import LocalBackend, ask, client, free_port, serving
from tests.pipelines.in_process import encode, train

SHAPE = (1, 16, 24)
UNET = {"widths": [8, 16], "heads": 2, "context_dim": 8}
MODELS = {  # family, model
    "vae": ("vae", {"latent_channels": 2, "widths": [4, 8], "equivariance": {"share": 1.0}}),
    "judge": ("judge", {"width": 4, "feature_dim": 6}),
    "ldm": ("latent_diffusion", {"backbone": UNET, "flips": True}),
    "pixels": ("latent_diffusion", {"backbone": UNET, "flips": True}),
}
CANDIDATE = {"num_inference_steps": 2}


def params() -> dict:
    images, block = "data/images/train", {"training": {"steps": 4, "batch_size": 8}}
    blocks = {name: {"family": family, "model": model, **block} for name, (family, model) in MODELS.items()}
    return {
        "seed": 0,
        "data": {"source": "digits", "path": "data/raw", "image_size": list(SHAPE[1:])},
        "autoencoders": {"vae": {**blocks["vae"], "data": images}},
        "judges": {"judge": {**blocks["judge"], "data": images}},
        "samplers": {
            "ldm": {**blocks["ldm"], "data": "data/latents", "candidates": [CANDIDATE]},
            "pixels": {**blocks["pixels"], "data": images, "candidates": [CANDIDATE]},
        },
        "encode": {"latents": {"flips": True}},
        "inputs": {"latents/autoencoder": "runs/vae", "evaluate/judge": "runs/judge"},
        "evaluate": {"num_samples": 12, "batch_size": 12, "neighbours": 3, "resamples": 20, "real_draws": 2},
        "promote": {},
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Digits of 16x24, models of four steps, all measured."""
    root = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patch, one_exact_thread():
        patch.chdir(root)
        (root / "params.yaml").write_text(yaml.safe_dump(params(), sort_keys=False))
        prepare.main([])
        images = root / "data/images/train"
        info = data_info(read_manifest(images))
        for name in ("vae", "judge", "pixels"):
            train(root, name, *MODELS[name], info, images)
        train(root, "ldm", *MODELS["ldm"], encode(root, flips=True), root / "data/latents")
        reference.main([])
        for sampler in ("ldm", "pixels"):
            evaluate.main([f"samplers.{sampler}"])
        reconstruct.main(["autoencoders.vae"])
        yield root


def test_a_digit_is_cropped_to_the_aspect(project):
    dataset = Dataset(project / "data/images/test")
    assert dataset.row_shape == SHAPE
    images = dataset.rows(torch.arange(200))
    assert (images > 0).any(dim=3).float().mean() > 0.5, "strokes on most lines"


@pytest.mark.parametrize("name", ["ldm", "pixels"])
def test_it_is_measured_and_shown(project, name):
    result = json.loads((project / f"metrics/{name}.json").read_text())
    assert result["frechet_distance"] > 0
    with Image.open(project / f"samples/{name}/0-grid.png") as sheet:  # ten classes of ten, each pixel two wide
        assert sheet.size == ((10 * 25 - 1) * 2, (10 * 17 - 1) * 2)
    assert json.loads((project / "metrics/vae.json").read_text())["ssim"] is not None


def test_the_report_shows_it(project):
    shown = autoencoder_pictures("vae", Dataset(project / "data/images/test"))
    sheet = Image.open(io.BytesIO(base64.b64decode(shown["reconstructions"].partition(",")[2])))
    assert sheet.size == (10 * 25 - 1, 2 * 17 - 1)
    champion = run_folder.load(project / "runs/ldm").family
    assert champion_film(champion, {"num_inference_steps": 3})["progress"][-1] == 1


def test_an_edit_keeps_what_the_mask_leaves(project):
    sampler = run_folder.load(project / "runs/ldm").family
    given = Dataset(project / "data/images/test").rows(torch.arange(2))
    mask = torch.zeros(2, 1, *SHAPE[1:])
    mask[..., :8] = 1
    settings = sampler.Settings(num_inference_steps=2)
    made = sampler.sample(
        Request(torch.arange(2), settings, Conditions(torch.arange(2), source=Source(given, 0.8, mask)))
    )
    assert made.shape == given.shape and torch.allclose(made[..., 8:], given[..., 8:])


def test_it_is_served_and_edited(project):
    config = ServeConfig(port=free_port())
    with serving(LocalBackend(project / "runs/ldm", config), config) as address:
        assert {model["size"] for model in json.loads(ask(address)[2])["data"]} == {"24x16"}
        images = client(address).images
        made = images.generate(prompt="seven", size="24x16", extra_body=CANDIDATE).data[0]
        picture = Image.open(io.BytesIO(base64.b64decode(made.b64_json)))
        assert picture.size == (24, 16)
        with pytest.raises(openai.BadRequestError, match="expected '24x16' or 'auto'"):
            images.generate(prompt="seven", size="16x24", extra_body=CANDIDATE)
        photograph = io.BytesIO()
        Image.new("RGB", (60, 50), "red").save(photograph, "PNG")
        edited = images.edit(image=("a.png", photograph.getvalue()), prompt="two", extra_body=CANDIDATE).data[0]
        assert Image.open(io.BytesIO(base64.b64decode(edited.b64_json))).size == (24, 16)


@pytest.mark.parametrize("family", ["dcgan", "wgan_gp", "stylegan2", "biggan"])
def test_families_that_double_squares_refuse_by_their_name(project, family):
    kind = family_class(family)
    with pytest.raises(SamplerError, match=f"^{family}: expected square images, found 16x24"):
        kind(kind.Config(), data_info(read_manifest(project / "data/images/train")))


@pytest.mark.parametrize("family", ["vae", "latent_diffusion"])
def test_sides_that_do_not_halve_are_refused_by_name(project, family):
    kind, info = family_class(family), data_info(read_manifest(project / "data/images/train"))
    with pytest.raises(
        SamplerError, match=f"^{family}: expected a height and width that are multiples of 2, found 16x"
    ):
        kind(kind.Config(), info.model_copy(update={"shape": (1, 16, 25)}))
