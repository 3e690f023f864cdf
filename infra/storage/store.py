"""A place for what runs keep: a folder that every node sees, or s3://bucket/prefix. The only module that knows
pyarrow's file systems, which Ray Train stores checkpoints through as well.

Endpoint, region and credentials of a bucket come from the usual AWS environment of each process.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from components.errors import StorageError
from infra.storage.buckets import SCHEME, is_remote, parse_uri

_ATTEMPTS = 8  # of a request, with exponential backoff
_TIMEOUTS = {"connect_timeout": 5, "request_timeout": 30}  # seconds


@dataclass(frozen=True)
class Store:
    """A folder of a file system. It may be sent to other processes."""

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def open(cls, place: str | Path) -> Store:
        """`place`: an absolute folder, or s3://bucket/prefix. Nothing is looked at or made yet."""
        if not is_remote(place):
            return cls(fs.LocalFileSystem(), str(place))
        bucket, prefix = parse_uri(str(place))
        return cls(_bucket_filesystem(), f"{bucket}/{prefix}".rstrip("/"))

    def __truediv__(self, name: str) -> Store:
        return Store(self.filesystem, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Store:
        return Store(self.filesystem, self.path.rsplit("/", 1)[0])

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def __str__(self) -> str:
        return self.path if self.is_local else f"{SCHEME}{self.path}"

    def names(self) -> list[str]:
        """What lies in the folder, sorted; nothing, if it is not there."""
        with self._errors_in_one_line():
            found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def read(self, name: str) -> bytes:
        with self._errors_in_one_line(), self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Readers see the old content or the new, never a part."""
        with self._errors_in_one_line():
            self.filesystem.create_dir(self.path)
            working = f"{self.path}/.{name}.{os.getpid()}" if self.is_local else f"{self.path}/{name}"
            with self.filesystem.open_output_stream(working) as file:
                file.write(content)
            if self.is_local:
                os.replace(working, f"{self.path}/{name}")

    def remove(self, name: str) -> None:
        """Deletes a file, if it is there."""
        with self._errors_in_one_line(), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/{name}")

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        """The folder's content as local files for the time of the block."""
        if self.is_local:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory(prefix="fetched-") as folder:
            self.copy_to(Path(folder))
            yield Path(folder)

    def copy_to(self, folder: Path) -> None:
        """Adds the folder's content to a local one."""
        with self._errors_in_one_line():
            fs.copy_files(self.path, str(folder), source_filesystem=self.filesystem)

    @contextlib.contextmanager
    def filled_from_disk(self) -> Iterator[Path]:
        """A local folder whose files are in this one after the block."""
        if self.is_local:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory(prefix="to-store-") as folder:
            yield Path(folder)
            with self._errors_in_one_line():
                fs.copy_files(folder, self.path, destination_filesystem=self.filesystem)

    @contextlib.contextmanager
    def _errors_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self}: {str(error).splitlines()[0]}") from None


def _bucket_filesystem() -> fs.S3FileSystem:
    address = urllib.parse.urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", ""))
    endpoint = {"scheme": address.scheme, "endpoint_override": address.netloc} if address.netloc else {}
    return fs.S3FileSystem(
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        **_TIMEOUTS,
        **endpoint,
    )
