"""What the API asks of whatever makes the images."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from infra.serving.orders import SampleRequest
from infra.serving.served_model import Served, ServedModel


class Refused(NamedTuple):
    """What a replica answers in the place of an image that a request does not get, for a reason that is no fault of the
    replica's. Serve would log it with a traceback if it were raised."""

    error: Exception


class Made(NamedTuple):
    """The encoded images of a request, and the seconds that it waited for its turn."""

    images: list[bytes]
    queue_seconds: float


class Update(NamedTuple):
    """An encoded image on its way: an estimate at `progress` in [0, 1], or the image itself. Before the first, without
    an image, `num_before`: those that come before it; when it has its turn, `queue_seconds`: how long it waited."""

    progress: float
    image: bytes
    final: bool = False
    num_before: int = 0
    queue_seconds: float = 0.0


class Backend(Protocol):
    """What makes the images. `trouble`: what keeps it from following the registry, if something does."""

    trouble: str

    async def served(self) -> Served:
        """The models that orders may be for. Raises ApiError while there is none."""

    async def generate(self, orders: list[SampleRequest]) -> Made:
        """The images of one request. Raises ApiError; cancelling it ends the work."""

    def stream(self, orders: list[SampleRequest]) -> AsyncIterator[tuple[int, Update]]:
        """By the number of an order: the first one's place in the queue, at first when the orders of one request are
        accepted, its turn, previews, and each image. Raises ApiError; closing it ends the work."""

    async def check(self, model: ServedModel) -> dict[str, int]:
        """The load of one engine. Raises ApiError if no image can be made at the moment."""

    async def metrics(self, everything: bool) -> str:
        """Figures as Prometheus reads them; `everything`: the cluster's beside our own."""
