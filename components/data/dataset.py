"""Data sets: shards of fixed-size rows with a manifest, and the batches drawn from them.

A data set is a folder: manifest.json beside one .npy file per shard and column. Equal input gives equal bytes, which
DVC's cache needs; shards are memory-mapped, so a set may be larger than memory. Where images come from is the matter
of components/sources, where a folder lies that of pipelines.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from components.config import Strict
from components.data.crops import BUCKET, Size, is_of_frames, taken
from components.data.media import Medium, medium
from components.data.permutation import bucketed_batch, global_batch, share
from components.data.randomness import Draws
from components.errors import DataError
from components.files import sha256, write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


class Column(Strict):
    """Shape and type of one row of a column."""

    shape: tuple[int, ...]
    dtype: Literal["uint8", "uint16", "int16", "int64", "float16", "float32"]


class ShardFile(Strict):
    path: str  # relative to the manifest
    sha256: str


class Shard(Strict):
    rows: int = Field(gt=0)
    files: dict[str, ShardFile]  # by column


class Bucket(Strict):
    """Shards, as many as stand behind those of the buckets before, whose crops are of one size. `columns`: what crops
    are taken from."""

    size: Size
    shards: int = Field(gt=0)
    columns: dict[str, Column]


class Rejected(Strict):
    """An input file that was left out, and why."""

    path: str
    reason: str


class Manifest(Strict):
    """What a data set holds. `medium` is that of its rows or, of latents and features, of what they were made from;
    `value_range` is that of its column as stored; `statistics` are facts about the whole set that later stages need,
    such as a latent's mean and spread per channel; `speakers` are named by a column of that name, as classes are by
    `label`; `rate` is the medium's, of what has time; `buckets` of a set with crops have all of its shards."""

    schema_version: Literal[1] = SCHEMA_VERSION
    medium: str = "image"  # data sets written before there were others do not say it
    count: int = Field(gt=0)
    columns: dict[str, Column]
    value_range: tuple[float, float]
    rate: float = 0.0
    classes: tuple[str, ...] = ()
    speakers: tuple[str, ...] = ()
    statistics: dict[str, tuple[float, ...]] = {}
    source: dict[str, str | int | float] = {}
    rejected: tuple[Rejected, ...] = ()
    buckets: tuple[Bucket, ...] = ()
    shards: tuple[Shard, ...]


def write_shard(folder: Path, number: int, columns: dict[str, np.ndarray]) -> Shard:
    """Writes one shard, all columns with equally many rows, and returns its manifest entry."""
    (rows,) = {len(values) for values in columns.values()}
    files = {}
    for name, values in columns.items():
        path = folder / f"{number:05d}.{name}.npy"
        np.save(path, np.ascontiguousarray(values), allow_pickle=False)
        files[name] = ShardFile(path=path.name, sha256=sha256(path))
    return Shard(rows=rows, files=files)


def write_shards(folder: Path, rows: Iterable[dict[str, np.ndarray]], rows_per_shard: int) -> list[Shard]:
    """Packs single rows (name -> array) into shards; memory holds one shard at a time."""
    return [shard for part in write_buckets(folder, rows, rows_per_shard).values() for shard in part]


def write_buckets(folder: Path, rows: Iterable[dict[str, np.ndarray]], rows_per_shard: int) -> dict[int, list[Shard]]:
    """The same of rows in buckets, each shard of one, by their numbers: memory holds one shard of each. Rows that say
    no bucket are of bucket 0."""
    shards: dict[int, list[Shard]] = {}
    pending: dict[int, list[dict[str, np.ndarray]]] = {}

    def write(bucket: int) -> None:
        number = sum(map(len, shards.values()))
        shards.setdefault(bucket, []).append(write_shard(folder, number, _stack(pending.pop(bucket))))

    known: Collection[str] = ()
    for row in rows:
        known = known or row.keys()
        if row.keys() != known:
            raise DataError(f"{folder}: rows of {', '.join(sorted(row))} among others of {', '.join(sorted(known))}")
        bucket = int(row.get(BUCKET, 0))
        pending.setdefault(bucket, []).append({name: part for name, part in row.items() if name != BUCKET})
        if len(pending[bucket]) == rows_per_shard:
            write(bucket)
    for bucket in sorted(pending):
        write(bucket)
    return dict(sorted(shards.items()))


