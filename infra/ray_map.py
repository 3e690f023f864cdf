"""Independent parts of one piece of work, spread over the workers of a Ray cluster.

One worker on this machine is this process: starting Ray would take longer than most such work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import ray
from ray.util import ActorPool

from infra.config import ClusterConfig
from infra.ray_session import has_gpu, session

Part = TypeVar("Part")
Result = TypeVar("Result")


def spreads(cluster: ClusterConfig) -> bool:
    """Whether work leaves this process."""
    return cluster.max_workers > 1 or cluster.address != "local"


def spread(
    make: Callable[[], Callable[[Part], Result]], parts: Sequence[Part], cluster: ClusterConfig, root: Path
) -> Iterator[Result]:
    """The result of every part, in the order of parts. `make` builds a worker, once in each process that works; where
    work spreads it must be picklable. Raises what a worker raised."""
    if not spreads(cluster):
        work = make()
        yield from (work(part) for part in parts)
        return
    with session(cluster, root):
        kind = ray.remote(num_cpus=1, num_gpus=1 if has_gpu() else 0)(_Worker)
        pool = ActorPool([kind.remote(make) for _ in range(min(cluster.max_workers, len(parts)))])
        try:
            yield from pool.map(lambda actor, part: actor.work.remote(part), parts)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None


class _Worker:
    def __init__(self, make: Callable[[], Callable[[Part], Result]]):
        self._work = make()

    def work(self, part: Part) -> Result:
        return self._work(part)
