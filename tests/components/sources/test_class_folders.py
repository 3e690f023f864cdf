import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import sources
from components.data.dataset import Rejected
from components.errors import DataError
from components.sources import described, folder
from tests.components.sources.helpers import config_of, items_of, picture, rows_of


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
            (["one/a.png"], "found 1 usable images; expected at least two"),
            (["a/a.png", "one.jsonl", "two.jsonl"], "found one.jsonl, two.jsonl; expected one table"),
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
            folder.list_files(tmp_path)

    def test_linked_folders_are_followed_but_not_in_circles(self, tmp_path):
        picture(tmp_path / "elsewhere/a.png")
        picture(tmp_path / "elsewhere/b.png")
        (tmp_path / "set").mkdir()
        (tmp_path / "set/cat").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/again").symlink_to(tmp_path / "elsewhere")
        assert list(folder.list_files(tmp_path / "set").images) == ["cat/a.png", "cat/b.png"]

    @settings(max_examples=40)
    @given(
        names=st.sets(st.text("abc/", min_size=1, max_size=8), min_size=2, max_size=30),
        extra=st.sets(st.text("xyz", min_size=1, max_size=4), max_size=5),
        seed=st.integers(0, 9),
    )
    def test_both_splits_have_images_and_added_images_move_no_others(self, names, extra, seed):
        before = described.held_out(names, seed, 0.5)
        after = described.held_out(names | extra, seed, 0.5)
        assert before and before < names
        drawn = {name for name in names if sources.split_rank(seed, name) < 0.5}
        if drawn and drawn < names:
            assert after & names == before == drawn

    def test_the_split_has_about_the_fraction_asked_for(self):
        names = {f"class/{number}.png" for number in range(5000)}
        assert 0.17 < len(described.held_out(names, 0, 0.2)) / 5000 < 0.23


def test_rows_come_in_the_order_of_names_however_long_the_folder(tmp_path):
    for number in range(90):
        picture(tmp_path / f"c/{number:03}.png", number, (8, 8))
    source = sources.read(config_of(tmp_path, test_fraction=0.5), seed=0)
    for split in source.splits.values():
        values = [int(row["image"][0, 0, 0]) for row in split()]
        assert values == sorted(values) and len(values) > 10
        digests = {hashlib.sha256(b"".join(row["image"].tobytes() for row in split())).digest() for _ in range(2)}
        assert len(digests) == 1
