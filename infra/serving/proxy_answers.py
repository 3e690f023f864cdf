"""What Serve's proxy answers by itself: 503 and Retry-After in the API's schema while no API stands behind it, and what
a queue that is full has just told.

The proxy is there from the start to the end of a server, the API only between: before it is up, while it drains, and
when its replica was lost, the proxy answers by itself, with a line of plain text and statuses that clients do not try
again. Under overload half a core would go into asking the API what it has just said. Serve takes these middlewares from
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH (ray_session.py).
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.serving.api_error import HOLD, ApiError, Hold

RETRY_AFTER = 1  # seconds
OWN = "/-/"  # paths of the proxy itself, such as /-/healthz


def middlewares() -> list[Middleware]:
    return [Middleware(InSchema), Middleware(Holding)]


class InSchema:
    """ASGI middleware: replaces the proxy's own errors. Those of the API are JSON, and pass."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(OWN):
            return await self.app(scope, receive, send)
        replaced = False

        async def sending(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and _is_own(message):
                replaced = True
                error = unavailable()
                await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
            elif not replaced:
                await send(message)

        await self.app(scope, receive, sending)


class Holding:
    """ASGI middleware: what the API refused and said to go for all (HOLD), it refuses by itself for that long. Pages of
    browsers, which need the API's headers of other origins, are always asked for there."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self._holds: dict[str, Hold] = {}  # by path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        path = scope["path"].rstrip("/")
        hold = None if "origin" in Headers(scope=scope) else self._holds.get(path)
        if hold is not None and (error := hold.refusal(time.monotonic())) is not None:
            return await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = self._learnt(path, message)
            await send(message)

        await self.app(scope, receive, sending)

    def _learnt(self, path: str, start: Message) -> Message:
        """The start of an answer as the client gets it."""
        headers = MutableHeaders(raw=list(start["headers"]))
        if HOLD not in headers:
            return start
        now, (seconds, own) = time.monotonic(), map(float, headers[HOLD].split())
        del headers[HOLD]
        before, back = self._holds.get(path), now + float(headers["retry-after"])
        self._holds[path] = Hold(now + seconds, back if before is None else max(before.back, back), own)
        return {**start, "headers": headers.raw}


def _is_own(start: Message) -> bool:
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return start["status"] >= 400 and kind.startswith("text/plain")


def unavailable() -> ApiError:
    return ApiError(
        503,
        "the server is starting, ending or mending itself; try again",
        kind="server_error",
        code="unavailable",
        retry_after=RETRY_AFTER,
    )
