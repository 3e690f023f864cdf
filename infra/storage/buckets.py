"""S3 and what speaks its protocol: brings a prefix to a local folder. With staging.py the only user of boto3.

Endpoint, region and credentials come from the usual AWS environment and files. What the objects are is not known here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import botocore.exceptions as boto
from botocore.config import Config

from components.errors import DataError, StorageError
from components.files import write_whole

if TYPE_CHECKING:
    from botocore.client import BaseClient

SCHEME = "s3://"
PROBE = Config(retries={"mode": "standard", "max_attempts": 3}, connect_timeout=3, read_timeout=10)
WORK = {"retries": {"mode": "standard", "max_attempts": 6}, "connect_timeout": 5, "read_timeout": 30}
BODY_ATTEMPTS = 4  # boto3 retries a request, but not a body that breaks off
_WAVE = 1024  # downloads queued at a time
_CHUNK = 1 << 20  # bytes
_REFUSALS = {
    "403",
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
BROKEN_BODY = (
    boto.ReadTimeoutError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
)


@dataclass(frozen=True)
class Remote:
    """An object as the bucket lists it. `name`: its key without the prefix, a relative path."""

    key: str
    name: str
    size: int  # bytes
    etag: str
    version: str = ""  # of a bucket that keeps them


@dataclass(frozen=True)
class Record:
    """What is known of a local file since it was checked against its object."""

    name: str
    etag: str
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Mirrored:
    num_objects: int
    num_fetched: int
    num_removed: int


class Damaged(Exception):
    """A body arrived that is not the object."""


def mirror_prefix(uri: str, folder: Path, *, workers: int = 16, only: Sequence[Remote] | None = None) -> Mirrored:
    """Makes `folder` equal to the objects below s3://bucket/prefix/: fetches those that are missing or differ, removes
    every other file. Every object is checked by size and, where its ETag is an md5, by content. `only`: these objects
    and versions (infra/storage/object_manifest.py) rather than what the bucket holds now.

    A run that was interrupted is taken up by the next one: `<folder>.index.jsonl` records each file that was checked,
    and unfinished downloads lie in `<folder>.partial`. Raises DataError, within seconds, if the bucket cannot be
    reached, does not exist or refuses us, if nothing lies below the prefix, or if a key is no path inside a folder.
    """
    bucket, prefix = parse_uri(uri)
    index, partial = folder.with_name(f"{folder.name}.index.jsonl"), folder.with_name(f"{folder.name}.partial")
    with in_one_line(uri):
        connect(PROBE).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        client = connect(Config(**WORK, max_pool_connections=workers))
        remotes = list_objects(client, bucket, prefix) if only is None else list(only)
        if not remotes:
            raise DataError(f"{uri}: holds no object; expected images below {SCHEME}{bucket}/{prefix}")
        _refuse_shadowed(remotes, uri)
        num_removed = _remove_others(folder, {remote.name for remote in remotes})
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        known = read_index(index)
        ensure = functools.partial(_ensure, client, bucket, folder, partial, known)
        fetched, records = 0, []
        with index.open("a") as log, ThreadPoolExecutor(max_workers=workers) as pool:
            for start in range(0, len(remotes), _WAVE):
                for record, is_new in pool.map(ensure, remotes[start : start + _WAVE]):
                    fetched += is_new
                    records.append(record)
                    if known.get(record.name) != record:
                        log.write(_line(record))
                log.flush()
        write_whole(index, "".join(map(_line, records)))
        shutil.rmtree(partial)
    return Mirrored(len(remotes), fetched, num_removed)


def is_remote(place: str | Path) -> bool:
    """Whether a place is a bucket's rather than a folder."""
    return str(place).startswith(SCHEME)


def check_storage(place: str) -> None:
    """Raises DataError, within seconds, of a place in a bucket that cannot be written to; a folder needs no look."""
    if not is_remote(place):
        return
    bucket, prefix = parse_uri(place)
    with in_one_line(place):
        connect(PROBE).put_object(Bucket=bucket, Key=f"{prefix}.writable", Body=b"")


def parse_uri(uri: str) -> tuple[str, str]:
    """s3://bucket/prefix -> bucket, and the prefix as a folder: empty, or with one final slash. Raises DataError."""
    bucket, _, prefix = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise DataError(f"{uri}: expected s3://bucket/prefix")
    return bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""


def list_objects(client: BaseClient, bucket: str, prefix: str) -> list[Remote]:
    """All objects below the prefix, page by page, without the empty ones that stand for folders. Raises DataError for
    a key that is no relative path inside a folder."""
    found = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            key, name = item["Key"], item["Key"].removeprefix(prefix)
            if name == "" or (name.endswith("/") and item["Size"] == 0):
                continue
            if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
                raise DataError(f"{SCHEME}{bucket}/{key}: this key is no path inside a folder; rename the object")
            found.append(Remote(key, name, item["Size"], item["ETag"].strip('"')))
    return found


def _refuse_shadowed(remotes: list[Remote], uri: str) -> None:
    names = {remote.name for remote in remotes}
    for name in sorted(names):
        parts = name.split("/")
        for above in itertools.accumulate(parts[:-1], "{}/{}".format):
            if above in names:
                raise DataError(f"{uri}: object {above} is in the way of {name}; a file cannot be a folder, too")


