"""From one set of served versions to the next without a gap: the next is started beside the present one (surge, load,
warm-up), requests are turned over to it (swap), and what is no longer wanted ends after its last request (drain).

Knows neither Ray nor registry: it is given functions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from infra.serving.served_model import Served, ServedModel

logger = logging.getLogger(__name__)
GRACE = 5.0  # seconds from the swap to the end of what is left, for requests that chose it just before


class Rollout:
    """start:     brings a version up, and returns when it has made an image; raises if it cannot
    stop:      ends one by its key, after what it has accepted
    running:   keys of those that are up or coming up
    announce:  told what is served from now on
    keep:      seconds for which a champion can still be asked for by its version when another reigns, unless a further
               version is to be started: no more than two are up for that
    """

    def __init__(
        self,
        start: Callable[[ServedModel], None],
        stop: Callable[[str], None],
        running: Callable[[], set[str]],
        announce: Callable[[Served], None],
        grace: float = GRACE,
        keep: float = 0,
    ):
        self.start, self.stop, self.running, self.announce = start, stop, running, announce
        self.grace, self.keep = grace, keep
        self.served: Served = ()
        self._former: tuple[ServedModel, float] | None = None  # and until when it is kept
        self._failed: set[str] = set()
        self._unwanted_since: dict[str, float] = {}

    def step(self, wanted: Served) -> None:
        """Brings about what is wanted, the champion first. A version that cannot be started is left out and not tried
        again while it is wanted: the champion before it stays. Raises RuntimeError if there is none before it."""
        self._failed &= {model.key for model in wanted}
        if any(model.key not in {one.key for one in self.served} | self._failed for model in wanted):
            self._end_former({model.key for model in wanted})
        champion, others = wanted[0], wanted[1:]
        if not self._is_up(champion):
            if not self.served:
                raise RuntimeError(f"{champion.id} could not be started, and there is nothing before it to serve")
            champion = self.served[0]
        self._serve(champion, [model for model in others if model in self.served])  # the others may take long to start
        self._serve(champion, [model for model in others if self._is_up(model)])
        self._drain()

    def _serve(self, champion: ServedModel, others: list[ServedModel]) -> None:
        beside = [model for model in others if model.key != champion.key]
        served = (champion, *beside, *self._kept(champion, beside))
        if served != self.served:
            logger.warning("serving %s", ", ".join(model.id for model in served))
            self.served = served
            self.announce(served)

    def _kept(self, champion: ServedModel, beside: list[ServedModel]) -> list[ServedModel]:
        """The former champion, while it is kept and not served anyway."""
        if self.served and self.served[0].key != champion.key:
            self._former = self.served[0], time.monotonic() + self.keep
        if self._former is None or time.monotonic() >= self._former[1]:
            self._former = None
            return []
        return [self._former[0]] if self._former[0].key not in {model.key for model in (champion, *beside)} else []

    def _end_former(self, wanted: set[str]) -> None:
        """Makes room for a version that is to be started."""
        if self._former and self._former[0] in self.served[1:] and self._former[0].key not in wanted:
            self.served = tuple(model for model in self.served if model is not self._former[0])
            self.announce(self.served)
            self.stop(self._former[0].key)
        self._former = None

    def _is_up(self, model: ServedModel) -> bool:
        if model in self.served:
            return True
        if model.key in self._failed:
            return False
        try:
            self.start(model)
        except Exception:
            logger.exception("%s could not be started", model.id)
            self._failed.add(model.key)
            self.stop(model.key)
            return False
        return True

    def _drain(self) -> None:
        now, kept = time.monotonic(), {model.key for model in self.served}
        unwanted = self.running() - kept
        self._unwanted_since = {key: self._unwanted_since.get(key, now) for key in unwanted}
        for key, since in self._unwanted_since.items():
            if now - since >= self.grace:
                self.stop(key)
