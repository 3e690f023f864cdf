"""Server-sent events of images on their way, in OpenAI's schema."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from infra.serving.api_error import ApiError
from infra.serving.backend import Backend, Update
from infra.serving.orders import SampleRequest
from infra.serving.served_model import ServedModel

NO_USAGE = {  # nothing here is counted in tokens
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}
# Serve writes it with the request's id, beside its own line of each request
logger = logging.getLogger("ray.serve")
Updates = AsyncIterator[tuple[int, Update]]


async def accepted(backend: Backend, wanted: list[SampleRequest]) -> tuple[int, Updates]:
    """How many requests come before one that was accepted, and its stream: a refusal can still be told by the
    status."""
    updates = backend.stream(wanted)
    try:
        _, first = await anext(updates)
    except BaseException:
        with contextlib.suppress(Exception):
            await updates.aclose()
        raise
    return first.num_before, updates


def log_queue(model: ServedModel, count: int, seconds: float) -> int:
    """Notes in the log how long a request waited for its turn; returns the milliseconds."""
    milliseconds = round(seconds * 1000)
    logger.info("%s: %d images, %s ms in the queue", model.id, count, milliseconds)
    return milliseconds


async def told(
    updates: Updates,
    wanted: list[SampleRequest],
    model: ServedModel,
    event: str,
    places: bool,
    further: Mapping[str, Any] = {},
) -> AsyncIterator[str]:
    """Events of all images as they come. A failure ends the stream with an event that holds an `error`. `places`:
    whether those of the queue are told, too; `further`: what a finished image's event says beside."""
    num_shown, queue_ms = [0] * len(wanted), 0
    try:
        async for number, update in updates:
            if not update.image:
                if not update.num_before:
                    queue_ms = log_queue(model, len(wanted), update.queue_seconds)
                elif places:
                    yield _written(f"{event}.queued", {"position": update.num_before})
                continue
            name = f"{event}.completed" if update.final else f"{event}.partial_image"
            waited = {"queue_ms": queue_ms, **further} if update.final else {}
            yield _written(name, _image(number, update, num_shown[number], wanted[number], model) | waited)
            num_shown[number] += 1
    except Exception as error:
        yield f"event: error\ndata: {json.dumps(known(error).body)}\n\n"
    finally:
        with contextlib.suppress(Exception):
            await updates.aclose()


def _written(name: str, body: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **body})}\n\n"


def _image(number: int, update: Update, num_shown: int, order: SampleRequest, model: ServedModel) -> dict[str, Any]:
    """`number` is the image's place in its request."""
    own = {"usage": NO_USAGE} if update.final else {"partial_image_index": num_shown, "progress": update.progress}
    return {
        "b64_json": base64.b64encode(update.image).decode(),
        "created_at": int(time.time()),
        **facts(order, model),
        "index": number,
        "seed": order.seed,
        **own,
    }


def facts(order: SampleRequest, model: ServedModel) -> dict[str, Any]:
    """What goes for all images of a request."""
    return {
        "model": model.id,
        "size": model.size_of(order),
        "quality": "auto",
        "background": "opaque",
        "output_format": order.output_format,
    }


def known(error: Exception) -> ApiError:
    """What a client is told of any failure."""
    if isinstance(error, ApiError):
        return error
    return ApiError(500, "the server failed to answer; its log says why", kind="server_error")
