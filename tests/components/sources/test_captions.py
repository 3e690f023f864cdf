import itertools
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components import sources
from components.config import parse
from components.data.dataset import Rejected
from components.errors import ConfigError, DataError
from components.sources import DataConfig, folder
from tests.components.sources.helpers import config_of, items_of, picture, rows_of

SHARED = Path(__file__).parents[4] / "shared" / "data"


class TestCaptions:
    def write(self, root: Path, lines: list, name: str = "captions.jsonl") -> None:
        (root / name).write_text("\n".join(json.dumps(line) for line in lines) + "\n")

    @pytest.mark.parametrize("key", ["file_name", "image", "file"])
    @pytest.mark.parametrize("caption_key", ["caption", "text"])
    def test_captions_are_padded_utf8(self, tmp_path, key, caption_key):
        captions = {"a.png": "größer", "b.png": "B", "c.png": "日本"}
        for value, name in enumerate(captions):
            picture(tmp_path / "images" / name, value)
        self.write(tmp_path, [{key: name, caption_key: text} for name, text in captions.items()])
        rows = rows_of(sources.read(config_of(tmp_path), seed=0))
        assert {row["caption"].shape for row in rows} == {(8,)}
        found = {int(row["image"][0, 0, 0]): row["caption"].tobytes().rstrip(b"\0").decode() for row in rows}
        assert found == dict(enumerate(captions.values()))
        assert all("label" not in row for row in rows)

    def test_labels_become_classes(self, tmp_path):
        for name in "abc":
            picture(tmp_path / f"{name}.png", ord(name))
        self.write(
            tmp_path, [{"file": f"{n}.png", "label": label} for n, label in zip("abc", (7, "x", 7), strict=True)]
        )
        source = sources.read(config_of(tmp_path), seed=0)
        assert source.classes == ("7", "x")
        assert {int(row["image"][0, 0, 0]): int(row["label"]) for row in rows_of(source)} == {97: 0, 98: 1, 99: 0}

    def test_labels_may_stand_under_another_key(self, tmp_path):
        for name in "abc":
            picture(tmp_path / f"{name}.png", ord(name))
        self.write(
            tmp_path,
            [{"file": f"{n}.png", "group": group, "label": "no"} for n, group in zip("abc", "xyx", strict=True)],
        )
        source = sources.read(config_of(tmp_path, label_key="group"), seed=0)
        assert source.classes == ("x", "y")
        assert {int(row["image"][0, 0, 0]): int(row["label"]) for row in rows_of(source)} == {97: 0, 98: 1, 99: 0}
        with pytest.raises(DataError, match="data.label_key kind: .* found file, group, label"):
            sources.read(config_of(tmp_path, label_key="kind"), seed=0)

    def test_all_captions_of_an_image_are_in_one_split(self, tmp_path):
        for number in range(12):
            picture(tmp_path / f"{number}.png", number)
        self.write(tmp_path, [{"file": f"{n}.png", "text": text} for n in range(12) for text in ("one", "two")])
        source = sources.read(config_of(tmp_path, test_fraction=0.5), seed=0)
        train, test = ({int(row["image"][0, 0, 0]) for row in source.splits[split]()} for split in ("train", "test"))
        assert train | test == set(range(12)) and not train & test and len(rows_of(source)) == 24

    def test_what_table_and_folder_do_not_share_is_listed(self, tmp_path):
        for name in ("a.png", "b.png", "c.png", "x/twice.png", "y/twice.png", "unnamed.png"):
            picture(tmp_path / name)
        names = ("a.png", "b.png", "twice.png", "absent.png", "../outside.png", "/etc/passwd")
        self.write(tmp_path, [*({"file": name, "text": "t"} for name in names), {"file": "c.png"}], "metadata.jsonl")
        items = items_of(sources.read(config_of(tmp_path), seed=0))
        reasons = {item.path: item.reason for item in items if isinstance(item, Rejected)}
        unnamed = "no line of metadata.jsonl names it"
        assert reasons == {
            "twice.png": "names more than one file: x/twice.png, y/twice.png",
            "absent.png": "no such image in the folder",
            "../outside.png": "no such image in the folder",
            "/etc/passwd": "no such image in the folder",
            "c.png": "its line in metadata.jsonl has no caption",
            "unnamed.png": unnamed,
            "x/twice.png": unnamed,
            "y/twice.png": unnamed,
        }

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ("{", "line 2 is not JSON"),
            ("3", "line 2: expected an object"),
            ('{"caption": "no file"}', "line 2: expected the image's path"),
            ('{"file": "a.png", "caption": 3}', "line 2: expected the caption to be text"),
            ('{"file": "a.png", "caption": "a\\u0000b"}', "line 2: expected the caption to be text"),
            ('{"file": "a.png", "caption": "\\ud800"}', "line 2: expected the caption to be text"),
            ('{"file": "a.png", "label": [1]}', "line 2: expected the label to be a name or number"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path, line, told):
        picture(tmp_path / "a.png")
        (tmp_path / "c.jsonl").write_text(f"\n{line}\n")
        with pytest.raises(DataError, match=told) as caught:
            sources.read(config_of(tmp_path), seed=0)
        assert "c.jsonl" in str(caught.value)

    @pytest.mark.skipif(
        not (SHARED / "noto-emoji-128.tar.xz").is_file(), reason="../shared/data/noto-emoji is not here"
    )
    def test_real_emoji(self, tmp_path):
        with tarfile.open(SHARED / "noto-emoji-128.tar.xz") as archive:
            archive.extractall(tmp_path)
        root = tmp_path / "noto-emoji-128"
        source = sources.read(config_of(root, channels=3, image_size=32), seed=0)
        rows = list(itertools.islice(source.splits["train"](), 40))
        assert all(isinstance(row, dict) and row["image"].shape == (3, 32, 32) for row in rows)
        assert len(folder.list_files(root).images) == 3414
        corners = np.stack([row["image"][:, 0, 0] for row in rows])
        assert (corners == 255).mean() > 0.8  # transparent corners came out white


def test_class_names_make_captions_where_there_are_none():
    config = DataConfig(source="digits", image_size=8, caption="the digit {}")
    source = sources.read(config, 0)
    assert source.captions and source.facts["caption"] == "the digit {}"
    rows = [row for _, row in zip(range(30), source.splits["test"](), strict=False)]
    said = {bytes(row["caption"]).rstrip(b"\0").decode() for row in rows}
    assert said == {f"the digit {source.classes[int(row['label'])]}" for row in rows} and len(said) > 5
    assert {row["caption"].shape for row in rows} == {(15,)}, "as long as the longest"
    with pytest.raises(DataError, match=r"data\.caption: .* found captions of its own"):
        sources.captioned(source, "a {}")
    with pytest.raises(DataError, match=r"data\.caption: .* found no classes"):
        sources.captioned(replace(source, captions=False, classes=()), "a {}")
    with pytest.raises(DataError, match=r"data\.caption: makes a caption of 5002 bytes, expected at most 4096"):
        sources.captioned(replace(source, captions=False, classes=("z" * 5000,)), "a {}")
    for bad in ("digit", "{} {}", "{0}", "{name}"):
        with pytest.raises(ConfigError, match="where the name of the class goes"):
            parse(DataConfig, {"caption": bad}, "data")
