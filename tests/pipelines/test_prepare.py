import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components import sources
from components.data.dataset import Dataset, verify
from components.data.media import medium
from components.errors import DataError
from components.files import sha256_folder
from components.sources import DataConfig
from pipelines.prepare import on_lengths, open_source, prepare, summary
from tests.components.sources.helpers import png, write_tar


def make_folder(root: Path, count: int = 12) -> Path:
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (10, 10), number * 10).save(path)
    return root


def run(config: DataConfig, tmp_path: Path, target: str = "data/images", seed: int = 0):
    target = tmp_path / target
    return prepare(open_source(config, seed, tmp_path / "cache"), config, target), target


def test_digits_become_two_whole_data_sets(tmp_path):
    manifests, target = run(DataConfig(image_size=8, rows_per_shard=500), tmp_path)
    train, test = (Dataset(target / split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359) and len(train.manifest.shards) == 3
    for dataset in (train, test):
        assert verify(dataset.folder) == dataset.manifest == manifests[dataset.folder.name]
        assert dataset.manifest.columns["image"].shape == (1, 8, 8)
        assert dataset.manifest.value_range == (0, 255) and dataset.manifest.classes[3] == "three"
    # no picture of the test split is in the train split, so far as the pictures themselves differ
    rows = [next(dataset.chunks(2000))["image"].flatten(1).numpy() for dataset in (train, test)]
    assert len(np.unique(np.concatenate(rows), axis=0)) == 1797


def test_equal_input_gives_equal_bytes_and_another_seed_another_split(tmp_path):
    config = DataConfig(source="folder", path=make_folder(tmp_path / "own"), image_size=8, rows_per_shard=3)
    targets = [run(config, tmp_path, name, seed)[1] for name, seed in (("one", 0), ("two", 0), ("other", 1))]
    digests = [sha256_folder(target) for target in targets]
    assert digests[0] == digests[1] != digests[2]


def test_an_earlier_output_is_replaced_whole(tmp_path):
    config = DataConfig(source="folder", path=make_folder(tmp_path / "own"), image_size=8)
    target = run(config.model_copy(update={"rows_per_shard": 1}), tmp_path)[1]
    run(config, tmp_path)
    assert sorted(path.name for path in (target / "test").iterdir()) == [
        "00000.image.npy",
        "00000.label.npy",
        "manifest.json",
    ]


def test_rejected_files_are_in_the_manifest_of_their_split_and_the_summary(tmp_path):
    own = make_folder(tmp_path / "own")
    for number in range(12):
        (own / "a" / f"broken{number}.png").write_bytes(b"no image")
    config = DataConfig(source="folder", path=own, image_size=8, max_rejected=12, test_fraction=0.5)
    manifests, target = run(config, tmp_path)
    left_out = [file.path for manifest in manifests.values() for file in manifest.rejected]
    assert sorted(left_out) == sorted(f"a/broken{number}.png" for number in range(12))
    assert all(manifest.rejected for manifest in manifests.values())
    assert sum(manifest.count for manifest in manifests.values()) == 12
    stored = json.loads((target / "train/manifest.json").read_text())["rejected"]
    assert stored[0]["reason"].startswith("not an image")
    told = summary(manifests, target)
    assert "classes (2): a, b" in told and "left out (12" in told and told.count("broken") == 10
    assert f"{manifests['test'].count} images 1x8x8 in 1 shards" in told


@pytest.mark.parametrize("had_output", [False, True])
def test_too_many_rejected_files_leave_everything_as_it_was(tmp_path, had_output):
    config = DataConfig(source="folder", path=make_folder(tmp_path / "own"), image_size=8)
    if had_output:
        run(config, tmp_path)
    before = sha256_folder(tmp_path / "data")
    (config.path / "a/broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="max_rejected allows 0 .* a/broken.png"):
        run(config, tmp_path)
    assert sha256_folder(tmp_path / "data") == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == (["images"] if had_output else [])


def test_a_split_without_a_readable_image_is_refused(tmp_path):
    for name in ("a/1.png", "a/2.png", "a/3.png"):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).touch()
    config = DataConfig(source="folder", path=tmp_path / "own", max_rejected=3)
    with pytest.raises(
        DataError, match=r"no readable image for the train split; expected one; left out \d: a/\d.png \(not"
    ):
        run(config, tmp_path)
    assert not (tmp_path / "data/images").exists()


def test_a_bucket_is_mirrored_and_read_as_a_folder(tmp_path, monkeypatch):
    asked = []

    def mirror(uri: str, folder: Path, only: list | None) -> None:
        assert only is None
        asked.append((uri, folder))
        make_folder(folder)

    monkeypatch.setattr("pipelines.prepare.mirror_prefix", mirror)
    config = DataConfig(source="s3://bucket/set", image_size=8)
    manifests, _ = run(config, tmp_path)
    run(config, tmp_path, "again")
    ((uri, folder), again) = asked
    assert uri == "s3://bucket/set" and folder.parent == tmp_path / "cache" and again == (uri, folder)
    assert manifests["train"].source["source"] == uri and manifests["train"].classes == ("a", "b")


def test_tars_in_a_bucket_are_read_as_tars_here(tmp_path, s3):
    for number in range(2):
        files = {f"{n}.{end}": part for n in range(4) for end, part in (("png", png(9 * n)), ("txt", f"text {n}"))}
        path = write_tar(tmp_path / f"{number}.tar", files | ({} if number else {"x.txt": "no image"}))
        s3.upload_file(str(path), "bucket", f"set/{number}.tar")
    config = DataConfig(source="s3://bucket/set", image_size=8, max_rejected=1, test_fraction=0.4)
    manifests, target = run(config, tmp_path)
    assert sum(manifest.count for manifest in manifests.values()) == 8
    assert [file.path for manifest in manifests.values() for file in manifest.rejected] == ["0.tar/x"]
    assert manifests["train"].source["source"] == "s3://bucket/set" and "caption" in manifests["train"].columns
    assert "0.tar/x: expected one file that is no text, found txt" in summary(manifests, target)


def test_how_many_clips_are_cut_and_filled_is_told(tmp_path):
    for number, seconds in enumerate((0.1, 0.25, 0.25, 0.4, 0.9)):
        with wave.open(str(tmp_path / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.full(round(8000 * seconds), 9, np.int16).tobytes())
    config = DataConfig(source="folder", medium="audio", path=tmp_path, sample_rate=8000, seconds=0.25)
    seconds: list[float] = []
    manifests = prepare(open_source(config, 0, tmp_path), config, tmp_path / "sets", seconds)
    assert sum(manifest.count for manifest in manifests.values()) == len(seconds) == 5
    assert "seconds" not in manifests["train"].columns
    assert on_lengths(seconds, config, "audio") == (
        "of 5 clips, each a row of 0.25 s: 2 cut, the longest of 0.9 s; 1 filled, the shortest of 0.1 s",
    )
    assert on_lengths([0.25, 0.2501], config, "audio") == on_lengths([], config, "audio") == ()


def test_how_many_films_are_cut_is_told(tmp_path):
    of = medium("video", rate=8)
    for number, frames in enumerate((9, 9, 21)):
        row = torch.linspace(-1, 1, frames).view(1, frames, 1, 1).expand(1, frames, 16, 16)
        (tmp_path / f"{number}.mp4").write_bytes(of.encode(row, "mp4"))
    config = DataConfig(source="folder", medium="video", path=tmp_path)
    seconds: list[float] = []
    prepare(open_source(config, 0, tmp_path), config, tmp_path / "sets", seconds)
    assert on_lengths(seconds, config, "video") == ("of 3 videos, each a row of 1.125 s: 1 cut, the longest of 2.62 s",)


def test_colour_has_three_channels(tmp_path):
    config = DataConfig(source="folder", path=make_folder(tmp_path / "own"), image_size=12, channels=3)
    manifests, _ = run(config, tmp_path)
    assert manifests["train"].columns["image"].shape == (3, 12, 12)
    assert isinstance(sources.read(config, 0), sources.Source)
