"""Nodes that come and go, told at once to what decides over the size of a group of workers.

Ray's own coordinator looks for them every 20 seconds; until then it would plan with a node that is gone.
"""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

import ray

LOOK_EVERY = 0.5  # seconds
COORDINATOR = "AutoscalingCoordinator"  # Ray 2.60: the name of its actor, and of that one's namespace


class NodeMonitor:
    """While its block runs, watches the cluster's nodes from the driver."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> NodeMonitor:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        known = _alive()
        while not self._done.wait(LOOK_EVERY):
            found = _alive()
            # it is an aid: where Ray names its coordinator otherwise, the group waits for its next look
            if found != known and _tell_coordinator():
                known = found


def _alive() -> frozenset[str]:
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def _tell_coordinator() -> bool:
    """Makes it look again; whether it was there to be told."""
    with contextlib.suppress(ValueError, AttributeError):
        coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
        coordinator.get_reserved_resources.remote("latent-foundry", True)  # recompute
        return True
    return False
