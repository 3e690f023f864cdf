"""The way from one image to another, asked over HTTP."""

from __future__ import annotations

import base64
import io
import json

import openai
import pytest
import torch
from PIL import Image

from components.data.media.image import MEDIUM
from components.sampling.requests import Blend, Conditions, Request
from infra.serving.file_notes import SETTINGS
from tests.infra.local import client


def images(address: str, prompt: str = "one", n: int = 1, **more) -> list[bytes]:
    """Without notes, so that equal images are equal bytes."""
    extra = {"metadata": False, **more}
    answer = client(address).images.generate(prompt=prompt, n=n, extra_body=extra)
    return [base64.b64decode(item.b64_json) for item in answer.data]


def test_without_a_share_the_images_are_steps_of_one_way(run, backend):
    address = run()
    way = images(address, n=3, seed=7, blend={"seed": 8, "prompt": "two"})
    assert way[0] == images(address, seed=7)[0], "it begins with the request's own image"
    assert way[2] == images(address, "two", seed=8)[0], "and ends with the other"
    assert len({*way}) == 3
    assert images(address, seed=7, blend={"seed": 8, "prompt": "two"}) == way[1:2], "one image is the middle"


def test_a_share_holds_for_each_seed(run, backend):
    address = run()
    one, other = images(address, n=2, seed=7, blend={"seed": 20, "share": 0.25})
    assert images(address, seed=8, blend={"seed": 21, "share": 0.25}) == [other] != [one]


def test_as_the_sampler_blends_by_itself(run, backend):
    data = images(run(), seed=7, blend={"prompt": "two", "share": 0.5})[0]
    family = backend.family
    blend = Blend(None, torch.tensor([0.5]), label=torch.tensor([2]))
    settings = family.Settings(**backend.orders[-1].settings)
    request = Request(torch.tensor([7]), settings, Conditions(label=torch.tensor([1])), blend)
    assert MEDIUM.encode(family.sample(request)[0], "png") == data


def test_a_file_tells_its_way(run, backend):
    extra = {"seed": 7, "blend": {"seed": 8, "prompt": "two", "share": 0.5}}
    answer = client(run()).images.generate(prompt="one", extra_body=extra)
    text = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).text
    assert "Blend: 0.5 of the way to seed 8 and prompt two" in text["parameters"]
    assert json.loads(text[SETTINGS])["blend"] == {"share": 0.5, "seed": 8, "label": 2}


@pytest.mark.parametrize(
    ("blend", "param"),
    [
        ({}, "blend"),
        ({"share": 0.5}, "blend"),
        ({"seed": -1}, "blend.seed"),
        ({"seed": 1, "share": 1.5}, "blend.share"),
        ({"sed": 1}, "blend.sed"),
        ({"prompt": "cat"}, "blend.prompt"),
        (7, "blend"),
    ],
)
def test_refusals(run, backend, blend, param):
    with pytest.raises(openai.BadRequestError) as refused:
        images(run(), blend=blend)
    assert refused.value.body["param"] == param and not backend.orders


def test_a_sampler_without_ways_says_so(run, backend):
    model = backend.models[0]
    accepts = tuple(name for name in model.accepts if name != "blend")
    backend.models = (model.model_copy(update={"accepts": accepts}),)
    with pytest.raises(openai.BadRequestError, match="knows no way between two images"):
        images(run(), blend={"seed": 8})
