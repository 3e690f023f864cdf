"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 60,000 + 10,000 grey 28x28 pictures of clothes in ten classes."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.client
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from components.errors import DataError
from components.sources import DataConfig, Row, Source, image_row

# the publisher's own address; it has no TLS, which the md5 of every file makes up for
OFFICIAL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CLASSES = (*("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),)
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_PREFIX = {"train": "train", "test": "t10k"}
_TIMEOUT = 15  # seconds without an answer


def read(config: DataConfig) -> Source:
    """The publisher's own test split is the test split. Raises DataError if one of the four files cannot be reached
    or is not the published one."""
    mirror = config.mirror or OFFICIAL
    files = {name: fetch(mirror, name) for name in MD5}
    return Source(
        classes=CLASSES,
        facts={"source": "fashion_mnist", **{f"md5 {name}": md5 for name, md5 in MD5.items()}},
        splits={split: functools.partial(_rows, files, prefix, config) for split, prefix in _PREFIX.items()},
    )


def fetch(mirror: str, name: str) -> bytes:
    """One of the published files from a folder or URL. Raises DataError if it is absent, unreachable or altered."""
    content = _download(mirror, name) if "://" in mirror else _local(Path(mirror), name)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != MD5[name]:
        raise DataError(f"{mirror}: {name} has md5 {found}, expected the published file with {MD5[name]}")
    return content


def _local(mirror: Path, name: str) -> bytes:
    try:
        return (mirror / name).read_bytes()
    except OSError as error:
        raise DataError(
            f"data.mirror {mirror}: cannot read {name} ({error.strerror}); expected {_expected()}"
        ) from None


def _download(mirror: str, name: str) -> bytes:
    try:
        with urllib.request.urlopen(f"{mirror.rstrip('/')}/{name}", timeout=_TIMEOUT) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        reason: object = f"HTTP {error.code}"
    except urllib.error.URLError as error:
        reason = error.reason
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error
    raise DataError(f"{mirror}: cannot fetch {name} ({reason}); expected {_expected()}; data.mirror may be a folder")


def _expected() -> str:
    return f"the four files {', '.join(MD5)}"


def parse_idx(content: bytes) -> np.ndarray:
    """An IDX file of unsigned bytes -> uint8 array. Format: http://yann.lecun.com/exdb/mnist, "THE IDX FILE FORMAT"."""
    zeros, kind, num_dimensions = struct.unpack_from(">HBB", content)
    assert (zeros, kind) == (0, 8), "the md5 held, so this is IDX of unsigned bytes"
    shape = struct.unpack_from(f">{num_dimensions}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)


def _rows(files: dict[str, bytes], prefix: str, config: DataConfig) -> Iterator[Row]:
    pictures = parse_idx(gzip.decompress(files[f"{prefix}-images-idx3-ubyte.gz"]))
    labels = parse_idx(gzip.decompress(files[f"{prefix}-labels-idx1-ubyte.gz"])).astype(np.int64)
    for picture, label in zip(pictures, labels, strict=True):
        yield {**image_row(Image.fromarray(picture), config), "label": label}
