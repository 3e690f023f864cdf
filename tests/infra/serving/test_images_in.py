"""Edits, variations, negative prompts and several models, as the openai client asks for them."""

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
from components.sampling.requests import Conditions, Request, Source
from components.training.ema import copy_of
from components.training.loop import State
from infra.config import ServeConfig
from infra.serving.api_error import ApiError
from infra.serving.orders import SourceImage as Upload
from infra.serving.sampler_replica import opened
from infra.serving.uploads import open_image, source
from tests.components.helpers import CAPTION_LENGTH, LATENTS, build
from tests.infra.local import LocalBackend, ask, client, free_port, served_model, serving

FAST = {"num_inference_steps": 4, "seed": 5}


def file_of(image: Image.Image, name: str = "picture.png", file_format: str = "PNG"):
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return name, buffer.getvalue()


def pixels(item) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item.b64_json))))


@pytest.fixture(scope="module")
def drawing() -> Image.Image:
    """Grey, of the sampler's own size: a ramp with a bar."""
    grid = np.tile(np.linspace(0, 255, 16), (16, 1)).astype(np.uint8)
    grid[6:10] = 255 - grid[6:10]
    return Image.fromarray(grid)


@pytest.fixture
def mask() -> Image.Image:
    """Transparent in its left half."""
    rgba = np.full((16, 16, 4), 255, np.uint8)
    rgba[:, :8, 3] = 0
    return Image.fromarray(rgba)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return MEDIUM.to_floats(torch.from_numpy(np.asarray(image).copy())[None, None])


def own(folder, label, source=None, steps=4, guidance=2.0, **more) -> np.ndarray:
    """What the sampler itself makes of it."""
    family = run_folder.load(folder).family
    settings = family.Settings(num_inference_steps=steps, guidance_scale=guidance)
    given = {"label": torch.tensor([label])} if label is not None else {}
    request = Request(torch.tensor([5]), settings, Conditions(**given, **more, source=source))
    return MEDIUM.to_stored(family.sample(request))[0, 0].numpy()


def differ(one, other) -> int:
    return np.abs(one.astype(int) - other.astype(int)).max()


def test_an_edit_is_the_samplers_own(run, folder, drawing):
    answer = client(run()).images.edit(
        image=file_of(drawing), prompt="two", response_format="b64_json", extra_body={"strength": 0.5, **FAST}
    )
    made = pixels(answer.data[0])
    assert differ(made, own(folder, 2, Source(as_tensor(drawing), 0.5))) <= 1
    assert differ(made, own(folder, 2)) > 5 and differ(made, np.asarray(drawing)) > 5
    assert answer.data[0].seed == 5


def test_only_what_the_mask_leaves_transparent_is_redrawn(run, folder, drawing, mask):
    address = run()
    made = pixels(
        client(address).images.edit(image=file_of(drawing), mask=file_of(mask), prompt="two", extra_body=FAST).data[0]
    )
    assert (made[:, 8:] == np.asarray(drawing)[:, 8:]).all()
    assert differ(made[:, :8], np.asarray(drawing)[:, :8]) > 5
    redraw = torch.zeros(1, 1, 16, 16)
    redraw[..., :8] = 1
    assert differ(made, own(folder, 2, Source(as_tensor(drawing), 1.0, redraw))) <= 1
    holed = drawing.convert("RGBA")
    holed.putalpha(mask.getchannel("A"))  # an image that is its own mask
    alike = pixels(client(address).images.edit(image=file_of(holed), prompt="two", extra_body=FAST).data[0])
    assert (alike[:, 8:] == np.asarray(drawing)[:, 8:]).all()


def test_variations(run, folder, drawing):
    answer = client(run()).images.create_variation(image=file_of(drawing), n=2, extra_body={"strength": 0.25, **FAST})
    assert differ(pixels(answer.data[0]), own(folder, None, Source(as_tensor(drawing), 0.25))) <= 1
    assert [item.seed for item in answer.data] == [5, 6] and answer.data[0].b64_json != answer.data[1].b64_json


def test_a_photograph_of_another_size_and_format(run):
    photograph = Image.effect_noise((60, 40), 80).convert("RGB")
    for file_format in ("JPEG", "WEBP"):
        sent = file_of(photograph, f"photograph.{file_format.lower()}", file_format)
        assert pixels(client(run()).images.edit(image=[sent], prompt="one", extra_body=FAST).data[0]).shape == (16, 16)


def test_an_edit_can_be_streamed(run, drawing):
    events = list(
        client(run()).images.edit(
            image=file_of(drawing), prompt="two", stream=True, partial_images=2, extra_body={"num_inference_steps": 12}
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]


def test_a_negative_prompt_leads_away(run, folder):
    address = run()

    def made(**extra):
        return pixels(client(address).images.generate(prompt="two", extra_body={**FAST, **extra}).data[0])

    away = own(folder, 2, negative_label=torch.tensor([0]))
    assert differ(made(negative_prompt="zero"), away) <= 1
    assert differ(made(), away) > 2 and differ(made(), made(negative_prompt="")) == 0


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"image": ("a.png", b"not an image")}, "image", "expected a whole PNG, JPEG or WebP image"),
        ({"image": file_of(Image.new("L", (40, 40)), "a.gif", "GIF")}, "image", "expected a whole PNG"),
        ({"image": file_of(Image.new("L", (120, 100)))}, "image", "at most 10000 pixels, found 120x100"),
        ({"image": [file_of(Image.new("L", (9, 9)))] * 2}, "image", "expected one file"),
        ({"mask": file_of(Image.new("L", (16, 16)))}, "mask", "expected an alpha channel"),
        ({"mask": file_of(Image.new("RGBA", (8, 9)))}, "mask", "expected 16x16 like the image, found 8x9"),
        ({"prompt": "a cat"}, "prompt", "names no class"),
        ({"extra_body": {"negative_prompt": "a cat"}}, "negative_prompt", "names no class"),
        ({"extra_body": {"strength": 0}}, "strength", "greater than 0"),
        ({"extra_body": {"strength": 1.5}}, "strength", "less than or equal to 1"),
        ({"extra_body": {"num_inference_steps": 999}}, "num_inference_steps", "at most 250, found 999"),
        ({"n": 11}, "n", "at most 10 images"),
    ],
)
def test_refusals_name_the_field(run, drawing, change, param, message):
    wanted = {"image": file_of(drawing), "prompt": "two", **change}
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client(run(max_pixels=10_000)).images.edit(**wanted)
    assert refused.value.param == param


