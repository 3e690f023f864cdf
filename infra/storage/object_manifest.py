"""A manifest of a bucket's objects: which version of which key, so that a set too large to copy or hash is versioned.

A manifest is a folder of shards, each a file with a line an object, so that a small change of the bucket changes few
files: what was listed before keeps its shard and its line, new objects fill new shards, and a shard is rewritten only
where an object of it was replaced or removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from botocore.config import Config

from components.errors import DataError
from components.files import whole_folder, write_json, write_whole
from infra.storage.buckets import PROBE, WORK, Remote, connect, in_one_line, list_objects, parse_uri

MANIFEST = "objects.json"
SHARD = 10_000  # objects


@dataclass(frozen=True)
class Ingested:
    """What a look at the bucket found, by number of objects, and shards that were written."""

    num_objects: int
    num_new: int
    num_replaced: int
    num_removed: int
    num_written: int  # shards


def ingest(uri: str, folder: Path, shard: int = SHARD) -> Ingested:
    """Brings the manifest in `folder` up to date with the objects below s3://bucket/prefix/: whole or not at all.

    Raises DataError if the bucket cannot be listed, holds nothing there, or `folder` is another prefix's manifest."""
    bucket, prefix = parse_uri(uri)
    known = read(folder, uri) if (folder / MANIFEST).is_file() else {}
    with in_one_line(uri):
        connect(PROBE).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        client = connect(Config(**WORK))
        found = {remote.name: remote for remote in list_objects(client, bucket, prefix)}
        if not found:
            raise DataError(f"{uri}: holds no object; expected images below it")
        versions = _versions(client, bucket, prefix)
    found = {name: Remote(**{**asdict(item), "version": versions.get(item.key, "")}) for name, item in found.items()}
    before = {item.name: item for part in known.values() for item in part}
    new = [found[name] for name in sorted(found) if name not in before]
    shards = {number: [found[item.name] for item in part if item.name in found] for number, part in known.items()}
    first = max(known, default=-1) + 1  # numbers are not used again
    shards |= {first + start // shard: new[start : start + shard] for start in range(0, len(new), shard)}
    written = _write(folder, uri, {number: part for number, part in shards.items() if part})
    return Ingested(
        num_objects=len(found),
        num_new=len(new),
        num_replaced=sum(found[name] != item for name, item in before.items() if name in found),
        num_removed=len(before.keys() - found.keys()),
        num_written=written,
    )


def read(folder: Path, uri: str) -> dict[int, list[Remote]]:
    """The objects of a manifest, by shard. Raises DataError if it is damaged, or of another place than `uri`."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        numbers, place = content["shards"], content["uri"]
        lines = {number: (folder / _file(number)).read_text().splitlines() for number in numbers}
        shards = {number: [Remote(**json.loads(line)) for line in part] for number, part in lines.items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a manifest as `python -m pipelines.ingest` writes it ({error})") from None
    if place.rstrip("/") != uri.rstrip("/"):
        raise DataError(f"{path}: lists {place}, not {uri}; expected another folder for it")
    return shards


def _versions(client, bucket: str, prefix: str) -> dict[str, str]:
    """The newest version of each key; none in a bucket without versions."""
    if client.get_bucket_versioning(Bucket=bucket).get("Status") != "Enabled":
        return {}
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix)
    items: Iterable[dict] = (item for page in pages for item in page.get("Versions", ()))
    return {item["Key"]: item["VersionId"] for item in items if item["IsLatest"]}


def _file(number: int) -> str:
    return f"{number:05d}.jsonl"


def _write(folder: Path, uri: str, shards: dict[int, list[Remote]]) -> int:
    """Files that do not change are copied with their times, so that DVC need not hash them again."""
    written = 0
    with whole_folder(folder) as working:
        for number, part in shards.items():
            name = _file(number)
            text = "".join(json.dumps(asdict(item), sort_keys=True) + "\n" for item in part)
            old = folder / name
            if old.is_file() and old.read_text() == text:
                shutil.copy2(old, working / name)
            else:
                write_whole(working / name, text)
                written += 1
        write_json(working / MANIFEST, {"uri": uri, "shards": sorted(shards)})
    return written