def _stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def write_manifest(folder: Path, shards: list[Shard], sizes: Mapping[Size, int] | None = None, **facts) -> Manifest:
    """Completes a data set whose shards are written. `facts` are the Manifest's other fields; columns are read off
    the first shard, of what crops are taken from off the first of each bucket. `sizes`: of a set with crops, those of
    its buckets, with how many of the shards are theirs."""
    columns = _columns(folder, shards[0], of_frames=False)
    buckets, first = [], 0
    for size, count in (sizes or {}).items():
        buckets.append(Bucket(size=size, shards=count, columns=_columns(folder, shards[first], of_frames=True)))
        first += count
    count = sum(shard.rows for shard in shards)
    manifest = Manifest(count=count, columns=columns, buckets=tuple(buckets), shards=tuple(shards), **facts)
    unsaid = set() if buckets else {"buckets"}
    write_json(folder / MANIFEST, manifest.model_dump(mode="json", exclude=unsaid))
    return manifest


def _columns(folder: Path, shard: Shard, of_frames: bool) -> dict[str, Column]:
    found = {}
    for name, file in shard.files.items():
        if is_of_frames(name) == of_frames:
            array = np.load(folder / file.path, mmap_mode="r")
            found[name] = Column(shape=array.shape[1:], dtype=str(array.dtype))
    return found


def read_manifest(folder: Path) -> Manifest:
    """Raises DataError if the folder holds no data set of a version that we read."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no {MANIFEST} here; expected a data set as `prepare` or `encode` writes it"
        ) from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{path}: expected schema_version {SCHEMA_VERSION}")
    try:
        manifest = Manifest(**content)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: field {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    rows = sum(shard.rows for shard in manifest.shards)
    if manifest.count != rows:
        raise DataError(f"{path}: count: {manifest.count}, where its shards have {rows} rows")
    of = medium(manifest.medium, f"{path}: medium")
    if of.column in manifest.columns:
        of.refuse_unfit(manifest.columns[of.column].shape, f"{path}: columns.{of.column}")
    return manifest


def verify(folder: Path) -> Manifest:
    """Checks every shard against the manifest's sha256. Raises DataError naming the first missing or altered one."""
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        for file in shard.files.values():
            path = folder / file.path
            if not path.is_file():
                raise DataError(f"{path}: shard is missing; {MANIFEST} lists it with {shard.rows} rows")
            if sha256(path) != file.sha256:
                raise DataError(f"{path}: shard is truncated or altered; its sha256 is not the manifest's")
    return manifest


class Dataset:
    """Random access to the rows of a data set folder."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._starts = np.cumsum([0, *(shard.rows for shard in self.manifest.shards)])

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def medium(self) -> Medium:
        """Raises DataError if the manifest names none that there is."""
        return medium(self.manifest.medium, f"{self.folder / MANIFEST}: medium", self.manifest.rate)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of its medium's rows, (C, ...)."""
        return self.manifest.columns[self.medium.column].shape

    def rows(self, numbers: np.ndarray | Tensor) -> Tensor:
        """Its medium's rows by number, in the order asked: (len(numbers), C, ...) float32 in [-1, 1]."""
        return self.medium.rows(self.take(numbers))

    @functools.cached_property
    def buckets(self) -> tuple[range, ...]:
        """The numbers of each bucket's rows; none of a set without crops."""
        ends = np.cumsum([0, *(bucket.shards for bucket in self.manifest.buckets)])
        return tuple(range(*map(int, self._starts[[first, last]])) for first, last in pairwise(ends))

    def take(self, rows: np.ndarray | Tensor) -> dict[str, Tensor]:
        """Rows by number, in the order asked: column name -> (len(rows), *shape), as stored."""
        return self._take(np.asarray(rows), self.manifest.columns)

    def crops(self, rows: np.ndarray | Tensor, draws: Draws) -> dict[str, Tensor]:
        """The same of one bucket's rows, with a crop in the place of each, drawn by its draws, and `crop` telling where
        it lies. Raises DataError of a set without crops."""
        rows = np.asarray(rows)
        held = [number for number, inside in enumerate(self.buckets) if rows[0] in inside]
        if not held:
            raise DataError(f"{self.folder}: holds no crops; expected data.crops in params.yaml, or encode.NAME.crops")
        bucket, inside = self.manifest.buckets[held[0]], self.buckets[held[0]]
        assert inside.start <= rows.min() and rows.max() < inside.stop, "rows of several buckets"
        found = taken(self._take(rows, bucket.columns), bucket.size, draws)
        others = {name: column for name, column in self.manifest.columns.items() if name not in found}
        return self._take(rows, others) | found

    def _take(self, rows: np.ndarray, columns: Mapping[str, Column]) -> dict[str, Tensor]:
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        found = {name: np.empty((len(rows), *column.shape), column.dtype) for name, column in columns.items()}
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            for name, values in found.items():
                values[places] = self._map(int(shard), name)[rows[places] - self._starts[shard]]
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def shard_rows(self, number: int) -> np.ndarray:
        """The row numbers of one shard."""
        return np.arange(self._starts[number], self._starts[number + 1])

    def chunks(self, size: int, only: Iterable[str] | None = None) -> Iterator[dict[str, Tensor]]:
        """All rows in stored order, `size` at a time, of those columns `only` that there are."""
        columns = self.manifest.columns
        if only is not None:
            columns = {name: columns[name] for name in only if name in columns}
        for start in range(0, len(self), size):
            yield self._take(np.arange(start, min(start + size, len(self))), columns)

    def labels(self) -> Tensor:
        """(N,) int64 classes of all rows; empty where there are none."""
        return next(self.chunks(len(self), ("label",))).get("label", torch.empty(0, dtype=torch.int64))

    @functools.lru_cache(maxsize=256)  # noqa: B019 - open maps of one long-lived set, bounded
    def _map(self, shard: int, column: str) -> np.ndarray:
        return np.load(self.folder / self.manifest.shards[shard].files[column].path, mmap_mode="r", allow_pickle=False)


