"""The toy composite through the stages: trained on a run that `inputs` names, evaluated, promoted, and served from the
registry over HTTP. Ray alone stays out."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import openai
import pandas
import pytest
import torch
import yaml
from PIL import Image

from components.artifacts import run_folder
from components.data.media.image import MEDIUM
from components.errors import ConfigError
from components.sampling.requests import Conditions, Request
from infra.config import ServeConfig, TrackingConfig
from infra.tracking import shipped_model
from infra.tracking.registry import CHAMPION, Registry
from pipelines import evaluate, promote
from pipelines.support import code_closure
from pipelines.support.params import load
from pipelines.support.paths import ROOT
from tests import toys
from tests.infra.local import LocalBackend, client, free_port, serving
from tests.pipelines.in_process import train_stage
from tests.pipelines.measured import PARAMS

MODEL = "latent-foundry"
CANDIDATE = {"redraw": {"solver": "heun", "num_inference_steps": 2, "guidance_scale": 1.0}}


def params() -> dict:
    samplers = {
        "dcgan": PARAMS["samplers"]["dcgan"],
        "both": {
            "family": "toy_composite",
            "data": "data/images/train",
            "training": {"steps": 2, "batch_size": 4, "report_every": 1, "save_every": 2},
            "candidates": [CANDIDATE],
        },
    }
    inputs = {"both/draft": "runs/dcgan", "evaluate/judge": "runs/judge"}
    return {**PARAMS, "samplers": samplers, "encode": {}, "inputs": inputs}


@pytest.fixture(scope="module")
def project(measured_project, tmp_path_factory):
    """Trained, evaluated and promoted. The toys stay installed while the tests run."""
    root = tmp_path_factory.mktemp("composite") / "project"
    shutil.copytree(measured_project, root)
    with toys.installed(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(promote, "ROOT", root)
        patch.setattr(code_closure, "of_training", lambda family: [])  # a toy lies outside its packages
        shipped = shutil.copytree(ROOT / "components", tmp_path_factory.mktemp("shipped") / "components")
        shutil.copy(toys.HERE / "families/toy_composite.py", shipped / "families")
        patch.setattr(shipped_model, "_COMPONENTS", shipped)
        Path("params.yaml").write_text(yaml.safe_dump(params(), sort_keys=False))
        train_stage(load(), "samplers.both")
        evaluate.main(["samplers.both"])
        path = root / "metrics/dcgan.json"
        content = json.loads(path.read_text())
        (candidate,) = content["details"][0]["candidates"]
        candidate["figures"]["frechet_distance"] = 1e9  # so that the other one wins
        path.write_text(json.dumps(content))
        promote.main([])
        yield root


@pytest.fixture(scope="module")
def sampler(project):
    return run_folder.load(project / "runs/both").family


def own(sampler, seed: int, label: int, **redraw) -> np.ndarray:
    settings = sampler.Settings(redraw=CANDIDATE["redraw"] | redraw)
    made = sampler.sample(Request(torch.tensor([seed]), settings, Conditions(label=torch.tensor([label]))))
    return MEDIUM.to_stored(made)[0, 0].numpy()


def test_the_input_is_a_part_and_stays_as_it_was_trained(project):
    (kept, given) = (project / f"runs/{name}.safetensors" for name in ("both/draft_generator", "dcgan/generator"))
    assert kept.read_bytes() == given.read_bytes()
    config = run_folder.read_config(project / "runs/both")
    assert config.data.inputs["draft"].family == "dcgan"


def test_without_its_input_it_is_refused(project, tmp_path):
    content = params()
    del content["inputs"]["both/draft"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="inputs: expected both/draft: runs/"):
        load(tmp_path / "params.yaml")


def test_it_is_measured(project):
    (details,) = json.loads((project / "metrics/both.json").read_text())["details"]
    (candidate,) = details["candidates"]
    assert candidate["settings"]["redraw"]["solver"] == "heun"
    assert candidate["figures"]["network_evaluations"] > 2 and candidate["figures"]["frechet_distance"] > 0
    assert (project / "samples/both/0-grid.png").is_file()


def test_it_reigns_in_the_registry_and_loads_from_there(project, sampler):
    assert json.loads((project / "promoted.json").read_text())["sampler"] == "both"
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@{CHAMPION}")
    rows = pandas.DataFrame({"seed": [3], "label": [2]})
    assert np.array_equal(model.predict(rows)[0, :, :, 0], own(sampler, 3, 2))
    more = model.predict(rows, params={"redraw.num_inference_steps": 5})
    assert np.array_equal(more[0, :, :, 0], own(sampler, 3, 2, num_inference_steps=5))


def test_it_is_served(project, sampler, tmp_path):
    registry = Registry(TrackingConfig(), project, MODEL)
    folder = registry.fetch(registry.champion(), tmp_path / "champion") / "sampler"
    config = ServeConfig(port=free_port(), threads=1, max_steps=20)
    backend = LocalBackend(folder, config, settings=CANDIDATE)
    with serving(backend, config) as address:

        def ask(prompt: str, **more) -> np.ndarray:
            made = client(address).images.generate(prompt=prompt, extra_body={"seed": 3, **more}).data[0]
            return np.asarray(Image.open(io.BytesIO(base64.b64decode(made.b64_json)))).astype(int)

        assert np.abs(ask("two") - own(sampler, 3, 2)).max() <= 1
        steps = {"num_inference_steps": 5}
        assert np.abs(ask("two", redraw=steps) - own(sampler, 3, 2, **steps)).max() <= 1, "the rest as promoted"
        with pytest.raises(openai.BadRequestError, match="num_inference_steps: at most 20, found 21"):
            ask("two", redraw={"num_inference_steps": 21})
        with pytest.raises(openai.BadRequestError, match="autoguidance needs a worse net"):
            ask("two", redraw={"guidance": "autoguidance"})
    backend.engine.stop(timeout=5)
