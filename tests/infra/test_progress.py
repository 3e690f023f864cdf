"""What long work tells while it goes on."""

import time

import pytest

from infra.progress import line, told


@pytest.fixture
def clock(monkeypatch):
    """Seconds pass when it is moved."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def batches(clock, seconds: float, sizes: tuple[int, ...]):
    for size in sizes:
        clock[0] += seconds
        yield size


def test_a_line_every_ten_seconds_without_a_terminal(clock, capsys):
    assert list(told(batches(clock, 4, (50,) * 8), "ldm", "images", 400, int)) == [50] * 8
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "ldm: 150/400 images  12 images/s  20 s left",
        "ldm: 300/400 images  12 images/s  8 s left",
    ]


def test_what_is_soon_over_says_nothing(clock, capsys):
    assert list(told(batches(clock, 3, (1, 1, 1)), "ldm", "images", 3)) == [1, 1, 1]
    assert list(told(batches(clock, 60, (3,)), "ldm", "images", 3, int)) == [3], "nor what is over with its first part"
    assert capsys.readouterr().out == ""


def test_where_nobody_knows_how_many_there_are(clock, capsys):
    assert len(list(told(batches(clock, 11, (1, 1)), "prepare train", "clips"))) == 2
    assert capsys.readouterr().out.splitlines() == [
        "prepare train: 1 clips  0.091 clips/s",
        "prepare train: 2 clips  0.091 clips/s",
    ]
    assert line(70_000, None, "images", 35) == "70000 images  2000 images/s"


def test_a_bar_on_a_terminal(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(told([20, 30], "ldm", "images", 50, int)) == [20, 30]
    found = capsys.readouterr()
    assert found.out == "" and "ldm" in found.err
