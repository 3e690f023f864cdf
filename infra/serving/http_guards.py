"""Who may ask, and how much at once: host names, origins, API keys, the size of bodies and how long they take, checked
before or while a request is read."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.errors import ConfigError
from infra.config import LOOPBACK, ServeConfig
from infra.serving.api_error import ApiError

KEYS_VARIABLE = "FOUNDRY_API_KEYS"  # digests, separated by commas


def digest(key: str) -> str:
    """What is stored of an API key. Keys are long and random, so a plain hash cannot be searched."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(config: ServeConfig) -> tuple[str, ...]:
    """The digests of the accepted keys, from the file and the environment.

    Raises ConfigError if the file is missing or holds anything else, or if an address that others reach has no key.
    """
    text = os.environ.get(KEYS_VARIABLE, "").replace(",", "\n")
    if config.api_keys:
        try:
            text += "\n" + Path(config.api_keys).read_text()
        except OSError as error:
            raise ConfigError(f"serve.api_keys: {config.api_keys}: {error.strerror}") from None
    keys = tuple(filter(None, (line.partition("#")[0].strip().lower() for line in text.splitlines())))
    if not all(re.fullmatch("[0-9a-f]{64}", key) for key in keys):
        raise ConfigError("serve.api_keys: expected SHA-256 digests in hexadecimal, one a line, found something else")
    if not keys and not config.loopback:
        raise ConfigError(
            f"serve.host: {config.host} is reached from elsewhere, so API keys are needed; set serve.api_keys "
            f"or {KEYS_VARIABLE} (a digest is printed by: printf %s KEY | sha256sum)"
        )
    return keys


class Guard:
    """ASGI middleware. `keys` are digests; none: no key is asked for. Keys guard what lies below /v1, and /metrics. The
    request's scope then tells the key's digest as state["key"], empty without keys: clients send any then, or none."""

    def __init__(self, app: ASGIApp, config: ServeConfig, keys: tuple[str, ...]):
        self.app, self.config = app, config
        self.keys = [bytes.fromhex(key) for key in keys]
        self.hosts = config.allowed_hosts or (LOOPBACK if config.loopback else ("*",))
        self.num_open = 0  # requests whose bodies are still coming

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["path"] = scope["path"].rstrip("/") or "/"  # no redirection, which would go where the host header says
        headers = Headers(scope=scope)
        error = self.refusal(scope["method"], scope["path"], headers)
        if error is not None:
            return await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
        given = headers.get("authorization", "").partition(" ")[2].strip()
        scope.setdefault("state", {})["key"] = digest(given) if self.keys else ""
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)
        body = Body(self, receive)
        try:
            await self.app(scope, body.receive, send)
        finally:
            body.close()

    def refusal(self, method: str, path: str, headers: Headers) -> ApiError | None:
        host = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
        if "*" not in self.hosts and host not in self.hosts:
            return ApiError(400, f"host: {host[:80]!r} is not one of serve.allowed_hosts", param="host")
        guarded = path.startswith("/v1/") or path == "/metrics"
        if self.keys and guarded and not self.known(headers.get("authorization", "")):
            return ApiError(401, "the API key is missing or unknown", param=None, code="invalid_api_key")
        if method not in ("GET", "HEAD", "OPTIONS") and not self.keys and not self.same_origin(headers):
            message = "origin: pages of another origin may not use this server; serve.cors_origins lists those that may"
            return ApiError(403, message, param="origin", code="foreign_origin")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.config.max_body:
            return ApiError(413, self.too_large(), param="body")
        if method == "POST" and self.num_open >= self.config.open_bodies:
            message = "too many requests are being sent at the moment; try again"
            return ApiError(503, message, kind="server_error", code="unavailable", retry_after=1)
        return None

    def same_origin(self, headers: Headers) -> bool:
        """Whether a request comes from no page, or one of this server or of serve.cors_origins. A browser sends forms
        anywhere without asking; where keys are needed, pages of others have none."""
        origin = headers.get("origin")
        if origin is None or origin in self.config.cors_origins or "*" in self.config.cors_origins:
            return True
        try:
            return urlsplit(origin).netloc == headers.get("host", "")
        except ValueError:  # http://[::1
            return False

    def known(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        given = bytes.fromhex(digest(key.strip()))
        # every stored key is compared, and digests rather than keys, so that time tells nothing
        matches = [hmac.compare_digest(given, key) for key in self.keys]
        return scheme.lower() == "bearer" and any(matches)

    def too_large(self) -> str:
        return f"body: at most {self.config.max_body} bytes"


class Body:
    """A request's body as it comes: refused once it is too large, for a length need not be told in advance, or be true,
    and once it takes too long."""

    def __init__(self, guard: Guard, receive: Receive):
        self.guard, self.inner, self.size, self.whole = guard, receive, 0, False
        self.until = time.monotonic() + guard.config.body_timeout
        guard.num_open += 1

    async def receive(self) -> Message:
        if self.whole:
            return await self.inner()
        try:
            message = await asyncio.wait_for(self.inner(), self.until - time.monotonic())
        except TimeoutError:
            seconds = f"{self.guard.config.body_timeout:g}"
            raise HTTPException(408, f"body: not here after {seconds} s; expected within that time") from None
        self.size += len(message.get("body", b""))
        if self.size > self.guard.config.max_body:
            raise HTTPException(413, self.guard.too_large())
        if not message.get("more_body"):
            self.close()
        return message

    def close(self) -> None:
        self.guard.num_open -= not self.whole
        self.whole = True


def key_of(request: Request) -> str:
    """The digest of the API key that a request came with; empty where none is asked for."""
    return getattr(request.state, "key", "")


class Held:
    """Images that each API key waits for. `most`: a key's at a time, 0 for any number."""

    def __init__(self, most: int):
        self.most, self._of = most, Counter[str]()

    @contextlib.contextmanager
    def by(self, key: str, count: int) -> Iterator[None]:
        """The time that `count` images are waited for. Raises ApiError if they are too many for one key."""
        if self.most and self._of[key] + count > self.most:
            message = f"at most {self.most} images at a time for one API key, found {self._of[key] + count}"
            raise ApiError(429, message, kind="rate_limit_error", code="key_limit", retry_after=1)
        self._of[key] += count
        try:
            yield
        finally:
            self._of[key] -= count
            if not self._of[key]:
                del self._of[key]
