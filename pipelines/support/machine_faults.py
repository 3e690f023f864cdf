"""Faults of the machine in words: what is full, read-only or not allowed, and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS,)
_REFUSED = (errno.EACCES, errno.EPERM)
# libraries tell of the same in errors of their own: safetensors, SQLite, torch, Ray
_FULL_TEXTS = ("No space left on device", "database or disk is full", "Local disk is full", "Disk quota exceeded")
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy, which tells no errno
_READ_ONLY_TEXTS = ("Read-only file system", "attempt to write a readonly database")


def describe(error: BaseException) -> str | None:
    """One line about what is at fault, where and what to do; None of an error that is no fault of the machine."""
    for cause in _chain(error):
        code = cause.errno if isinstance(cause, OSError) else None
        text = str(cause)
        if code in _FULL or any(known in text for known in _FULL_TEXTS) or _SHORT_WRITE.search(text):
            return f"{_place(cause)}: no space left; make room, the same command goes on from what is there"
        if code in _READ_ONLY or any(known in text for known in _READ_ONLY_TEXTS):
            return f"{_place(cause)}: on a read-only file system; expected a folder that can be written to"
        if code in _REFUSED and cause.filename:
            return f"{_place(cause)}: permission denied; expected a file or folder that this user may use"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _place(error: BaseException) -> str:
    """The file that an error names, or where this process works, and how much is free there."""
    name = getattr(error, "filename", None)
    if not name:
        free = ", ".join(f"{shutil.disk_usage(folder).free // 2**20} MiB free in {folder}" for folder in _folders())
        return f"{Path.cwd()} ({free})"
    return os.fsdecode(name)


def _folders() -> list[str]:
    return [folder for folder in dict.fromkeys([".", os.environ.get("TMPDIR") or "/tmp"]) if os.path.isdir(folder)]


class WhileRead:
    """A standard stream whose reader may go away, as of `| head`: what is written then goes nowhere, and the work goes
    on to its end."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._leave()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._leave()

    def _leave(self) -> None:
        """From here on into nothing, what is buffered too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """The time of a command whose standard output and error may go through a pipe that is closed before its end."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(WhileRead, before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
