import hashlib
import itertools
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components import sources
from components.config import parse
from components.data import Rejected
from components.errors import ConfigError, DataError
from components.sources import DataConfig, fashion_mnist, folder

SHARED = Path(__file__).parents[3] / "shared" / "data"


def picture(path: Path, value: int | tuple = 128, size=(20, 16), mode: str = "L", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)
    return path


def config_of(path: Path, **fields) -> DataConfig:
    return DataConfig(source="folder", path=path, **fields)


def items_of(source: sources.Source) -> list:
    return [item for split in source.splits.values() for item in split()]


def rows_of(source: sources.Source) -> list[sources.Row]:
    return list(sources.accepted(items_of(source), [], 0))


class TestConfig:
    @pytest.mark.parametrize(
        ("block", "told"),
        [
            ({"image_size": 18}, "data.image_size: expected a multiple of 4, at least 8, found 18"),
            ({"image_size": 4}, "data.image_size: expected a multiple of 4, at least 8, found 4"),
            ({"image_size": "big"}, "data.image_size"),
            ({"channels": 2}, "data.channels"),
            ({"test_fraction": 0}, "data.test_fraction"),
            ({"test_fraction": 1.0}, "data.test_fraction"),
            ({"rows_per_shard": 0}, "data.rows_per_shard"),
            ({"max_rejected": -1}, "data.max_rejected"),
            ({"source": "mnist"}, "data.source: expected digits, fashion_mnist, folder or s3://bucket/prefix, found"),
            ({"source": "s3://"}, "data.source: expected"),
            ({"source": "folder"}, "data.path: expected the folder with the images"),
            ({"sourse": "digits"}, "data.sourse: unknown key"),
        ],
    )
    def test_impossible_values_are_one_clear_line(self, block, told):
        with pytest.raises(ConfigError) as caught:
            parse(DataConfig, block, "data")
        assert told in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "block",
        [{}, {"source": "s3://bucket/some/prefix"}, {"source": "s3://bucket"}, {"source": "folder", "path": "a"}],
    )
    def test_possible_values_are_taken(self, block):
        assert parse(DataConfig, block, "data").test_fraction == 0.2


class TestDigits:
    def test_each_class_gives_the_same_fraction_to_the_test_split(self):
        source = sources.read(DataConfig(image_size=8), seed=0)
        labels = {split: [int(row["label"]) for row in rows()] for split, rows in source.splits.items()}
        train, test = (np.bincount(labels[split], minlength=10) for split in ("train", "test"))
        assert (train + test).sum() == 1797
        assert np.abs(test - 0.2 * (train + test)).max() <= 0.5
        assert len(source.classes) == 10

    def test_the_seed_draws_the_split_and_equal_seeds_draw_equal_ones(self):
        firsts = []
        for seed in (0, 0, 1):
            rows = sources.read(DataConfig(image_size=8), seed).splits["test"]()
            firsts.append(np.stack([row["image"] for row in itertools.islice(rows, 20)]))
        assert np.array_equal(firsts[0], firsts[1]) and not np.array_equal(firsts[0], firsts[2])

    @pytest.mark.parametrize("channels", [1, 3])
    def test_images_have_the_size_asked_for_and_the_full_range(self, channels):
        source = sources.read(DataConfig(image_size=16, channels=channels), seed=0)
        images = np.stack([row["image"] for row in itertools.islice(source.splits["train"](), 50)])
        assert images.shape == (50, channels, 16, 16) and images.dtype == np.uint8
        assert images.min() == 0 and images.max() == 255
        assert np.ptp(images, axis=1).max() == 0  # grey: equal channels