def test_a_body_that_is_no_form(run, drawing):
    address = run()
    for body, headers in (
        (b"{}", {"Content-Type": "application/json"}),
        (b"rubbish", {"Content-Type": "multipart/form-data"}),
        (b"rubbish", {"Content-Type": "multipart/form-data; boundary=x"}),
    ):
        status, _, answer = ask(address, "/v1/images/edits", body, **headers)
        assert status == 400 and json.loads(answer)["error"]["message"]


def test_a_model_that_edits_nothing():
    class Model:
        id, accepts = "gan@1", ("label",)

    with pytest.raises(ApiError, match="gan@1 draws from noise alone"):
        source(b"", None, None, Model, 100, redraws=True)


def test_a_cut_off_image_is_refused(drawing):
    _, whole = file_of(drawing)
    with pytest.raises(ApiError, match="whole PNG"):
        open_image(whole[: len(whole) // 2], "image", 1000)


def test_a_source_arrives_as_it_was_sent():
    grid = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    arrived = opened(Upload(pixels=grid.tobytes(), strength=0.3, mask=b"\xff" * 128 + b"\0" * 128), MEDIUM, grid.shape)
    assert (MEDIUM.to_stored(arrived.images)[0].numpy() == grid).all() and arrived.strength == 0.3
    assert arrived.mask[0, 0, 0, 0] == 1 and arrived.mask[0, 0, -1, -1] == 0


def test_a_setting_that_the_model_cannot_do(run):
    with pytest.raises(openai.BadRequestError, match="autoguidance needs a worse net: a snapshot") as refused:
        client(run()).images.generate(prompt="one", extra_body={"guidance": "autoguidance"})
    assert refused.value.param == "guidance"


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """A tiny sampler of texts of up to sixteen bytes."""
    data = LATENTS.model_copy(update={"caption_length": CAPTION_LENGTH})
    text = {"length": 16, "width": 8, "layers": 1, "heads": 2}
    family = build("latent_diffusion", 0, data, conditioning="text", text=text)
    average = copy_of({"denoiser": family.nets["denoiser"]})
    provenance = run_folder.Provenance(data="d", code="c", job="j", seed=0, step=1)
    folder = tmp_path_factory.mktemp("runs") / "texts"
    run_folder.write(folder, "latent_diffusion", family, State(1, {}, {}, average), provenance)
    return folder


def test_prompts_of_a_sampler_of_texts(text_folder):
    backend, config = LocalBackend(text_folder, ServeConfig()), ServeConfig(port=free_port())
    sampler = run_folder.load(text_folder).family
    settings = sampler.Settings(num_inference_steps=4)
    expected = sampler.sample(
        Request(torch.tensor([5]), settings, Conditions(prompt=("a cat",), negative_prompt=("a dog",)))
    )
    with serving(backend, config) as address:
        images = client(address).images
        made = pixels(images.generate(prompt="a cat", extra_body={**FAST, "negative_prompt": "a dog"}).data[0])
        assert differ(made, MEDIUM.to_stored(expected)[0].movedim(0, -1).squeeze().numpy()) <= 1
        assert differ(made, pixels(images.generate(prompt="a cat", extra_body=FAST).data[0])) > 0
        with pytest.raises(openai.BadRequestError, match="at most 16 bytes"):
            images.generate(prompt="a cat on a sunny day", extra_body=FAST)
    backend.engine.stop(timeout=30)


def test_models_side_by_side(folder):
    class TwoVersions(LocalBackend):
        """Answers for each version; the older one is told apart by its seed."""

        def trajectory(self, order):
            asked.append(order.model)
            return super().trajectory(order)

    asked, older = [], served_model(folder, "2", settings={"num_inference_steps": 3})
    backend, config = TwoVersions(folder, ServeConfig(), beside=(older,)), ServeConfig(port=free_port())
    with serving(backend, config) as address:
        models = client(address).models
        assert [model.id for model in models.list()] == ["latent-foundry", "latent-foundry@3", "latent-foundry@2"]
        assert models.retrieve("latent-foundry@2").owned_by == "latent-foundry"
        named = {"latent-foundry": "3", "latent-foundry@3": "3", "latent-foundry@2": "2", None: "3"}
        for name, version in named.items():
            answer = client(address).images.generate(prompt="one", n=2, **({"model": name} if name else {}))
            assert answer.model == f"latent-foundry@{version}"
            assert set(asked[-2:]) == {backend.models[version == "2"].key}
        with pytest.raises(openai.NotFoundError, match="'latent-foundry' or 'latent-foundry@3' or 'latent-foundry@2'"):
            client(address).images.generate(prompt="one", model="latent-foundry@1")
    backend.engine.stop(timeout=30)
