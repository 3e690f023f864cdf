"""How the API tells an error. Imports nothing, so that Serve's proxies can tell one without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

HOLD = "x-refused-for"  # between API and proxy: seconds for which all would be refused, and those that one is worth
LONGEST = 60.0  # seconds that a client is told to wait; OpenAI's own takes a longer one for none


class ApiError(Exception):
    """An answer in OpenAI's error schema."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(status, message)  # what pickle makes it of again, between replicas
        self.status, self.retry_after = status, retry_after
        self.hold: tuple[float, float] | None = None  # HOLD, where it goes for all
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def __str__(self) -> str:
        return self.body["error"]["message"]

    @property
    def headers(self) -> dict[str, str]:
        told = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return told if self.hold is None else told | {HOLD: "{:.3f} {:.3f}".format(*self.hold)}


def queue_full(seconds: float) -> ApiError:
    """The refusal of a request that would not be finished in time, with the seconds until there may be room."""
    whole = max(1, math.ceil(seconds))
    return ApiError(
        429,
        f"the queue is full: this request would not be finished in time; try again in {whole} s",
        kind="rate_limit_error",
        code="queue_full",
        retry_after=whole,
    )


@dataclass
class Hold:
    """A full queue's refusal, which goes for others `until` a time, of time.monotonic(): who comes is told to come back
    at `back`, each `own` seconds after the one before."""

    until: float
    back: float
    own: float

    def refusal(self, now: float) -> ApiError | None:
        """Of the next one who comes; None when it goes for nobody any more."""
        if now >= self.until:
            return None
        self.back = min(now + LONGEST, self.back + self.own)
        return queue_full(self.back - now)
