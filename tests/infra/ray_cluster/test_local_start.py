"""Ray's start on a machine that is slow, has long paths, or is full; Ray itself is not started."""

import contextlib
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from components.errors import InputError
from infra.config import ClusterConfig
from infra.ray_cluster import local_start, ray_session
from infra.ray_train.driver import LocalTrainer

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


def test_sigterm_stays_what_it_was_before_ray_started(monkeypatch):
    """Ray puts a handler of its own in the place, which aborts the process: a training could not tell that it ended."""

    def init(**settings):
        signal.signal(signal.SIGTERM, lambda *_: None)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: type("Context", (), {"gcs_address": "here"}))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_session.closed_session, "opened", contextlib.nullcontext)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with ray_session.session(ClusterConfig(), Path("/")) as address:
            assert address == "here" and signal.getsignal(signal.SIGTERM) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_interrupts_a_training_as_it_does_elsewhere():
    """Ray Train's own handler ends the process with status 0."""
    before = signal.getsignal(signal.SIGINT)
    LocalTrainer._register_sigint_handler(None, None)
    assert signal.getsignal(signal.SIGINT) is before
