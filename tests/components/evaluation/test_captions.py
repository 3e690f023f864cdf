"""What a sampler of texts is asked for in evaluation: held-out captions, in turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.data.dataset import Dataset, write_manifest, write_shards
from components.evaluation import generation
from components.evaluation.generation import Captions
from tests.components.helpers import CAPTION_LENGTH, CAPTIONS, LATENTS, build

ASKED = Captions(CAPTIONS, (2, 0, 1, 1))


@pytest.fixture(scope="module")
def sampler():
    data = LATENTS.model_copy(update={"caption_length": CAPTION_LENGTH})
    text = {"length": 16, "width": 8, "layers": 1, "heads": 2}
    return build("latent_diffusion", 0, data, conditioning="text", text=text)


@pytest.fixture
def settings(sampler):
    return sampler.Settings(num_inference_steps=2)


def data_set(folder, with_labels: bool) -> Dataset:
    rows = []
    for number, text in enumerate(CAPTIONS):
        caption = np.frombuffer(text.encode().ljust(CAPTION_LENGTH, b"\0"), np.uint8)
        label = {"label": np.array(ASKED.labels[number], np.int64)} if with_labels else {}
        rows.append({"image": np.zeros((1, 4, 4), np.uint8), "caption": caption, **label})
    folder.mkdir()
    write_manifest(folder, write_shards(folder, rows, 3), value_range=(0, 255))
    return Dataset(folder)


def test_captions_are_read_with_the_classes_of_their_images(tmp_path):
    both, texts = (Captions.of(data_set(tmp_path / name, name == "both")) for name in ("both", "texts"))
    assert dict(zip(both.texts, both.labels, strict=True)) == dict(zip(CAPTIONS, ASKED.labels, strict=True))
    assert sorted(texts.texts) == sorted(CAPTIONS) and texts.labels is None
    assert both.texts == texts.texts != CAPTIONS, "shuffled, and always the same: a set may be sorted by class"


def test_prompts_follow_the_captions_whatever_the_batch_size(sampler, settings):
    for size in (3, 5):
        made = list(generation.requests(sampler, settings, 10, 0, size, ASKED))
        assert [text for one in made for text in one.conditions.prompt] == [
            CAPTIONS[number % 4] for number in range(10)
        ]
        assert all(one.conditions.label is None for one in made)
    assert generation.wanted_labels(sampler, ASKED, 6).tolist() == [2, 0, 1, 1, 2, 0]
    assert generation.wanted_labels(sampler, Captions(CAPTIONS), 6) is None


def test_a_row_of_the_grid_is_a_caption(sampler, settings):
    request = generation.grid_request(sampler, settings, 0, ASKED)
    columns = generation.GRID_COLUMNS
    assert len(request.conditions.prompt) == len(request.seeds)
    assert set(request.conditions.prompt[columns : 2 * columns]) == {CAPTIONS[1]}


def test_guidance_counts_in_what_an_image_costs(sampler, settings):
    # the prompt and the empty one; two steps of two rows; a decoder
    assert generation.network_evaluations(sampler, settings, ASKED) == 2 + 4 + 1


def test_samplers_of_classes_are_asked_for_classes():
    sampler = build("latent_diffusion")
    request = generation.request(sampler, sampler.Settings(), 2, 5, 0, ASKED)
    assert request.conditions.prompt is None and request.conditions.label.tolist() == [2, 0, 1]
    assert torch.equal(generation.wanted_labels(sampler, ASKED, 4), sampler.cycled_labels(4))
