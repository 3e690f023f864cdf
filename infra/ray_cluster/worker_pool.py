"""Independent parts of one piece of work, spread over the workers of a Ray cluster.

One worker on this machine is this process: starting Ray would take longer than most such work.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import RayTaskError
from ray.util import ActorPool

from infra.config import ClusterConfig
from infra.ray_cluster.ray_session import has_gpu, session
from infra.storage.buckets import check_storage, is_remote
from infra.storage.staging import Staged, stage

Part = TypeVar("Part")
Result = TypeVar("Result")
Make = Callable[[], Callable[[Part], Result]]


class WorkerPool:
    """Workers that are there for one piece of work after another, with a GPU each if `gpu`. `size` 0: this process does
    the work itself. `storage`: s3://bucket/prefix that folders go through to workers that do not see them."""

    def __init__(self, size: int, gpu: bool = False, storage: str = "", cache_bytes: int = 0):
        self.spreads, self._gpu, self._storage, self._cache_bytes = size > 0, gpu, storage, cache_bytes
        self._size, self._actors, self._numbers = size, [], itertools.count()

    def map(self, make: Make, parts: Sequence[Part]) -> Iterator[Result]:
        """The result of every part, in the order of parts. `make` builds a worker, once in each process that works;
        where work spreads it must be picklable. Raises what a worker raised."""
        if not self.spreads:
            work = make()
            yield from (work(part) for part in parts)
            return
        if not self._actors:
            kind = ray.remote(num_cpus=1, num_gpus=int(self._gpu))(_Worker)
            self._actors = [kind.remote() for _ in range(self._size)]
        if is_remote(self._storage):
            make = StagedTask.of(make, self._storage, self._cache_bytes)
        number, sent = next(self._numbers), ray.put(make)
        pool = ActorPool(self._actors[: len(parts)])
        try:
            yield from pool.map(lambda actor, part: actor.work.remote(number, sent, part), parts)
        except RayTaskError as error:
            raise (error.cause or error) from None


@dataclass(frozen=True)
class StagedTask:
    """A method of an order, a dataclass, whose paths are in storage: called elsewhere, it finds them there."""

    order: object
    method: str
    staged: Mapping[str, tuple[Staged, str]]  # by field: a folder and, where the path is a file, its name

    @classmethod
    def of(cls, make: Make, storage: str, cache_bytes: int) -> StagedTask:
        order = make.__self__
        values = {field.name: getattr(order, field.name) for field in fields(order)}
        staged = {
            name: (stage(path, storage, cache_bytes), path.name if path.is_file() else "")
            for name, path in values.items()
            if isinstance(path, Path)
        }
        return cls(order, make.__name__, staged)

    def __call__(self) -> Callable[[Part], Result]:
        order = replace(self.order, **{field: staged.local() / name for field, (staged, name) in self.staged.items()})
        return getattr(order, self.method)()


class _Worker:
    """Builds a worker when the first part of a piece of work arrives."""

    def __init__(self):
        self._number, self._work = -1, None

    def work(self, number: int, make: Make, part: Part) -> Result:
        if number != self._number:
            self._number, self._work = number, make()
        return self._work(part)


@contextlib.contextmanager
def worker_pool(cluster: ClusterConfig, root: Path, writes_files: bool = False) -> Iterator[WorkerPool]:
    """The workers of a cluster for the time of the block. `root` is the folder that they import this project from.
    Work that `writes_files` stays in this process where storage is a bucket: its folders are not seen elsewhere.
    Raises InputError if the cluster cannot be reached, DataError, before it is asked, if the bucket cannot."""
    storage = cluster.storage(root)
    if (cluster.max_workers == 1 and cluster.address == "local") or (writes_files and is_remote(storage)):
        yield WorkerPool(0)
        return
    check_storage(storage)
    with session(cluster, root):
        yield WorkerPool(cluster.max_workers, has_gpu(cluster.use_gpu), storage, cluster.cache_bytes)
