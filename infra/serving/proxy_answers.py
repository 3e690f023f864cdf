"""What a client is told while no API stands behind Serve's proxy: 503 and Retry-After in the API's schema.

The proxy is there from the start to the end of a server, the API only between: before it is up, while it drains, and
when its replica was lost, the proxy answers by itself, with a line of plain text and statuses that clients do not try
again. Serve takes these middlewares from RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH (ray_session.py).
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.serving.api_error import ApiError

RETRY_AFTER = 1  # seconds
OWN = "/-/"  # paths of the proxy itself, such as /-/healthz


def middlewares() -> list[Middleware]:
    return [Middleware(InSchema)]


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
