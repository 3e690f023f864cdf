"""What composite systems are asked over HTTP: sizes of their stages, settings of their parts."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from components.artifacts import run_folder
from components.data.media.image import MEDIUM
from components.sampling.requests import Conditions, Request
from components.training.loop import State
from infra.config import ServeConfig
from tests.components.families.contract import PROVENANCE, fast
from tests.components.helpers import build
from tests.infra.local import LocalBackend, ask, client, free_port, serving


def write(folder, name: str, **changes):
    """A run folder of a tiny family that draws something, whatever it has learnt."""
    with torch.random.fork_rng():
        family = build(name, **changes)
        torch.manual_seed(0)
        for net in family.kept:
            for parameter in family.nets[net].parameters():
                torch.nn.init.normal_(parameter, std=0.1)
    average = {net: family.nets[net].state_dict() for net in family.kept if net not in family.pretrained}
    run_folder.write(folder, name, family, State(1, {}, {}, average), PROVENANCE)
    return run_folder.load(folder).family


@pytest.fixture
def served(request, tmp_path):
    name = request.param
    sampler = write(tmp_path / name, name)
    config = ServeConfig(port=free_port(), threads=1, max_steps=20)
    backend = LocalBackend(tmp_path / name, config, settings=fast(name))
    with serving(backend, config) as address:
        yield sampler, address
    backend.engine.stop(timeout=5)


def pixels(answer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))).astype(int)


@pytest.mark.parametrize("served", ["cascade"], indirect=True)
def test_a_cascade_makes_the_size_of_any_stage(served):
    sampler, address = served

    def made(size: str, **more) -> np.ndarray:
        extra = {"seed": 3, **more}
        return pixels(client(address).images.generate(prompt="two", size=size, extra_body=extra))

    def own(sides: tuple[int, int], **up1) -> np.ndarray:
        settings = fast("cascade")
        chosen = sampler.Settings(**{**settings, "up1": settings["up1"] | up1})
        conditions = Conditions(label=torch.tensor([2]), size=torch.tensor([sides]))
        return MEDIUM.to_stored(sampler.sample(Request(torch.tensor([3]), chosen, conditions)))[0, 0].numpy()

    assert np.abs(made("8x8") - own((8, 8))).max() <= 1
    whole = made("16x16")
    assert np.abs(whole - own((16, 16))).max() <= 1 and np.array_equal(made("auto"), whole)
    noisier = made("16x16", up1={"augmentation": 0.9})
    assert np.abs(noisier - own((16, 16), augmentation=0.9)).max() <= 1 and not np.array_equal(noisier, whole)
    with pytest.raises(openai.BadRequestError, match="size: expected '16x16', '8x8' or 'auto', found '9x9'"):
        made("9x9")
    with pytest.raises(openai.BadRequestError, match="up3: this cascade has no such stage"):
        made("16x16", up3={"augmentation": 0.1})
    with pytest.raises(openai.BadRequestError) as refused:
        made("16x16", up1={"num_inference_steps": 18})
    told = "at most 20 in all, found 21, the sum of 3 (base.num_inference_steps), 18 (up1.num_inference_steps)"
    assert refused.value.body["message"] == f"up1.num_inference_steps: {told}"
    assert refused.value.body["param"] == "up1.num_inference_steps"
    with pytest.raises(openai.BadRequestError) as refused:
        made("16x16", up1={"guidance_interval": [5, 0.2]})
    assert refused.value.body["param"] == "up1.guidance_interval"
    assert refused.value.body["message"].endswith("expected 0 <= first < second, found [5.0, 0.2]")
    answer = client(address).images.generate(prompt="two", extra_body={"num_inference_steps": 2, "sampler": "heun"})
    assert answer.ignored == ["num_inference_steps", "sampler"], "a composite's parts have them"
    told = json.loads(ask(address, "/v1/models/latent-foundry")[2])["x-sampler"]
    assert told["own_sizes"] == ["16x16", "8x8"] and "size" in told["accepts"]
    assert told["settings"]["up1.num_inference_steps"] == 2
    assert {"base.solver", "up1.augmentation"} < told["settings_schema"].keys()
    assert not any(name.startswith("up2.") for name in told["settings_schema"])


@pytest.mark.parametrize("served", ["sdxl"], indirect=True)
def test_sdxl_is_asked_for_sizes_and_crops(served):
    sampler, address = served

    def made(size: str = "auto", **more) -> np.ndarray:
        extra = {"seed": 3, **more}
        return pixels(client(address).images.generate(prompt="a dog", size=size, extra_body=extra))

    def own(size: tuple[int, int] | None = None, **more) -> np.ndarray:
        settings = sampler.Settings(**fast("sdxl"), **more)
        conditions = Conditions(prompt=("a dog",), size=None if size is None else torch.tensor([size]))
        return MEDIUM.to_stored(sampler.sample(Request(torch.tensor([3]), settings, conditions)))[0, 0].numpy()

    told = {"original_size": [40, 30], "crops_coords_top_left": [4, 0], "negative_original_size": [8, 8]}
    asked = made(**told, refiner_start=1.0)
    assert np.abs(asked - own(**told, refiner_start=1.0)).max() <= 1
    assert not np.array_equal(asked, made()) and np.abs(made() - own()).max() <= 1
    assert np.abs(made("16x8") - own((8, 16))).max() <= 1
    with pytest.raises(openai.BadRequestError, match="refiner_start: the refiner knows the last 0.4 of the way alone"):
        made(refiner_start=0.1)
    for name, value, least in (
        ("original_size", [0, 0], 1),
        ("negative_original_size", [100_000, 1], 1),
        ("crops_coords_top_left", [-1, 0], 0),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            made(**{name: value})
        expected = f"{name}: expected height and width of {least} to 16384 pixels, found '{value}'"
        assert refused.value.body["message"] == expected and refused.value.body["param"] == name


@pytest.mark.parametrize("served", ["unclip"], indirect=True)
def test_unclip_shows_images_anew_and_leads_them_from_text_to_text(served):
    sampler, address = served
    rows = torch.randint(0, 256, (1, 1, 16, 16), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(rows[0, 0].numpy()).save(file, "PNG")

    def own(decoder: dict | None = None, **conditions) -> np.ndarray:
        settings = fast("unclip")
        settings = sampler.Settings(**settings | {"decoder": settings["decoder"] | (decoder or {})})
        steered = Conditions(**conditions)
        return MEDIUM.to_stored(sampler.sample(Request(torch.tensor([3]), settings, steered)))[0, 0].numpy()

    def sent(name: str) -> tuple[str, bytes]:
        return name, file.getvalue()

    image, extra = MEDIUM.to_floats(rows), {"seed": 3}
    api = client(address).images
    made = pixels(api.generate(prompt="a dog", extra_body=extra))
    assert np.abs(made - own(prompt=("a dog",))).max() <= 1
    varied = pixels(api.create_variation(image=sent("image.png"), extra_body=extra))
    assert np.abs(varied - own(image=image)).max() <= 1
    led = {**extra, "instead_of": "a cat"}
    edited = pixels(api.edit(image=sent("image.png"), prompt="a dog", extra_body=led))
    expected = own(image=image, prompt=("a dog",), instead_of=("a cat",))
    assert np.abs(edited - expected).max() <= 1 and not np.array_equal(edited, varied)
    decoder = {"guidance_scale": 4.0, "guidance_interval": [0.5, 50.0]}  # a form writes a block and a list into names
    steered = pixels(api.edit(image=sent("image.png"), prompt="a dog", extra_body={**led, "decoder": decoder}))
    assert np.abs(steered - own(decoder, image=image, prompt=("a dog",), instead_of=("a cat",))).max() <= 1
    assert not np.array_equal(steered, edited)
    heard = api.edit(image=sent("image.png"), prompt="a dog", extra_body={**led, "text_difference": 0.1})
    assert not np.array_equal(pixels(heard), edited) and not hasattr(heard, "ignored")
    unheard = {**extra, "strength": 0.9, "text_difference": 0.1}
    again = api.create_variation(image=sent("image.png"), extra_body=unheard)
    assert np.array_equal(pixels(again), varied) and again.ignored == ["strength", "text_difference"]
    assert api.generate(prompt="a dog", extra_body={**extra, "text_difference": 0.1}).ignored == ["text_difference"]
    with pytest.raises(openai.BadRequestError, match="mask: .* shows images anew and keeps no part of one"):
        api.edit(image=sent("image.png"), mask=sent("mask.png"), prompt="a dog")
    told = json.loads(ask(address, "/v1/models/latent-foundry")[2])["x-sampler"]
    assert told["texts"] and told["edits"] and "decoder.solver" in told["settings_schema"]


def test_settings_of_parts_that_a_stable_diffusion_lacks_are_told_as_ignored(tmp_path):
    pytest.importorskip("transformers")
    write(tmp_path / "sd", "stable_diffusion", refiner=None)
    config = ServeConfig(port=free_port(), threads=1, max_steps=20)
    backend = LocalBackend(tmp_path / "sd", config, settings=fast("stable_diffusion"))
    with serving(backend, config) as address:

        def ignored(**settings) -> list[str] | None:
            answer = client(address).images.generate(prompt="a dog", extra_body={"seed": 1, **settings})
            return getattr(answer, "ignored", None)

        assert ignored(refiner_start=0.3, adapter_scale=0.5) == ["refiner_start", "adapter_scale"]
        assert ignored(refiner_start=1.0, guidance_scale=3.0) is None
    backend.engine.stop(timeout=5)
