"""Files and folders appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest

from components import files
from components.files import sha256, sha256_folder, whole_folder, write_json, write_whole


def content(folder) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_folder_appears_when_its_block_ends(tmp_path):
    target = tmp_path / "deep" / "target"
    with whole_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("new")
        assert not target.exists()
        assert folder.parent == target.parent, "a rename must not cross file systems"
    assert content(target) == {"sub/file": "new"}
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_folder_replaces_the_old_one_wholly(tmp_path):
    target = tmp_path / "target"
    for name in ("old", "new"):
        with whole_folder(target) as folder:
            (folder / name).write_text(name)
    assert content(target) == {"new": "new"}


def test_no_moment_shows_a_part_of_the_old_folder(tmp_path, monkeypatch):
    target, seen = tmp_path / "target", []
    with whole_folder(target) as folder:
        (folder / "old").write_text("old")

    def removed(path, **options):
        seen.append(content(target))

    with whole_folder(target) as folder:
        (folder / "new").write_text("new")
        monkeypatch.setattr(files.shutil, "rmtree", removed)
    assert seen and all(there == {"new": "new"} for there in seen)


def test_what_cannot_take_its_place_leaves_the_old_folder_there(tmp_path, monkeypatch):
    target, rename = tmp_path / "target", files.Path.rename
    with whole_folder(target) as folder:
        (folder / "old").write_text("old")

    def failing(path, to):
        if (path / "new").exists():
            raise OSError("no room")
        return rename(path, to)

    monkeypatch.setattr(files.Path, "rename", failing)
    with pytest.raises(OSError, match="no room"), whole_folder(target) as folder:
        (folder / "new").write_text("new")
    assert content(target) == {"old": "old"} and [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [False, True])
def test_failed_folder_leaves_nothing(tmp_path, error, existing):
    target = tmp_path / "target"
    if existing:
        target.mkdir()
        (target / "old").write_text("old")
    with pytest.raises(error), whole_folder(target) as folder:
        (folder / "half").write_text("half")
        raise error
    assert content(tmp_path) == ({"target/old": "old"} if existing else {})
    assert len(list(tmp_path.iterdir())) == existing


def test_folder_is_readable_by_others(tmp_path):
    with whole_folder(tmp_path / "target") as folder:
        (folder / "sub").mkdir(mode=0o700)
        (folder / "sub" / "file").touch(mode=0o600)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "target", *tmp_path.rglob("target/**/*")]
    }
    assert modes == {"target": 0o755, "sub": 0o755, "file": 0o644}


@pytest.mark.parametrize("value", [b"bytes\0", "text"])
def test_file_is_written_and_replaced(tmp_path, value):
    target = tmp_path / "deep" / "file"
    for new in (b"old", value):
        write_whole(target, new)
    assert target.read_bytes() == (value if isinstance(value, bytes) else value.encode())
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["chmod", "replace"])
def test_failed_file_leaves_the_old_one(tmp_path, monkeypatch, call):
    target = tmp_path / "file"
    write_whole(target, "old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(target, "new")
    monkeypatch.undo()
    assert content(tmp_path) == {"file": "old"}


def test_equal_values_are_equal_bytes(tmp_path):
    write_json(tmp_path / "a", {"x": 1, "y": [1.5, None]})
    write_json(tmp_path / "b", {"y": [1.5, None], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_text().endswith("}\n")
    assert sha256(tmp_path / "a") == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_folder_digest_sees_names_and_contents(tmp_path):
    def digest(layout: dict[str, str], pattern: str = "**/*") -> str:
        with whole_folder(tmp_path / "folder") as folder:
            for name, text in layout.items():
                write_whole(folder / name, text)
        return sha256_folder(tmp_path / "folder", pattern)

    base = digest({"a": "1", "sub/b": "2"})
    assert digest({"sub/b": "2", "a": "1"}) == base
    assert len({base, digest({"a": "1", "sub/b": "3"}), digest({"a": "1", "sub/c": "2"}), digest({"a": "1"})}) == 4
    assert digest({"a.py": "1", "b.txt": "2"}, "**/*.py") == digest({"a.py": "1", "b.txt": "3"}, "**/*.py")
    os.utime(tmp_path / "folder" / "a.py", (0, 0))
    assert sha256_folder(tmp_path / "folder", "**/*.py") == digest({"a.py": "1"})
