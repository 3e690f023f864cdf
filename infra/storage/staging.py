"""Folders under the hash of their content, in a bucket and in a cache on each node.

A folder is staged once: what the bucket has is not sent again, not even as part of another folder. A node fetches it
once for all its processes, checks every file, takes up an interrupted download, and drops what was used longest ago.

    <storage>/inputs/files/ab/ab12...   a file by its sha256
    <storage>/inputs/12cd....json       a folder: path, size and sha256 of each file
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.exceptions as boto
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from components.errors import DataError, StorageError
from components.files import sha256
from infra.storage.buckets import BODY_ATTEMPTS, BROKEN_BODY, SCHEME, WORK, connect, in_one_line, parse_uri

if TYPE_CHECKING:
    from botocore.client import BaseClient

INPUTS = "inputs"
CACHE = "LATENT_FOUNDRY_CACHE"  # environment: a node's folder for what it fetched
_WORKERS = 16
_PART = 64 << 20  # bytes of a part of an upload
_CHUNK = 1 << 20  # bytes
_held: dict[Path, int] = {}  # locks of this process's inputs, by entry: what is in use is not evicted


@dataclass(frozen=True)
class File:
    """`path` is relative to its folder."""

    path: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Staged:
    """A folder in storage. `cache_bytes` is what a node's cache may hold; this folder itself always may."""

    storage: str
    hash: str
    cache_bytes: int = 100 << 30

    def local(self) -> Path:
        """The folder on this machine, until this process ends."""
        return fetch(self, node_cache())


def local(place: Path | Staged) -> Path:
    """A folder of this machine: itself, or what was staged."""
    return place.local() if isinstance(place, Staged) else place


def node_cache() -> Path:
    return Path(os.environ.get(CACHE) or Path(tempfile.gettempdir()) / f"latent-foundry-{os.getuid()}")


def stage(folder: Path, storage: str, cache_bytes: int = 100 << 30, known: Mapping[str, str] | None = None) -> Staged:
    """Brings a folder into s3://bucket/prefix, or one file as a folder that holds nothing else. `known`: sha256 of
    files, by path, that need not be read for it.

    Raises DataError in one line if storage cannot be written to; what was sent before that stays and counts."""
    files = list_files(folder, known or {})
    listing = json.dumps([vars(file) for file in files], sort_keys=True).encode()
    staged = Staged(storage, hashlib.sha256(listing).hexdigest(), cache_bytes)
    bucket, prefix = _place(storage)
    with in_one_line(storage):
        client = connect(Config(**WORK, max_pool_connections=_WORKERS))
        if _has(client, bucket, f"{prefix}{staged.hash}.json", len(listing)):
            return staged
        each = {file.sha256: file for file in files}.values()  # equal files once
        send = functools.partial(_send, client, bucket, prefix, folder.parent if folder.is_file() else folder)
        with ThreadPoolExecutor(_WORKERS) as pool:
            for _ in pool.map(send, each):
                pass
        client.put_object(Bucket=bucket, Key=f"{prefix}{staged.hash}.json", Body=listing)  # last: now it is whole
    return staged


def list_files(folder: Path, known: Mapping[str, str]) -> list[File]:
    """Every file below a folder, in order, or the one file that it is. Raises DataError if there is none."""
    base = folder.parent if folder.is_file() else folder
    found = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    if not found:
        raise DataError(f"{folder}: no file to stage; expected what a stage before wrote")
    names = [path.relative_to(base).as_posix() for path in found]
    return [
        File(name, path.stat().st_size, known.get(name) or sha256(path))
        for name, path in zip(names, found, strict=True)
    ]


