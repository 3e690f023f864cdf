"""A registered sampler of texts, as MLflow calls it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from components.artifacts import run_folder
from components.artifacts.pyfunc import CANDIDATE, SAMPLER, RegisteredSampler
from components.artifacts.run_folder import Provenance
from components.data.media.image import MEDIUM
from components.errors import ConfigError, SamplerError
from components.sampling.requests import Conditions, Request
from components.training import ema
from components.training.loop import State
from tests.components.helpers import CAPTION_LENGTH, LATENTS, build

SETTINGS = {"num_inference_steps": 3, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("registered")
    data = LATENTS.model_copy(update={"caption_length": CAPTION_LENGTH})
    text = {"length": 16, "width": 8, "layers": 1, "heads": 2}
    family = build("latent_diffusion", 0, data, conditioning="text", text=text)
    average = ema.copy_of({"denoiser": family.nets["denoiser"]})
    provenance = Provenance(data="d", code="c", job="j", seed=0, step=1)
    run_folder.write(root / SAMPLER, "latent_diffusion", family, State(1, {}, {}, average), provenance)
    (root / CANDIDATE).write_text(json.dumps({"settings": SETTINGS}))
    return root


def test_prompts_are_a_column(folder):
    model = RegisteredSampler(folder)
    got = model.predict({"seed": [3, 3], "prompt": ["a cat", "a dog"]})
    sampler = run_folder.load(folder / SAMPLER).family
    request = Request(torch.tensor([3, 3]), sampler.Settings(**SETTINGS), Conditions(prompt=("a cat", "a dog")))
    assert np.array_equal(got, MEDIUM.to_stored(sampler.sample(request)).permute(0, 2, 3, 1).numpy())
    assert not np.array_equal(got[0], got[1])
    assert np.array_equal(model.predict({"seed": [3]})[0], model.predict({"seed": [3], "prompt": [""]})[0])
    with pytest.raises(SamplerError, match="at most 16 bytes"):
        model.predict({"seed": [3], "prompt": ["x" * 17]})


def test_a_setting_of_two_numbers_may_be_an_array(folder):
    model, rows = RegisteredSampler(folder), {"seed": [3], "prompt": ["a cat"]}
    nowhere = model.predict(rows, {"guidance_interval": np.array([2000.0, 3000.0])})
    assert np.array_equal(nowhere, model.predict(rows, {"guidance_scale": 1.0}))
    assert not np.array_equal(nowhere, model.predict(rows))


def test_a_param_that_is_no_setting_is_one_line_with_the_nearest(folder):
    with pytest.raises(ConfigError) as refused:
        RegisteredSampler(folder).predict({"seed": [3], "prompt": ["a cat"]}, {"guidance_scal": 2.0})
    assert "params.guidance_scal: unknown key" in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).endswith("the nearest is guidance_scale")