class TestFashionMnist:
    @pytest.mark.skipif(not (SHARED / "fashion-mnist").is_dir(), reason="../shared/data/fashion-mnist is not here")
    def test_the_published_files(self):
        config = DataConfig(source="fashion_mnist", mirror=str(SHARED / "fashion-mnist"), image_size=28)
        source = sources.read(config, seed=0)
        rows = list(itertools.islice(source.splits["train"](), 200))
        assert source.classes[int(rows[0]["label"])] == "Ankle boot"  # the first picture, as the publisher shows it
        assert rows[0]["image"].shape == (1, 28, 28)
        # the publisher's pictures are 28x28: this size changes no pixel
        assert rows[0]["image"].sum() == 76247
        assert {int(row["label"]) for row in rows} == set(range(10))
        assert sum(1 for _ in source.splits["test"]()) == 10_000

    def test_a_file_that_is_not_the_published_one_is_refused(self, tmp_path):
        for name in fashion_mnist.MD5:
            (tmp_path / name).write_bytes(b"other")
        with pytest.raises(DataError, match="train-images.* has md5 .*, expected"):
            sources.read(DataConfig(source="fashion_mnist", mirror=str(tmp_path)), seed=0)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DataError, match="cannot read train-images-idx3-ubyte.gz .No such file"):
            sources.read(DataConfig(source="fashion_mnist", mirror=str(tmp_path)), seed=0)

    @pytest.mark.parametrize("mirror", ["http://127.0.0.1:9", "nonsense://a", "http://[bad"])
    def test_an_address_that_cannot_be_reached_is_one_line(self, mirror):
        with pytest.raises(DataError, match="cannot fetch train-images") as caught:
            sources.read(DataConfig(source="fashion_mnist", mirror=mirror), seed=0)
        assert "\n" not in str(caught.value)

    @given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
    def test_idx_is_parsed_as_its_format_says(self, shape, seed):
        values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        assert np.array_equal(fashion_mnist.parse_idx(head + values.tobytes()), values)