def spread(dataset: Dataset, count: int) -> dict[str, Tensor]:
    """`count` rows evenly over a set, which may be sorted by class, as `take` gives them."""
    return dataset.take(spread_over(len(dataset), count))


def spread_over(total: int, count: int) -> Tensor:
    """(count,) row numbers below `total`, evenly apart; there are no fewer."""
    return torch.arange(count) * total // count


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch. `weight` makes the mean over ranks of weighted means the global mean; `ahead`
    is what phases have made of it before any of them moves, by their names."""

    columns: dict[str, Tensor]
    draws: Draws
    weight: float = 1.0
    step: int = 0  # of training, from 0
    ahead: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def mirrored(self) -> Tensor:
        """(B,) bool: the rows that a model with flips sees mirrored."""
        return self.draws.uniform("flip") < 0.5

    def to(self, device: torch.device) -> Batch:
        device = torch.device(device)
        waits = device.type == "cpu"  # towards it, values are read before a copy that nobody waits for has come
        columns = {name: values.to(device, non_blocking=not waits) for name, values in self.columns.items()}
        return Batch(columns, self.draws.to(device), self.weight, self.step)

    def split(self, parts: int) -> list[tuple[Batch, float]]:
        """Up to `parts` batches of about as many rows each, with each one's share of the rows."""
        rows = len(self.draws.keys)
        cuts = [rows * part // parts for part in range(parts + 1)]
        return [
            (
                replace(
                    self,
                    columns={name: values[a:b] for name, values in self.columns.items()},
                    draws=Draws(self.draws.keys[a:b]),
                    weight=1.0,
                ),
                (b - a) / rows,
            )
            for a, b in pairwise(cuts)
            if a < b
        ]


def row_weight(batch_size: int, rank: int, world: int) -> float:
    """What a mean over a rank's rows weighs in the mean over ranks that equals the mean over the global batch."""
    part = share(batch_size, rank, world)
    return (part.stop - part.start) * world / batch_size


def batches(
    dataset: Dataset,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    start: int = 0,
    crops: bool = False,
) -> Iterator[Batch]:
    """The endless stream of training batches from global batch `start` on, as `rank` of `world` sees it.

    `batch_size` is global: batch k holds the same rows, with the same draws, at any world size. With `crops` rows are
    crops of their frames, those of a batch of one bucket. Raises DataError if a rank would get no row.
    """
    if batch_size < world:
        raise DataError(
            f"batch_size {batch_size} is smaller than the number of workers {world}; expected a row for each"
        )
    part = share(batch_size, rank, world)
    places = torch.arange(batch_size)[part]
    weight = row_weight(batch_size, rank, world)
    step = start
    while True:
        rows, draws = rows_of_batch(dataset, step, batch_size, seed, crops, part), Draws.of(seed, step, places)
        columns = dataset.crops(rows, draws) if crops else dataset.take(rows)
        yield Batch(columns, draws, weight, step)
        step += 1


def rows_of_batch(
    dataset: Dataset, step: int, batch_size: int, seed: int, crops: bool = False, part: slice = slice(None)
) -> Tensor:
    """The numbers of the rows of global batch `step`, or of its `part`."""
    buckets = dataset.buckets if crops else ()
    if len(buckets) < 2:
        return global_batch(step, batch_size, len(dataset), seed, part)
    bucket, rows = bucketed_batch(step, batch_size, tuple(map(len, buckets)), seed, part)
    return rows + buckets[bucket].start