def fetch(staged: Staged, cache: Path) -> Path:
    """The staged folder below `cache`, fetched unless a process of this machine did already, and held for as long as
    this process lives. Raises DataError."""
    entry = cache / staged.hash
    if entry not in _held:
        cache.mkdir(parents=True, exist_ok=True)
        lock = os.open(cache / f"{staged.hash}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)  # waits for a process that fetches it
            while not entry.is_dir():
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not entry.is_dir():
                    _download(staged, cache)
                fcntl.flock(lock, fcntl.LOCK_SH)  # lets go for a moment, in which it may be evicted
        except BaseException:
            os.close(lock)
            raise
        _held[entry] = lock
    os.utime(cache / f"{staged.hash}.lock")  # when it was last used
    return entry


def release(entry: Path) -> None:
    """Gives up an input that `fetch` returned: it may be evicted now."""
    os.close(_held.pop(entry))


def _place(storage: str) -> tuple[str, str]:
    bucket, prefix = parse_uri(storage)
    return bucket, f"{prefix}{INPUTS}/"


def _key(prefix: str, digest: str) -> str:
    return f"{prefix}files/{digest[:2]}/{digest}"


def _has(client: BaseClient, bucket: str, key: str, size: int) -> bool:
    try:
        return client.head_object(Bucket=bucket, Key=key)["ContentLength"] == size
    except boto.ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
            return False
        raise


def _send(client: BaseClient, bucket: str, prefix: str, folder: Path, file: File) -> None:
    key = _key(prefix, file.sha256)
    if not _has(client, bucket, key, file.size):
        transfer = TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, use_threads=False)
        client.upload_file(str(folder / file.path), bucket, key, Config=transfer)


def _download(staged: Staged, cache: Path) -> None:
    bucket, prefix = _place(staged.storage)
    working = cache / f"{staged.hash}.partial"
    with in_one_line(f"{staged.storage}/{INPUTS}/{staged.hash}"):
        client = connect(Config(**WORK, max_pool_connections=_WORKERS))
        listing = client.get_object(Bucket=bucket, Key=f"{prefix}{staged.hash}.json")["Body"].read()
        if hashlib.sha256(listing).hexdigest() != staged.hash:
            raise DataError(f"{SCHEME}{bucket}/{prefix}{staged.hash}.json: altered; its sha256 is not its name")
        files = [File(**file) for file in json.loads(listing)]
        evict(cache, staged.cache_bytes - sum(file.size for file in files))
        get = functools.partial(_get, client, bucket, prefix, working)
        with ThreadPoolExecutor(_WORKERS) as pool:
            for _ in pool.map(get, files):
                pass
        os.replace(working, cache / staged.hash)


def _get(client: BaseClient, bucket: str, prefix: str, working: Path, file: File) -> None:
    """One file, whole and checked; what an earlier attempt left of it is continued."""
    target = working / file.path
    part = working / f"{file.path}.part"
    if target.is_file() and target.stat().st_size == file.size:
        return  # it was checked before it got its name
    target.parent.mkdir(parents=True, exist_ok=True)
    key = _key(prefix, file.sha256)
    for attempt in itertools.count(1):
        try:
            _continue(client, bucket, key, part, file.size)
            if (found := sha256(part)) == file.sha256:
                break
            part.unlink()
            told = f"content with sha256 {found} arrived"
        except BROKEN_BODY as error:
            told = str(error)
        if attempt == BODY_ATTEMPTS:
            raise StorageError(f"{SCHEME}{bucket}/{key}: {told}, {attempt} times in a row")
        time.sleep(0.2 * 2**attempt)
    os.replace(part, target)


def _continue(client: BaseClient, bucket: str, key: str, part: Path, size: int) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if have > size:
        part.unlink()
        have = 0
    if have == size:
        part.touch()
        return
    answer = client.get_object(Bucket=bucket, Key=key, **({"Range": f"bytes={have}-"} if have else {}))
    with part.open("ab") as file:
        for chunk in answer["Body"].iter_chunks(_CHUNK):
            file.write(chunk)


def evict(cache: Path, allowed: int) -> None:
    """Removes what no process uses, the longest unused first, until the rest holds at most `allowed` bytes."""
    locks = sorted(cache.glob("*.lock"), key=lambda path: path.stat().st_mtime)
    sizes = {path: _size(_contents(path)) for path in locks}
    total = sum(sizes.values())
    for path in locks:
        if total <= allowed:
            return
        lock = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # in use
            continue
        else:
            for folder in _contents(path):
                shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[path]
        finally:
            os.close(lock)


def _contents(lock: Path) -> list[Path]:
    return [folder for folder in (lock.with_suffix(""), lock.with_suffix(".partial")) if folder.is_dir()]


def _size(folders: Iterable[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
