"""What a late stage reads and nothing makes is told before the first training."""

import importlib.util
import json

import pytest
import yaml

from components.errors import ConfigError
from pipelines import repro, train
from pipelines.support import params as params_module
from pipelines.support import readiness
from pipelines.support.params import load
from tests.pipelines.measured import PARAMS


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def libraries(monkeypatch):
    """Which are installed; none is imported to see."""
    there = {"torch_fidelity", "torchvision", "transformers"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    return there


def refuse(evaluate: dict | None = None, **blocks) -> None:
    evaluate = PARAMS["evaluate"] | (evaluate or {})
    with open("params.yaml", "w") as file:
        yaml.safe_dump(PARAMS | blocks | {"evaluate": evaluate}, file)
    readiness.refuse_unready(load())


def test_weights_of_extractors_are_looked_for(here, libraries):
    refuse()
    inception = {"extractor": {"name": "inception", "weights": "inception.pth"}}
    with pytest.raises(ConfigError, match=r"^evaluate\.extractor\.weights: inception\.pth: no such file; expected"):
        refuse(inception)
    (here / "inception.pth").touch()
    refuse(inception)
    libraries.remove("torch_fidelity")
    with pytest.raises(ConfigError, match="^evaluate: torch_fidelity is not installed; install the extra `metrics`$"):
        refuse(inception)
    with pytest.raises(ConfigError, match=r"^evaluate\.lpips: alexnet\.pth: no such file"):
        refuse({"lpips": "alexnet.pth"})


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("", "no path given; expected a folder or hub name"),
        ("/nowhere/dinov2", "/nowhere/dinov2: no such folder, and no hub name"),
        ("nobody/dinov2", "nobody/dinov2: no such folder, nor the hub's copy, and it is off"),
        ("empty", r"empty: no config\.json in it"),
    ],
)
def test_folders_of_extractors_are_looked_for(here, libraries, weights, told):
    (here / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"^evaluate\.extractor\.weights: .*{told}"):
        refuse({"extractor": {"name": "dinov2", "weights": weights}})
    (here / "empty/config.json").write_text(json.dumps({}))
    (here / "empty/model.safetensors").touch()
    refuse({"extractor": {"name": "dinov2", "weights": "empty"}})


def test_a_clip_of_ones_own_needs_no_weights(libraries):
    clip = {"family": "clip", "data": "data/images/train", "training": {"steps": 1, "batch_size": 4}}
    judges = PARAMS["judges"] | {"clip": clip}
    with pytest.raises(ConfigError, match=r"evaluate\.extractor\.weights: no path given"):
        refuse({"extractor": {"name": "clip"}}, judges=judges)
    refuse({"extractor": {"name": "clip"}}, judges=judges, inputs=PARAMS["inputs"] | {"evaluate/clip": "runs/clip"})


def test_inputs_and_data_that_nothing_makes_are_named(here, libraries):
    with pytest.raises(ConfigError, match=r"^params\.yaml\.inputs: dcgan/judge: runs/other: missing, and no block"):
        refuse(inputs=PARAMS["inputs"] | {"dcgan/judge": "runs/other"})
    ldm = PARAMS["samplers"]["ldm"] | {"data": "data/latentz"}
    with pytest.raises(ConfigError, match=r"^params\.yaml\.samplers\.ldm\.data: data/latentz: no data set, and no"):
        refuse(samplers={"ldm": ldm})
    with pytest.raises(ConfigError, match=r"expected evaluate/judge: .* which evaluate\.extractor judge needs"):
        refuse(inputs={"latents/autoencoder": "runs/vae"})
    latents = {"text": {"encoder": "/nowhere/t5"}}
    with pytest.raises(ConfigError, match=r"^encode\.latents\.text\.encoder: /nowhere/t5: no such folder"):
        refuse(encode={"latents": latents})


def test_all_stages_and_a_training_among_them_look_first(monkeypatch):
    class Unready(Exception):
        pass

    def unready(asked):
        raise Unready

    monkeypatch.setattr(readiness, "refuse_unready", unready)
    monkeypatch.setattr(train, "refuse_unready", unready)
    monkeypatch.setattr(repro.subprocess, "call", lambda command, **named: 1)
    (load_from := params_module.DEFAULT).write_text(yaml.safe_dump(PARAMS))
    assert load(load_from).samplers
    with pytest.raises(Unready):
        repro.main([])
    monkeypatch.setenv("DVC_STAGE", "judge@judge")
    with pytest.raises(Unready):
        train.main(["judges.judge"])
