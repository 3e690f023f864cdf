"""Files and folders that appear whole or not at all, are read with their faults told, or are held alone."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.errors import DataError, InputError


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`; takes target's place when the block succeeds, vanishes when it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    working = _beside(target)
    try:
        yield working
        working.chmod(0o755)  # mkdtemp and safetensors write for the owner alone; outputs are read by others too
        for path in working.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if target.exists():
            _replace(target, working)
        else:
            working.rename(target)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _replace(target: Path, working: Path) -> None:
    """By renaming alone; what was there is deleted after, since a kill amid that would leave half of it."""
    old = _beside(target)
    target.rename(old / target.name)
    try:
        working.rename(target)
    except BaseException:
        (old / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))


def write_whole(target: Path, content: bytes | str) -> None:
    """Writes one file so that readers see the old content or the new, never a part."""
    target.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, working = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(working, 0o644)
        os.replace(working, target)
    except BaseException:
        os.unlink(working)
        raise


@contextlib.contextmanager
def held_alone(path: Path, holder: str, refusal: Callable[[str], str]) -> Iterator[None]:
    """Keeps other processes of this machine from the block by a lock on a file, which goes with its process, however
    that ends. Raises InputError of what `refusal` makes of the `holder` that another wrote there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(refusal(file.read().strip())) from None
        file.truncate(0)
        file.write(f"{holder}\n")
        file.flush()
        yield


def read_json(path: Path, cure: str = "") -> Any:
    """Raises DataError of what is missing, cut off or otherwise no JSON, with `cure` behind it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing{cure}") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise DataError(f"{path}: not valid JSON ({error}){cure}") from None


def write_json(target: Path, value: object) -> None:
    """Sorted keys and a final newline, so that equal values are equal bytes."""
    write_whole(target, json.dumps(value, indent=2, sort_keys=True) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path, pattern: str = "**/*") -> str:
    """Hex digest over the names and contents of the files below `folder` that match."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.glob(pattern) if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()
