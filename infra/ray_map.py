"""Independent parts of one piece of work, spread over the workers of a Ray cluster.

One worker on this machine is this process: starting Ray would take longer than most such work.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import RayTaskError
from ray.util import ActorPool

from infra.config import ClusterConfig
from infra.ray_session import has_gpu, session

Part = TypeVar("Part")
Result = TypeVar("Result")
Make = Callable[[], Callable[[Part], Result]]


class Crew:
    """Workers that are there for one piece of work after another, with a GPU each if `gpu`. `size` 0: this process does
    the work itself."""

    def __init__(self, size: int, gpu: bool = False):
        self.spreads, self._gpu = size > 0, gpu
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
        number, sent = next(self._numbers), ray.put(make)
        pool = ActorPool(self._actors[: len(parts)])
        try:
            yield from pool.map(lambda actor, part: actor.work.remote(number, sent, part), parts)
        except RayTaskError as error:
            raise (error.cause or error) from None


class _Worker:
    """Builds a worker when the first part of a piece of work arrives."""

    def __init__(self):
        self._number, self._work = -1, None

    def work(self, number: int, make: Make, part: Part) -> Result:
        if number != self._number:
            self._number, self._work = number, make()
        return self._work(part)


@contextlib.contextmanager
def crew(cluster: ClusterConfig, root: Path) -> Iterator[Crew]:
    """The workers of a cluster for the time of the block. `root` is the folder that they import this project from.
    Raises InputError if the cluster cannot be reached."""
    if cluster.max_workers == 1 and cluster.address == "local":
        yield Crew(0)
        return
    with session(cluster, root):
        yield Crew(cluster.max_workers, has_gpu(cluster.use_gpu))
