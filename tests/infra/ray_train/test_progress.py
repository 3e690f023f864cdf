"""Progress without a terminal: when lines come, and what stands in them."""

import infra.ray_train.progress as progress
from infra.ray_train.progress import RATE, Lines


def test_the_first_line_comes_at_once_and_the_next_with_rate_and_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = Lines("ldm", 1000, batch_size=8, start=100)
    assert capsys.readouterr().out == "ldm: step 100/1000, workers start\n"
    lines.precision("bfloat16", emulated=False)
    assert capsys.readouterr().out == "ldm: computes in bfloat16\n"
    for second in (3, 6, 9, 12, 15):
        now[0] = float(second)
        lines.progress(100 + 10 * second, 80.0)
    assert capsys.readouterr().out.splitlines() == [
        "ldm: step 130/1000  80 images/s  87 s left",
        "ldm: step 250/1000  80 images/s  75 s left",
    ]
    lines.figures(300, {"validation/recall": 0.5})  # of a checkpoint, no steps
    lines.figures(1000, {"denoise/loss": 0.25, RATE: 80.0})
    assert capsys.readouterr().out == "ldm: step 1000/1000  80 images/s  denoise/loss 0.25\n"


def test_a_rate_below_one_clip_a_second_is_told(capsys):
    progress.Lines("mel", 10, batch_size=4, unit="clips").progress(1, 0.25)
    assert capsys.readouterr().out.endswith("mel: step 1/10  0.25 clips/s  144 s left\n")
