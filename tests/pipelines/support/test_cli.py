"""What a user sees when something is wrong: one line, an exit code, no traceback."""

import errno
import subprocess
import sys

import pytest

from components.errors import DataError
from pipelines.support import cli
from pipelines.support.paths import ROOT


def test_a_users_error_is_one_line_and_exit_code_2(capsys):
    def main(argv):
        raise DataError("data/images/train: no manifest.json here")

    with pytest.raises(SystemExit) as exit:
        cli.run(main, [])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: data/images/train: no manifest.json here\n"


def test_our_own_bugs_keep_their_traceback():
    def main(argv):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        cli.run(main, [])


@pytest.mark.parametrize("argv", [[], ["a", "b"], ["--help"]])
def test_a_wrong_command_line_prints_its_usage(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.one_argument(argv, "python -m pipelines.train GROUP.NAME")
    assert exit.value.code == 2
    assert "usage: python -m pipelines.train GROUP.NAME" in capsys.readouterr().err


def failing(error: Exception, cause: Exception | None = None):
    def main(argv):
        raise error from cause

    return main


FULL = OSError(errno.ENOSPC, "No space left on device", "data/images/train/00000.image.npy")


@pytest.mark.parametrize(
    ("main", "told"),
    [
        (failing(FULL), "error: data/images/train/00000.image.npy: no space left; make room"),
        (failing(RuntimeError("wrapped"), FULL), "error: data/images/train/00000.image.npy: no space left; make room"),
        (failing(ValueError("I/O error: No space left on device (os error 28)")), "no space left; make room"),
        (failing(RuntimeError("(sqlite3.OperationalError) database or disk is full\n[SQL: ...]")), "MiB free in ."),
        (failing(OSError("368128 requested and 28544 written")), "no space left; make room"),
        (failing(OSError(errno.EROFS, "Read-only file system", "runs/.vae")), "error: runs/.vae: on a read-only file"),
        (
            failing(PermissionError(errno.EACCES, "Permission denied", "runs")),
            "error: runs: permission denied; expected",
        ),
    ],
)
def test_a_fault_of_the_machine_is_one_line_and_exit_code_2(main, told, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.run(main, [])
    assert exit.value.code == 2
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1


TOLD = """
import sys
from pipelines.support import cli

def main(argv):
    for number in range(100_000):
        print("line", number)
    print("half-way", file=sys.stderr)
    open(argv[0], "w").write("done")

cli.run(main)
"""


@pytest.mark.parametrize("streams", ["", " 2>&1"])
def test_a_pipe_that_is_closed_leaves_no_traceback_and_the_work_done(streams, tmp_path):
    done = tmp_path / "done"
    command = f'set -o pipefail; "$1" -c "$2" "$3"{streams} | head -n 1'
    ran = subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, TOLD, str(done)], cwd=ROOT, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (0, "line 0\n")
    assert ran.stderr == ("" if streams else "half-way\n")
    assert done.read_text() == "done"


def test_a_commands_imports_are_not_collected_and_its_work_is():
    told = "import gc, sys; sys.argv[0] = {first!r}; import pipelines; print(gc.isenabled())\n"
    told += "from pipelines.support import cli; cli.run(lambda argv: print(gc.isenabled()), [])"
    for first, expected in (("-m", ["False", "True"]), ("-c", ["True", "True"])):
        done = subprocess.run(
            [sys.executable, "-c", told.format(first=first)], capture_output=True, text=True, cwd=ROOT
        )
        assert done.stdout.split() == expected, done.stderr
