"""Rows a second that are read from WebDataset's tars, against the webdataset library's own loader, over the same JPEG
files and with the same crop and size; both alone in a process that may use all cores.

The library is no dependency: where it is not installed it is fetched into a temporary folder, and without a network
the figure stands without its peer.
"""

from __future__ import annotations

import importlib
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from components import sources
from components.data.media.image import fitted
from components.sources import DataConfig
from tests.benchmarks.common import emit

TARS, SAMPLES, SIDE, SHAPE = 4, 500, 256, (3, 64, 64)
REPEATS = 5
LIBRARY = ("webdataset", "braceexpand")


def write(folder: Path) -> list[str]:
    """Tars of smooth JPEG pictures with a caption each."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(TARS):
        paths.append(str(folder / f"{number:05d}.tar"))
        with tarfile.open(paths[-1], "w") as archive:
            for sample in range(SAMPLES):
                small = Image.fromarray(random.integers(0, 256, (16, 20, 3), np.uint8))
                buffer = io.BytesIO()
                small.resize((SIDE * 5 // 4, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
                for ending, content in (("jpg", buffer.getvalue()), ("txt", f"picture {sample}".encode())):
                    member = tarfile.TarInfo(f"{number:05d}{sample:04d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return paths


def ours(folder: Path) -> Iterator[dict]:
    """Rows as `prepare` gets them, the listing of the tars included."""
    config = DataConfig(source="folder", path=folder, image_size=SHAPE[1], channels=3)
    source = sources.read(config, seed=0)
    for rows in source.splits.values():
        yield from rows()


def library(paths: list[str], webdataset: ModuleType, workers: int) -> Iterator[tuple]:
    """The same by the library's loader; processes beside this one where `workers` are told."""
    loaded = (
        webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(_fitted, str)
    )
    return iter(webdataset.WebLoader(loaded, batch_size=None, num_workers=workers))


def _fitted(image: Image.Image) -> np.ndarray:
    return fitted(image, SHAPE)


def rate(make: Callable[[], Iterator]) -> float:
    """Rows a second of a whole pass."""
    began = time.perf_counter()
    count = sum(1 for _ in make())
    assert count == TARS * SAMPLES, f"{count} rows"
    return count / (time.perf_counter() - began)


def installed(folder: Path) -> ModuleType | None:
    """The library, from here or from its registry; None where there is neither."""
    try:
        return importlib.import_module(LIBRARY[0])
    except ImportError:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *LIBRARY]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        sys.path.insert(0, str(folder))
        return importlib.import_module(LIBRARY[0])


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder, beside = Path(temporary) / "tars", Path(temporary) / "library"
        folder.mkdir()
        paths, peer = write(folder), installed(beside)
        ways: dict[str, Callable[[], Iterator]] = {"ours": lambda: ours(folder)}
        if peer is not None:
            ways |= {f"webdataset, {n} workers": lambda n=n: library(paths, peer, n) for n in (0, 2)}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(REPEATS):  # in turns, so that all meet the same machine
            for name, make in ways.items():
                rates[name].append(rate(make))
    medians = {name: round(statistics.median(found)) for name, found in rates.items()}
    best = max((value for name, value in medians.items() if name != "ours"), default=None)
    emit(
        "webdataset_ingest",
        medians["ours"],
        "rows/s",
        ">= 1 x the library's best",
        rates=medians,
        spread={name: [round(min(found)), round(max(found))] for name, found in rates.items()},
        ratio=None if best is None else round(medians["ours"] / best, 2),
        library="not to be had here" if peer is None else getattr(peer, "__version__", "?"),
    )


if __name__ == "__main__":
    main()
