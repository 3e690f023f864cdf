"""metrics/<autoencoder>.json: how near held-out images come back, and that the report shows it."""

import json
import shutil

import pytest
import torch
import yaml

from components.artifacts import run_folder
from components.data.dataset import Dataset
from components.data.media.image import MEDIUM
from components.errors import ConfigError, InputError
from components.families.vae import Model as VAE
from components.metrics.frechet import Moments, frechet_distance
from pipelines import reconstruct
from tests.pipelines.measured import PARAMS, write_images


@pytest.fixture
def project(described_project, tmp_path, monkeypatch):
    root = tmp_path / "project"
    shutil.copytree(described_project, root)
    monkeypatch.chdir(root)
    return root


def test_figures_are_those_of_the_whole_split_whatever_the_batches(project, capsys):
    reconstruct.main(["autoencoders.vae"])
    found = json.loads((project / "metrics/vae.json").read_text())
    (details,) = found["details"]
    images = MEDIUM.to_floats(Dataset(project / "data/images/test").take(torch.arange(30))["image"])
    with torch.no_grad():
        others = run_folder.load(project / "runs/vae").family.reconstruct(images)
        judge = run_folder.load(project / "runs/judge").family.nets["classifier"]
        features = [Moments.of(judge.features(of)) for of in (others, images)]
    psnr = (10 * torch.log10(4 / (others - images).square().mean((1, 2, 3)))).mean()
    assert found["psnr"] == pytest.approx(float(psnr), rel=1e-4)
    assert found["reconstruction_fd"] == pytest.approx(frechet_distance(*features), rel=1e-4)
    assert found["reconstruction_fd"] > 1e-3 and -1 <= found["ssim"] < 0.9  # untrained, so far from the images
    assert details["num_images"] == 30 and details["extractor"] == "judge" and len(details["extractor_hash"]) == 64
    assert [one["better"] for one in details["definitions"]] == ["higher", "higher", "lower"]
    assert "autoencoders.vae: psnr" in capsys.readouterr().out


def test_what_comes_back_unchanged_has_no_distance(project, monkeypatch):
    monkeypatch.setattr(VAE, "reconstruct", lambda self, images: images)
    reconstruct.main(["autoencoders.vae"])
    found = json.loads((project / "metrics/vae.json").read_text())
    assert "psnr" not in found, "infinite, which JSON cannot say"
    assert found["ssim"] == pytest.approx(1) and found["reconstruction_fd"] == pytest.approx(0, abs=1e-6)


def test_what_is_no_autoencoder_is_refused(project):
    with pytest.raises(ConfigError, match=r"no autoencoder 'samplers.ldm' in params.yaml; expected one of autoenc"):
        reconstruct.main(["samplers.ldm"])
    (project / "params.yaml").write_text(
        yaml.safe_dump({**PARAMS, "autoencoders": {"dcgan": PARAMS["samplers"]["dcgan"]}, "samplers": {}})
    )
    with pytest.raises(InputError, match="runs/dcgan: expected a trained autoencoder.*found a dcgan"):
        reconstruct.main(["autoencoders.dcgan"])
    shutil.rmtree(project / "data/images/test")
    write_images(project / "data/images/test", 5, 2, 8)
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    with pytest.raises(InputError, match=r"data/images/test: images of shape \(1, 8, 8\)"):
        reconstruct.main(["autoencoders.vae"])
    assert not (project / "metrics/vae.json").exists()
