"""What every stage's command line shares: errors in one line, and quiet libraries."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from components import memory
from components.errors import InputError, TrainingError
from components.files import write_json
from pipelines.support import machine_faults

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}

DURATIONS = Path(".cache/durations")  # seconds of each stage's last run under DVC
PR_SET_PDEATHSIG = 1  # prctl(2)


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Runs a stage and exits: 0, or 2 with one line on stderr where the user can mend it."""
    memory.keep_freed()
    gc.freeze()
    gc.enable()  # off while the verb was imported, see pipelines/__init__.py
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGTERM, _interrupt)
    _end_with_dvc()
    # else the interpreter, as it ends, looks for cycles among all that torch, Ray and MLflow have made: a second or two
    atexit.register(gc.freeze)
    with machine_faults.readers_may_leave():
        _run(main, sys.argv[1:] if argv is None else argv)


def _run(main: Callable[[list[str]], None], argv: list[str]) -> None:
    began = time.monotonic()
    try:
        main(argv)
        _record_duration(time.monotonic() - began)
    except (InputError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (told := machine_faults.describe(error)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)


def is_stage() -> bool:
    """Whether DVC runs this as a stage, on the machine where it runs the others."""
    return "DVC_STAGE" in os.environ


def _record_duration(seconds: float) -> None:
    """For the report: DVC keeps no times."""
    if is_stage():
        write_json(DURATIONS / f"{os.environ['DVC_STAGE']}.json", {"seconds": round(seconds, 1)})


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("terminated")  # so that what was half-written is cleared away


def _end_with_dvc() -> None:
    """A stage whose dvc was killed would go on unseen, and its rerun beside it: on Linux it ends with dvc instead."""
    if is_stage():
        end_with_parent()


def end_with_parent() -> None:
    """On Linux this process is asked to end when the one that started it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def expect_writable(folder: Path) -> None:
    """Raises InputError of a folder that nothing can be written to, before minutes go into what would be."""
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to; expected a folder of this user's, not read-only")


def one_argument(argv: list[str], usage: str) -> str:
    """The only argument of a stage. Exits with its usage otherwise."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print(f"usage: {usage}", file=sys.stderr)
        sys.exit(2)
    return argv[0]


def no_arguments(argv: list[str], usage: str) -> None:
    """Exits with the usage of a stage that takes no argument, if there is one."""
    if argv:
        print(f"usage: {usage}", file=sys.stderr)
        sys.exit(2)
