"""Checkpoints are whole or refused, and a damaged one costs only its own steps."""

import errno
from types import SimpleNamespace

import pytest
import ray.train
import torch

from components.errors import DataError, StorageError
from components.training.loop import State
from infra.ray_train import checkpoints
from infra.storage.store import Store


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    checkpoints.write_state(tmp_path, State(3, {}, {}, {}))
    assert checkpoints.read_state(tmp_path, torch.device("cpu")).step == 3
    path = tmp_path / checkpoints.STATE_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"state\.pt: checkpoint is missing, truncated or altered"):
        checkpoints.read_state(tmp_path, torch.device("cpu"))


def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path, monkeypatch, caplog):
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint_2026-01-01_00-00-0{step}"
        folder.mkdir()
        checkpoints.write_state(folder, State(step, {}, {}, {}))
    (folder / checkpoints.STATE_FILE).write_bytes(b"")
    newest = ray.train.Checkpoint.from_directory(folder)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: newest)
    assert checkpoints.restore(torch.device("cpu")).step == 2
    assert "going back to the checkpoint before" in caplog.text


def test_rays_own_list_beside_the_checkpoints_is_none(tmp_path, caplog):
    folder = tmp_path / "checkpoint_2026-01-01_00-00-01"
    folder.mkdir()
    checkpoints.write_state(folder, State(1, {}, {}, {}))
    (tmp_path / "checkpoint_manager_snapshot.json").write_text("{}")
    assert checkpoints.newest_whole(Store.open(tmp_path), "cpu").step == 1
    assert not caplog.text


def test_a_store_that_does_not_answer_says_nothing_of_the_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "checkpoint_2026-01-01_00-00-01").mkdir()

    def no_answer(store):
        raise StorageError(f"{store.path}: no answer")

    monkeypatch.setattr(Store, "on_disk", no_answer)
    with pytest.raises(StorageError, match="no answer"):
        checkpoints.newest_whole(Store.open(tmp_path), "cpu")


def test_nothing_is_left_of_a_checkpoint_that_could_not_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_experiment_name=lambda: "vae"))
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"), checkpoints.written_checkpoint(State(1, {}, {}, {})):
        pass
    assert not any(tmp_path.iterdir())
