"""Ray's start on this machine: what it needs of the folder for temporary files, and further tries where it is slow."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir

from components.errors import InputError

TRIES = 3
_SOCKET = "session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"  # Ray 2.60, below its temporary folder
_LONGEST = 103 if sys.platform == "darwin" else 107  # bytes of a Unix socket's path
_ROOM = 64 * 2**20  # bytes: logs, sockets, a little of the object store
# Ray 2.60 gives its processes 30 s, which a loaded machine may take; these are its words for that
_TOO_SLOW = ("timed out", "Timed out", "ailed to start", "Failed to get node info", "not found in NodeInfo")


def refuse_bad_temporary_folder() -> None:
    """Raises InputError of a folder for temporary files whose path is too long for Ray's sockets, or that is full."""
    folder = Path(get_default_ray_temp_dir())
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    spare = _LONGEST - len(os.fsencode(folder / _SOCKET.format(pid=os.getpid())))
    if spare < 0:
        raise InputError(
            f"{variable}: {folder.parent} is {-spare} bytes too long for Ray's sockets below it; expected a shorter "
            "path, such as RAY_TMPDIR=/tmp"
        )
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if (free := shutil.disk_usage(there).free) < _ROOM:
        raise InputError(
            f"{there}: {free // 2**20} MiB free, where Ray needs {_ROOM // 2**20}; make room, or set RAY_TMPDIR to a "
            "folder that has it"
        )


def start(init: Callable[[], object], clear: Callable[[], None]) -> None:
    """Calls `init`, again where Ray's processes came up too slowly; `clear` ends those that a failed try has left.
    Raises InputError when that did not help."""
    for left in reversed(range(TRIES)):
        try:
            init()
            return
        except Exception as error:
            told = " ".join(str(error).split())
            if isinstance(error, OSError | InputError) and not isinstance(error, ConnectionError | TimeoutError):
                raise
            if not any(words in told for words in _TOO_SLOW):
                raise
            clear()
            if not left:
                raise InputError(
                    f"Ray did not start in {TRIES} tries ({told[:120]}); a loaded machine takes too long: wait for "
                    f"other work, then run it again. Ray's logs: {get_default_ray_temp_dir()}/session_latest"
                ) from None
            print(f"Ray's node did not start in time; trying again, {left} left", file=sys.stderr, flush=True)
