"""Images in WebDataset's tars and in Parquet: rows, splits, classes, captions, and what is left out."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from components import sources
from components.data.dataset import Rejected
from components.errors import DataError
from tests.components.sources.helpers import config_of, items_of, picture, png, rows_of, write_parquet, write_tar


def read(folder: Path, **fields) -> sources.Source:
    return sources.read(config_of(folder, **fields), seed=0)


def seen(source: sources.Source, split: str | None = None) -> dict[int, tuple]:
    """What is said of each image, by its grey level."""
    items = items_of(source) if split is None else list(source.splits[split]())
    found = {}
    for row in (item for item in items if not isinstance(item, Rejected)):
        caption = bytes(row["caption"]).rstrip(b"\0").decode() if "caption" in row else None
        label = source.classes[int(row["label"])] if "label" in row else None
        found[int(row["image"][0, 0, 0])] = (caption, label)
    return found


def reasons(source: sources.Source) -> dict[str, str]:
    return {item.path: item.reason for item in items_of(source) if isinstance(item, Rejected)}


class TestWebDataset:
    def test_samples_are_files_of_one_name(self, tmp_path):
        first = {"a/1.png": png(1), "a/1.txt": "one\n", "a/1.cls": "5", "a/2.json": '{"Caption": "two", "label": "x"}'}
        write_tar(tmp_path / "00000.tar", {**first, "a/2.PNG": png(2), "._a.png": b"litter", "__pax__": b""})
        write_tar(
            tmp_path / "00001.tar", {"b.v1.png": png(3), "b.txt": "drei: é", "b.json": '{"label": 5, "text": "no"}'}
        )
        for name in ("00000.parquet", "00000_stats.json"):
            (tmp_path / name).write_bytes(b"img2dataset's own")
        source = read(tmp_path)
        assert seen(source) == {1: ("one", "5"), 2: ("two", "x"), 3: ("drei: é", "5")}
        assert source.captions and source.classes == ("5", "x")
        assert source.facts["format"] == "webdataset" and source.facts["files"] == 2
        assert [rows_of(source)[place]["image"].shape for place in range(3)] == [(1, 16, 16)] * 3

    def test_bad_samples_are_listed_with_their_reasons(self, tmp_path):
        files: dict[str, bytes | str] = {
            "good.png": png(1), "good.txt": "t",
            "also.png": png(2), "also.txt": "t",
            "alone.txt": "t",
            "two.png": png(3), "two.jpg": png(3), "two.txt": "t",
            "broken.png": b"no image", "broken.txt": "t",
            "silent.png": png(4),
            "json.png": png(5), "json.json": "{",
            "list.png": png(5), "list.json": "[]",
            "bytes.png": png(5), "bytes.txt": b"\xff",
            "zero.png": png(5), "zero.txt": "a\0b",
            "good.png ": png(6),
        }  # fmt: skip
        write_tar(tmp_path / "x.tar", files)
        found = reasons(read(tmp_path))
        assert found.pop("x.tar/broken").startswith("not an image")
        assert found.pop("x.tar/json").startswith("its .json is not JSON")
        assert found == {
            "x.tar/alone": "expected one file that is no text, found txt",
            "x.tar/two": "expected one file that is no text, found png, jpg, txt",
            "x.tar/silent": "has no caption, as others have",
            "x.tar/list": "its .json: expected an object, found []",
            "x.tar/bytes": "its .txt is no text in UTF-8",
            "x.tar/zero": "its .txt: expected a caption, found a zero byte",
            "x.tar/good": "has no caption, as others have",
        }

    @pytest.mark.parametrize("harm", ["cut", "header", "gzip", "empty"])
    def test_a_tar_that_breaks_off_gives_what_it_has_and_says_so(self, tmp_path, harm):
        path = write_tar(tmp_path / "x.tar", {f"{number}.png": png(number) for number in range(5)})
        content = path.read_bytes()
        if harm == "cut":
            path.write_bytes(content[: 3 * 1024 + 700])
        elif harm == "header":
            path.write_bytes(content[: 3 * 1024] + b"\1" * 512 + content[3 * 1024 + 512 :])
        elif harm == "gzip":
            path.write_bytes(gzip.compress(content))
        else:
            path.write_bytes(b"")
        if harm in ("gzip", "empty"):
            with pytest.raises(
                DataError, match=r"x\.tar first: cannot be read beyond its first 0 samples .*not compressed"
            ):
                read(tmp_path)
            return
        source = read(tmp_path)
        assert set(seen(source)) == {0, 1, 2}
        assert reasons(source)["x.tar"].startswith("cannot be read beyond its first 3 samples (")

    def test_splits_are_read_off_the_names(self, tmp_path):
        for name, value in (("train-0000", 1), ("train-0001", 2), ("val-0000", 3)):
            write_tar(tmp_path / f"{name}.tar", {"x.png": png(value)})
        assert set(seen(read(tmp_path), "train")) == {1, 2} and set(seen(read(tmp_path), "test")) == {3}
        write_tar(tmp_path / "test/0.tar", {"x.png": png(4)})
        source = read(tmp_path)
        assert set(seen(source, "test")) == {4} and source.facts["unused_validation_images"] == 1
        write_tar(tmp_path / "more.tar", {"x.png": png(5)})
        with pytest.raises(DataError, match=r"more\.tar names no split, as other files here do"):
            read(tmp_path)

    def test_more_tars_move_no_sample_to_another_split(self, tmp_path):
        for number in range(3):
            write_tar(tmp_path / f"{number}.tar", {f"{n}.png": png(40 * number + n) for n in range(40)})
        before = set(seen(read(tmp_path), "test"))
        write_tar(tmp_path / "3.tar", {f"{n}.png": png(120 + n) for n in range(40)})
        assert before == {value for value in seen(read(tmp_path), "test") if value < 120}

    def test_sound_and_bucket_prefixes_are_read_alike(self, tmp_path, monkeypatch):
        picture(tmp_path / "x.png", 7)
        write_tar(tmp_path / "set/0.tar", {f"{n}.png": png(n) for n in range(4)})
        config = config_of(tmp_path).model_copy(update={"source": "s3://bucket/set"})
        source = sources.read(config, 0, tmp_path / "set")
        assert len(seen(source)) == 4 and source.facts["source"] == "s3://bucket/set"

    def test_beside_images_it_is_left_out(self, tmp_path):
        for number in range(3):
            picture(tmp_path / f"{number}.png", number)
        write_tar(tmp_path / "more.tar", {"x.png": png(9)})
        told = "an archive or table; expected its images unpacked, or no other files beside"
        assert reasons(read(tmp_path)) == {"more.tar": told}

    def test_samples_without_a_speaker_are_left_out(self, tmp_path):
        files: dict[str, bytes | str] = {}
        for number, said in enumerate(('{"speaker": "s"}', "{}", '{"speaker": "t"}')):
            files |= {f"{number}.png": png(number), f"{number}.json": said}
        write_tar(tmp_path / "a.tar", files)
        source = read(tmp_path, speaker_key="speaker")
        assert source.speakers == ("s", "t") and reasons(source) == {"a.tar/1": "has no speaker, as others have"}

    def test_a_caption_may_stand_under_a_key_or_ending_that_data_names(self, tmp_path):
        files: dict[str, bytes | str] = {}
        for number in range(3):
            told = f'{{"Title": "title {number}"}}'
            files |= {f"{number}.png": png(number), f"{number}.json": told, f"{number}.blip.txt": f"blip {number}"}
        write_tar(tmp_path / "a.tar", files)
        plain = read(tmp_path)
        assert not plain.captions and "found title, .blip.txt: data.caption_key or" in plain.notes[0]
        for key in ("title", "blip"):
            assert {said for said, _ in seen(read(tmp_path, caption_key=key)).values()} == {
                f"{key} {number}" for number in range(3)
            }
        with pytest.raises(DataError, match=r"data\.caption_key name: .* found title, \.blip\.txt"):
            read(tmp_path, caption_key="name")

    def test_blank_and_long_captions_are_left_out(self, tmp_path):
        texts = {"a": "A", "b": "B", "blank": " \n", "long": "z" * 5000}
        files = {f"{name}.png": png(number) for number, name in enumerate(texts)}
        write_tar(tmp_path / "x.tar", dict(sorted({**files, **{f"{one}.txt": texts[one] for one in texts}}.items())))
        source = read(tmp_path)
        assert {said for said, _ in seen(source).values()} == {"A", "B"}
        assert reasons(source) == {
            "x.tar/blank": "has no caption: its text is blank",
            "x.tar/long": "its caption has 5000 bytes, expected at most 4096",
        }


class TestParquet:
    def columns(self, count: int, **more) -> dict[str, object]:
        return {"image": [{"bytes": png(number), "path": None} for number in range(count)], **more}

    def test_classes_have_names_beside_features_of_lists(self, tmp_path):
        columns = self.columns(2, label=[0, 1], tags=[["a"], ["b"]])
        features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "tags": [{"_type": "Value"}]}
        write_parquet(tmp_path / "data.parquet", columns, features=features)
        assert read(tmp_path).classes == ("cat", "dog")

    def test_rows_of_a_hub_data_set(self, tmp_path):
        text = [f"text {number}" for number in range(7)]
        columns = self.columns(7, text=text, label=[0, 1, 0, 1, -1, 0, 1], id=list(range(7)))
        write_parquet(tmp_path / "data/train-00000-of-00001.parquet", columns, {"label": ["cat", "dog"]})
        test = self.columns(1, text=["held out"], label=[1], id=[0])
        write_parquet(tmp_path / "data/test-00000-of-00001.parquet", test, {"label": ["cat", "dog"]})
        source = read(tmp_path)
        found = seen(source, "train")
        assert found == {n: (f"text {n}", ("cat", "dog")[n % 2]) for n in (0, 1, 3)} | {
            2: ("text 2", "cat"), 5: ("text 5", "cat"), 6: ("text 6", "dog"),
        }  # fmt: skip
        assert seen(source, "test") == {0: ("held out", "dog")}
        assert reasons(source) == {"data/train-00000-of-00001.parquet/4": "has no label, as others have"}
        assert source.facts["format"] == "parquet"

    @pytest.mark.parametrize("name", ["jpg", "Image", "anything"])
    def test_plain_bytes_under_a_usual_name_or_alone(self, tmp_path, name):
        write_parquet(tmp_path / "x.parquet", {name: [png(number) for number in range(5)]})
        source = read(tmp_path)
        assert seen(source) == dict.fromkeys(range(5), (None, None)) and not source.captions

    def test_bad_rows_are_listed_with_their_reasons(self, tmp_path):
        images = [png(0), png(1), None, b"no image", png(4), png(5)]
        write_parquet(tmp_path / "x.parquet", {"image": images, "caption": ["a", "b", "c", "d", None, "e\0"]})
        found = reasons(read(tmp_path))
        assert found.pop("x.parquet/3").startswith("not an image")
        assert found.pop("x.parquet/5").startswith("its row: expected the caption to be text")
        assert found == {
            "x.parquet/2": "its row holds no bytes of an image",
            "x.parquet/4": "has no caption, as others have",
        }

    def test_a_file_that_is_damaged_is_listed_and_a_table_without_images_refused(self, tmp_path):
        path = write_parquet(tmp_path / "a.parquet", self.columns(6))
        shutil.copy(path, tmp_path / "b.parquet")
        (tmp_path / "b.parquet").write_bytes(path.read_bytes()[:-100])
        assert reasons(read(tmp_path))["b.parquet"].startswith("cannot be read as Parquet beyond its first 0 rows")
        write_parquet(tmp_path / "b.parquet", {"url": ["http://"], "text": ["t"]})
        with pytest.raises(
            DataError, match=r"b\.parquet: expected a column of images' bytes, .* found columns url, text"
        ):
            read(tmp_path)

    def test_captions_in_a_column_that_data_names_in_lists_and_blank(self, tmp_path):
        more = {"title": ["a", "b", ""], "sentences": [["x", "y"], ["z"], ["w"]]}
        write_parquet(tmp_path / "x.parquet", self.columns(3, **more))
        plain = read(tmp_path)
        assert not plain.captions and "found title, sentences: data.caption_key or" in plain.notes[0]
        titles, lists = (read(tmp_path, caption_key=key) for key in more)
        assert {said for said, _ in seen(titles).values()} == {"a", "b"}
        assert reasons(titles) == {"x.parquet/2": "has no caption, as others have"}
        assert {said for said, _ in seen(lists).values()} == {"x", "z", "w"}
        assert lists.notes == ("1 of 3 have several captions: the first of each is taken",)
        for key in ("caption_key", "label_key"):
            with pytest.raises(DataError, match=rf"data\.{key} kind: .* found title, sentences"):
                read(tmp_path, **{key: "kind"})

    def test_a_split_reads_only_its_rows_in_order(self, tmp_path):
        write_parquet(tmp_path / "x.parquet", self.columns(100))
        source = read(tmp_path, test_fraction=0.3)
        train, test = (list(seen(source, split)) for split in ("train", "test"))
        assert train == sorted(train) and test == sorted(test) and sorted(train + test) == list(range(100))
        assert 15 < len(test) < 45
