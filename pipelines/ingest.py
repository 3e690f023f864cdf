"""Versions a bucket without a copy: `python -m pipelines.ingest s3://bucket/prefix` -> data/raw/bucket/prefix.objects.

The manifest lists each object's version and ETag. `data: {source: s3://bucket/prefix, objects: that folder}` prepares
exactly those, whatever the bucket holds by then; `git add` or `dvc add` the folder to keep it.
"""

from __future__ import annotations

from pathlib import Path

from infra.storage.buckets import parse_uri
from infra.storage.object_manifest import ingest
from pipelines.support import cli

RAW = Path("data/raw")


def manifest_folder(uri: str) -> Path:
    """Where a place's manifest lies. Raises DataError for what is no place in a bucket."""
    bucket, prefix = parse_uri(uri)
    return RAW / (f"{bucket}/{prefix}".rstrip("/") + ".objects")


def main(argv: list[str]) -> None:
    uri = cli.one_argument(argv, "python -m pipelines.ingest s3://bucket/prefix")
    folder = manifest_folder(uri)
    done = ingest(uri, folder)
    print(
        f"{folder}: {done.num_objects} objects, {done.num_new} new, {done.num_replaced} replaced, "
        f"{done.num_removed} removed; {done.num_written} shards written"
    )


if __name__ == "__main__":
    cli.run(main)
