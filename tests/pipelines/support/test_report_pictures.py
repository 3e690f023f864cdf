"""Pictures of the report that no image needs: what moves is played."""

from __future__ import annotations

import base64
import io

import jinja2
import numpy as np
import torch
from PIL import Image

from components.data.dataset import Dataset, write_manifest, write_shards
from pipelines.report import TEMPLATE
from pipelines.support.report_pictures import _PLAYED, played
from tests.components.helpers import Rows, build, tiny_data


def films(folder) -> Dataset:
    columns = Rows(tiny_data("video_diffusion").decoded, 9).columns
    rows = [{name: np.array(values[row]) for name, values in columns.items()} for row in range(9)]
    shards = write_shards(folder, rows, 20)
    write_manifest(folder, shards, medium="video", value_range=(0, 255), classes=("nought", "one", "two"))
    return Dataset(folder)


def test_films_loop_beside_real_ones_by_class(tmp_path):
    dataset, champion = films(tmp_path), build("video_diffusion")
    found = played(dataset, champion, {"num_inference_steps": 1})
    assert [row["name"] for row in found] == ["nought", "one", "two"]
    assert all(len(row["made"]) == _PLAYED and len(row["real"]) == 3 for row in found)
    stored = base64.b64decode(found[1]["real"][0]["uri"].removeprefix("data:image/gif;base64,"))
    clip = Image.open(io.BytesIO(stored))
    expected = dataset.take(torch.tensor([1]))["video"][0, 0, 0].numpy()
    assert clip.n_frames == 5 and np.array_equal(np.asarray(clip.convert("L")), expected)


def test_images_are_not_played(tmp_path):
    columns = Rows(tiny_data("dcgan"), 4).columns
    rows = [{name: np.array(values[row]) for name, values in columns.items()} for row in range(4)]
    write_manifest(tmp_path, write_shards(tmp_path, rows, 20), value_range=(0, 255), classes=("a", "b", "c"))
    assert played(Dataset(tmp_path), build("dcgan"), {}) == []


def test_the_page_plays_each_kind_of_file():
    text = TEMPLATE.read_text()
    start, last = text.index("{% macro play("), "{% endmacro %}"
    end = text.index(last, start) + len(last)
    template = jinja2.Environment(autoescape=True).from_string(text[start:end] + "{{ play(files, 'a') }}")
    kinds = ("image/gif", "video/mp4", "audio/wav")
    shown = template.render(files=[{"mime": kind, "uri": f"data:{kind};base64,AA=="} for kind in kinds])
    for tag, kind in zip(("img", "video", "audio"), kinds, strict=True):
        assert f'<{tag} src="data:{kind};base64,AA==' in shown
