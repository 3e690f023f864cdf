"""Speech by OpenAI's own client, from a tiny WaveNet."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import openai
import pytest
import torch

from components.data.media.audio import lengths, samples
from components.sampling.requests import Conditions, Request
from infra.config import ServeConfig
from infra.serving.speech import wav_header
from tests.infra.chromium import EXECUTABLE, Page
from tests.infra.local import LocalBackend, ask, client, free_port, serving
from tests.infra.serving.test_text_systems import write


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech") / "wavenet"
    sampler = write(folder, "wavenet")
    config = ServeConfig(port=free_port(), threads=1)
    backend = LocalBackend(folder, config, settings={})
    with serving(backend, config) as address:
        yield sampler, address
    backend.engine.stop(timeout=5)


def expected(sampler, label: int, speaker: int | None, seed: int) -> np.ndarray:
    told = None if speaker is None else torch.tensor([speaker])
    request = Request(torch.tensor([seed]), sampler.Settings(), Conditions(label=torch.tensor([label]), speaker=told))
    row = sampler.sample(request)
    return sampler.medium.to_stored(row)[0, 0, : int(lengths(row))].numpy()


@pytest.mark.parametrize("file_format", ["wav", "flac", "pcm"])
def test_a_class_is_spoken_by_a_speaker(served, file_format):
    sampler, address = served
    answer = client(address).audio.speech.create(
        model="latent-foundry", input="two", voice="bob", response_format=file_format, extra_body={"seed": 5}
    )
    content = answer.content
    found = np.frombuffer(content, "<i2") if file_format == "pcm" else samples(io.BytesIO(content), 8000)
    assert np.abs(found.astype(int) - expected(sampler, 2, 1, 5)).max() <= 1


def test_a_stream_begins_before_the_clip_is_made(served):
    sampler, address = served
    with client(address).audio.speech.with_streaming_response.create(
        model="latent-foundry", input="1", voice="", response_format="wav", extra_body={"seed": 2}
    ) as answer:
        assert answer.headers["content-type"] == "audio/wav" and answer.headers["x-sample-rate"] == "8000"
        content = b"".join(answer.iter_bytes())
    header = wav_header(8000)
    assert content.startswith(header)
    assert np.abs(np.frombuffer(content[len(header) :], "<i2").astype(int) - expected(sampler, 1, None, 2)).max() <= 1


def test_mp3_is_what_nobody_asks_for(served):
    answer = client(served[1]).audio.speech.create(model="latent-foundry", input="two", voice="ann")
    assert answer.response.headers["content-type"] == "audio/mpeg" and len(samples(io.BytesIO(answer.content), 8000))


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": "ten", "voice": "bob"}, "input"),
        ({"input": "two", "voice": "alloy"}, "voice"),
        ({"input": "two", "voice": "bob", "response_format": "aac"}, "response_format"),
    ],
)
def test_what_cannot_be_met_is_named(served, asked, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client(served[1]).audio.speech.create(model="latent-foundry", **asked)
    assert refused.value.param == param


def test_what_says_nothing_is_told(served):
    answer = client(served[1]).audio.speech.create(
        model="latent-foundry",
        input="two",
        voice="ann",
        speed=2.0,
        instructions="softly",
        extra_body={"n": 3, "size": "4x4", "temperature": 0.8},
    )
    assert set(answer.response.headers["x-ignored"].split(", ")) == {"speed", "instructions", "n", "size"}


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here")
def test_the_page_plays_clips(served, tmp_path):
    page = Page(served[1], tmp_path / "profile")
    try:
        page.wait_for("document.querySelectorAll('#classes button').length == 3")
        voices = page.evaluate("[...document.querySelectorAll('#voice option')].map((one) => one.value).join(' ')")
        assert voices.split(" ") == ["", "ann", "bob"]
        page.evaluate(
            "document.querySelectorAll('#classes button')[2].click(), $voice = document.getElementById('voice')"
        )
        page.evaluate("$voice.value = 'bob', document.getElementById('seed').value = 5")
        page.evaluate("document.getElementById('n').value = 2, document.getElementById('generate').click()")
        page.wait_for("document.querySelectorAll('#gallery figure:not(.busy) audio').length == 2")
        page.wait_for("[...document.querySelectorAll('audio')].every((one) => one.readyState > 0)")
        source = page.evaluate("document.querySelector('#gallery figure audio').src")
        found = samples(io.BytesIO(base64.b64decode(source.removeprefix("data:audio/wav;base64,"))), 8000)
        assert np.abs(found.astype(int) - expected(served[0], 2, 1, 5)).max() <= 1
        assert page.evaluate("document.querySelector('#gallery img').naturalWidth") > 0
        assert page.evaluate("document.querySelector('figcaption span').textContent") == "two · bob · 5"
        curl = page.evaluate("document.getElementById('curl').textContent")
        assert "/v1/audio/speech" in curl and '"voice":"bob"' in curl and "-o 5.wav" in curl
        assert "clips made" in page.evaluate("document.getElementById('status').textContent") and page.problems == []
        page.visit(served[1] + "/")  # they are kept over a reload
        page.wait_for("document.querySelectorAll('#gallery audio').length == 2")
    finally:
        page.close()


def test_pictures_are_not_made_of_sound(served):
    with pytest.raises(openai.BadRequestError, match="makes clips; expected a model of images"):
        client(served[1]).images.generate(prompt="two")
    told = json.loads(ask(served[1], "/v1/models/latent-foundry")[2])["x-sampler"]
    assert "speaker" in told["accepts"]
