"""Ray's start on a machine that is slow, has long paths, or is full; Ray itself is not started."""

import shutil
from types import SimpleNamespace

import pytest

from components.errors import InputError
from infra.ray_cluster import local_start

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


def failing(*errors: Exception):
    """Raises one after the other, then succeeds."""
    left = list(errors)

    def init() -> None:
        if left:
            raise left.pop(0)

    return init


def test_a_start_that_was_too_slow_is_tried_again_without_what_it_left(capsys):
    cleared = []
    local_start.start(failing(Exception(SLOW), RuntimeError("Failed to start GCS.")), lambda: cleared.append(1))
    assert len(cleared) == 2
    assert capsys.readouterr().err.splitlines() == [
        "Ray's node did not start in time; trying again, 2 left",
        "Ray's node did not start in time; trying again, 1 left",
    ]


def test_a_start_that_is_too_slow_each_time_is_one_line():
    with pytest.raises(InputError, match=r"Ray did not start in 3 tries \(The current node timed out") as caught:
        local_start.start(failing(*[Exception(SLOW)] * 3), lambda: None)
    assert "\n" not in str(caught.value) and "/session_latest" in str(caught.value)


def test_other_errors_are_not_tried_again():
    for error in (ValueError("a bug"), PermissionError(13, "Permission denied", "/tmp/ray")):
        with pytest.raises(type(error)):
            local_start.start(failing(error), lambda: pytest.fail("nothing to clear"))


def test_a_temporary_folder_that_ray_cannot_use_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    local_start.refuse_bad_temporary_folder()
    monkeypatch.setenv("TMPDIR", f"/tmp/{'a' * 60}")
    with pytest.raises(InputError, match=r"TMPDIR: /tmp/a+ is \d+ bytes too long .* such as RAY_TMPDIR=/tmp"):
        local_start.refuse_bad_temporary_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(InputError, match="/tmp.*: 3 MiB free, where Ray needs 64; make room, or set RAY_TMPDIR"):
        local_start.refuse_bad_temporary_folder()