class TestClassFolders:
    def test_sub_folders_are_classes_and_side_files_are_passed_over(self, tmp_path):
        for name, value in (("cat/b.png", 10), ("cat/deep/er/a.png", 20), ("ant/c.bmp", 30)):
            picture(tmp_path / name, value)
        for name in ("LICENSE", "LICENSE.font", "cat/notes.txt", ".DS_Store", "cat/Thumbs.db", ".git/x.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"text")
        (tmp_path / "empty").mkdir()
        source = sources.read(config_of(tmp_path), seed=0)
        assert source.classes == ("ant", "cat") and source.facts["side_files"] == 3
        found = {int(row["image"][0, 0, 0]): int(row["label"]) for row in rows_of(source)}
        assert found == {10: 1, 20: 1, 30: 0}

    def test_a_file_that_cannot_be_read_is_listed_with_its_reason(self, tmp_path):
        whole = picture(tmp_path / "cat/a.png", 0, (64, 64)).read_bytes()
        picture(tmp_path / "cat/b.png", 0)
        (tmp_path / "cat/cut.png").write_bytes(whole[:-30])
        (tmp_path / "cat/movie.mp4").write_bytes(b"no image")
        (tmp_path / "cat/nothing.jpg").touch()
        picture(tmp_path / "loose.png", 0)
        source = sources.read(config_of(tmp_path), seed=0)
        reasons = {item.path: item.reason for item in items_of(source) if isinstance(item, Rejected)}
        assert set(reasons) == {"cat/cut.png", "cat/movie.mp4", "cat/nothing.jpg", "loose.png"}
        assert "truncated" in reasons["cat/cut.png"] and "outside the class" in reasons["loose.png"]
        assert not any(str(tmp_path) in reason for reason in reasons.values())
        rejected: list[Rejected] = []
        assert len(list(sources.accepted(items_of(source), rejected, max_rejected=4))) == 2 and len(rejected) == 4
        with pytest.raises(DataError, match="allows 3 files to be left out, found at least 4: .*cat/cut.png"):
            list(sources.accepted(items_of(source), [], max_rejected=3))

    def test_a_hopeless_source_is_not_read_to_its_end(self):
        endless = (Rejected(path=str(number), reason="x") for number in itertools.count())
        with pytest.raises(DataError, match="0 .x.; 1 .x.; 2 .x.; 3 .x.; 4 .x.; [.]{3}"):
            list(sources.accepted(endless, [], max_rejected=7))

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            ([], "holds no image"),
            (["README.md", "a/.hidden"], "holds no image"),
            (["a.png", "b.png"], "2 images lie directly in it"),
            (["one/a.png"], "found 1 usable images; expected at least two"),
            (["a/a.png", "one.jsonl", "two.jsonl"], "found one.jsonl, two.jsonl; expected one"),
        ],
    )
    def test_a_folder_that_is_no_source_is_refused_in_one_line(self, tmp_path, names, told):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        with pytest.raises(DataError, match=told) as caught:
            sources.read(config_of(tmp_path), seed=0)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(DataError, match="absent: no such folder"):
            sources.read(config_of(tmp_path / "absent"), seed=0)

    def test_a_sub_folder_that_cannot_be_listed_is_not_passed_over(self, tmp_path, monkeypatch):
        picture(tmp_path / "a/1.png")
        picture(tmp_path / "b/1.png")
        real = folder.os.scandir

        def scandir(path):
            if str(path).endswith("b"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(folder.os, "scandir", scandir)
        with pytest.raises(DataError, match="b: this folder cannot be listed .Permission denied"):
            folder.find_images(tmp_path)

    def test_linked_folders_are_followed_but_not_in_circles(self, tmp_path):
        picture(tmp_path / "elsewhere/a.png")
        picture(tmp_path / "elsewhere/b.png")
        (tmp_path / "set").mkdir()
        (tmp_path / "set/cat").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/again").symlink_to(tmp_path / "elsewhere")
        assert list(folder.find_images(tmp_path / "set")[0]) == ["cat/a.png", "cat/b.png"]

    @settings(max_examples=40)
    @given(
        names=st.sets(st.text("abc/", min_size=1, max_size=8), min_size=2, max_size=30),
        extra=st.sets(st.text("xyz", min_size=1, max_size=4), max_size=5),
        seed=st.integers(0, 9),
    )
    def test_both_splits_have_images_and_added_images_move_no_others(self, names, extra, seed):
        before = folder.held_out(names, seed, 0.5, Path("x"))
        after = folder.held_out(names | extra, seed, 0.5, Path("x"))
        assert before and before < names
        drawn = {name for name in names if sources.split_rank(seed, name) < 0.5}
        if drawn and drawn < names:
            assert after & names == before == drawn

    def test_the_split_has_about_the_fraction_asked_for(self):
        names = {f"class/{number}.png" for number in range(5000)}
        assert 0.17 < len(folder.held_out(names, 0, 0.2, Path("x"))) / 5000 < 0.23


class TestCaptions:
    def write(self, root: Path, lines: list, name: str = "captions.jsonl") -> None:
        (root / name).write_text("\n".join(json.dumps(line) for line in lines) + "\n")

    @pytest.mark.parametrize("key", ["file_name", "image", "file"])
    @pytest.mark.parametrize("caption_key", ["caption", "text"])
    def test_captions_are_padded_utf8(self, tmp_path, key, caption_key):
        captions = {"a.png": "größer", "b.png": "", "c.png": "日本"}
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
        with pytest.raises(DataError, match="no line has a caption or label; expected one of caption, text, kind"):
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
            "twice.png": "names more than one file",
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
            archive.extractall(tmp_path, filter="data")
        root = tmp_path / "noto-emoji-128"
        source = sources.read(config_of(root, channels=3, image_size=32), seed=0)
        rows = list(itertools.islice(source.splits["train"](), 40))
        assert all(isinstance(row, dict) and row["image"].shape == (3, 32, 32) for row in rows)
        listed, _ = folder.find_images(root)
        assert len(listed) == 3414
        corners = np.stack([row["image"][:, 0, 0] for row in rows])
        assert (corners == 255).mean() > 0.8  # transparent corners came out white


class TestLoadImage:
    @pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "tga", "jp2", "ico", "avif"])
    def test_formats(self, tmp_path, suffix):
        path = picture(tmp_path / f"a.{suffix}", (200, 100, 50), (32, 32), "RGB")
        pixels = folder.load_image(path, 16, 3)
        assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8
        assert np.abs(pixels.mean(axis=(1, 2)) - (200, 100, 50)).max() < 4

    @pytest.mark.parametrize(
        ("mode", "value", "expected"),
        [
            ("1", 1, (255, 255, 255)),
            ("LA", (0, 0), (255, 255, 255)),
            ("LA", (40, 255), (40, 40, 40)),
            ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
            ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
            ("I;16", 65535, (255, 255, 255)),
            ("I;16", 128 * 257, (128, 128, 128)),
            ("I", 30000, (117, 117, 117)),
            ("F", 0.5, (128, 128, 128)),
        ],
    )
    def test_modes(self, tmp_path, mode, value, expected):
        path = picture(tmp_path / "a.tif", value, mode=mode)
        assert np.abs(folder.load_image(path, 8, 3)[:, 4, 4].astype(int) - expected).max() <= 1
        grey = Image.new("RGB", (1, 1), expected).convert("L").getpixel((0, 0))
        assert abs(int(folder.load_image(path, 8, 1)[0, 4, 4]) - grey) <= 1

    def test_sixteen_bit_png_and_big_endian_pgm(self, tmp_path):
        ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
        Image.fromarray(ramp).save(tmp_path / "a.png")
        (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + ramp.astype(">u2").tobytes())
        for name in ("a.png", "a.pgm"):
            assert np.array_equal(folder.load_image(tmp_path / name, 8, 1)[0], np.rint(ramp / 257).astype(np.uint8))

    @pytest.mark.parametrize(("mode", "value"), [("I", 70000), ("I", -1), ("F", 1.5), ("F", float("nan"))])
    def test_levels_of_unknown_span_are_refused(self, tmp_path, mode, value):
        path = picture(tmp_path / "a.tif", value, mode=mode)
        with pytest.raises(ValueError, match="grey levels"):
            folder.load_image(path, 8, 1)

    def test_a_palette_with_a_transparent_entry_lies_on_white(self, tmp_path):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
        image.putpixel((0, 0), 2)
        image.save(tmp_path / "a.png", transparency=1)
        pixels = folder.load_image(tmp_path / "a.png", 8, 3)
        assert pixels[:, 0, 0].tolist() == [0, 0, 255] and pixels[:, 7, 7].tolist() == [255, 255, 255]

    def test_exif_orientation_is_applied(self, tmp_path):
        image = Image.new("L", (16, 16), 0)
        image.paste(255, (0, 0, 16, 8))  # the stored upper half is bright
        exif = Image.Exif()
        exif[0x0112] = 6  # EXIF: to be shown rotated by 90 degrees clockwise
        image.save(tmp_path / "a.png", exif=exif)
        pixels = folder.load_image(tmp_path / "a.png", 16, 1)[0]
        assert pixels[:, 12:].min() == 255 and pixels[:, :4].max() == 0

    def test_the_first_frame_of_an_animation_counts(self, tmp_path):
        frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
        for suffix in ("gif", "png", "webp"):
            frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
            assert folder.load_image(tmp_path / f"a.{suffix}", 8, 1).max() <= 12

    @settings(max_examples=25, deadline=None)
    @given(width=st.integers(1, 60), height=st.integers(1, 60), axis=st.sampled_from([0, 1]))
    def test_any_shape_becomes_a_square_about_its_centre(self, width, height, axis):
        pixels = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width), np.uint8)
        straight = sources.square(Image.fromarray(pixels), 8, 1)[0]
        mirrored = sources.square(Image.fromarray(np.ascontiguousarray(np.flip(pixels, axis))), 8, 1)[0]
        assert straight.shape == (8, 8)
        assert np.abs(np.flip(mirrored, axis).astype(int) - straight).max() <= 1  # a crop off the centre would differ

    @pytest.mark.parametrize("size", [(80, 20), (20, 80)])
    def test_the_longer_side_is_cropped_not_squeezed(self, size):
        image = Image.new("L", size, 0)
        centre = 25 if size[0] > size[1] else 0
        image.paste(255, (centre, 25 - centre, size[0] - centre, size[1] - 25 + centre))
        assert sources.square(image, 8, 1).min() == 255

    def test_a_square_of_the_right_size_is_left_as_it_is(self):
        pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
        assert np.array_equal(sources.square(Image.fromarray(pixels), 16, 3), np.moveaxis(pixels, -1, 0))


def test_rows_come_in_the_order_of_names_however_long_the_folder(tmp_path):
    for number in range(90):
        picture(tmp_path / f"c/{number:03}.png", number, (8, 8))
    source = sources.read(config_of(tmp_path, test_fraction=0.5), seed=0)
    for split in source.splits.values():
        values = [int(row["image"][0, 0, 0]) for row in split()]
        assert values == sorted(values) and len(values) > 10
        digests = {hashlib.sha256(b"".join(row["image"].tobytes() for row in split())).digest() for _ in range(2)}
        assert len(digests) == 1