def read_index(index: Path) -> dict[str, Record]:
    """The records of an earlier run, by name; a line that was cut off is passed over."""
    known = {}
    lines = index.read_text().splitlines() if index.is_file() else []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError, TypeError):
            record = Record(**json.loads(line))
            known[record.name] = record
    return known


def _line(record: Record) -> str:
    return json.dumps(asdict(record), sort_keys=True) + "\n"


def _remove_others(folder: Path, wanted: set[str]) -> int:
    num_removed = 0
    for root, _, files in os.walk(folder, topdown=False):
        for path in (Path(root, name) for name in files):
            if path.relative_to(folder).as_posix() not in wanted:
                path.unlink()
                num_removed += 1
        if Path(root) != folder and not any(Path(root).iterdir()):
            Path(root).rmdir()
    return num_removed


def _ensure(
    client: BaseClient, bucket: str, folder: Path, partial: Path, known: dict[str, Record], remote: Remote
) -> tuple[Record, bool]:
    """The record of an object's local file, and whether it had to be fetched."""
    path = folder / remote.name
    if is_current(path, remote, known.get(remote.name)):
        return Record(remote.name, remote.etag, remote.size, path.stat().st_mtime_ns), False
    path.parent.mkdir(parents=True, exist_ok=True)
    working = partial / hashlib.sha256(remote.key.encode()).hexdigest()
    for attempt in itertools.count(1):
        try:
            download(client, bucket, remote, working)
            break
        except (*BROKEN_BODY, Damaged) as error:
            if attempt == BODY_ATTEMPTS:
                raise StorageError(f"{SCHEME}{bucket}/{remote.key}: {error}, {attempt} times in a row") from None
            time.sleep(0.2 * 2**attempt)
    os.replace(working, path)
    return Record(remote.name, remote.etag, remote.size, path.stat().st_mtime_ns), True


def is_current(path: Path, remote: Remote, record: Record | None) -> bool:
    """Whether the file is known to be the object: untouched since it was recorded, or with the object's md5."""
    if not path.is_file() or path.stat().st_size != remote.size:
        return False
    if record == Record(remote.name, remote.etag, remote.size, path.stat().st_mtime_ns):
        return True
    if not _is_md5(remote.etag):
        return False
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False)).hexdigest() == remote.etag
        )


def download(client: BaseClient, bucket: str, remote: Remote, target: Path) -> None:
    """Writes one object's content. Raises Damaged if it has not the listed size or md5."""
    # IfMatch: the object that was listed, or none
    version = {"VersionId": remote.version} if remote.version else {}
    answer = client.get_object(Bucket=bucket, Key=remote.key, IfMatch=f'"{remote.etag}"', **version)
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with target.open("wb") as file:
        for chunk in answer["Body"].iter_chunks(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if size != remote.size:
        raise Damaged(f"{size} bytes arrived, expected {remote.size}")
    # AWS: the ETag of an object under KMS or a customer's key is no md5, though it looks like one
    is_encrypted = "SSECustomerAlgorithm" in answer or answer.get("ServerSideEncryption", "").startswith("aws:kms")
    if _is_md5(remote.etag) and not is_encrypted and digest.hexdigest() != remote.etag:
        raise Damaged(f"content with md5 {digest.hexdigest()} arrived, expected {remote.etag}")


def _is_md5(etag: str) -> bool:
    # AWS: the ETag of a multipart upload ends in the number of its parts and is no md5 of the content
    return re.fullmatch("[0-9a-f]{32}", etag) is not None


def connect(config: Config) -> BaseClient:
    """A client as the environment says."""
    # a session of our own: boto3's default one is process-wide and keeps the first environment it saw
    try:
        return boto3.session.Session().client("s3", config=config)
    except ValueError as error:  # so botocore tells of an endpoint that is no URL
        told = f"{error}; expected AWS_ENDPOINT_URL like http://host:port"
        raise boto.InvalidConfigError(error_msg=told) from None


@contextlib.contextmanager
def in_one_line(uri: str) -> Iterator[None]:
    """Turns what boto3 and the file system raise into a StorageError that says what to mend."""
    try:
        yield
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound) as error:
        raise StorageError(
            f"{uri}: {error}; expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        ) from None
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        raise StorageError(f"{uri}: cannot be reached ({error}); see AWS_ENDPOINT_URL and the network") from None
    except boto.ClientError as error:
        raise StorageError(f"{uri}: {_refusal(error)}") from None
    except boto.BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from None
    except OSError as error:
        raise StorageError(f"{uri}: cannot write its local copy {error.filename} ({error.strerror})") from None


def _refusal(error: boto.ClientError) -> str:
    code = error.response.get("Error", {}).get("Code", "")
    message = error.response.get("Error", {}).get("Message", "")
    if code in ("NoSuchBucket", "404"):
        return "there is no such bucket; see the name, and AWS_ENDPOINT_URL"
    if code in _REFUSALS:
        return f"access refused ({code}: {message}); expected credentials that may use it"
    if code in ("PreconditionFailed", "NoSuchKey", "NoSuchVersion", "412"):
        return f"an object is not there as it was listed ({code}); list and fetch again"
    return f"the store answered {code}: {message}"
