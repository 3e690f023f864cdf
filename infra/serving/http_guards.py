"""Who may ask, and how much at once: host names, API keys and body size, checked before a request is read."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path

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
    """ASGI middleware. `keys` are digests; none: no key is asked for. Keys guard what lies below /v1."""

    def __init__(self, app: ASGIApp, config: ServeConfig, keys: tuple[str, ...]):
        self.app, self.config = app, config
        self.keys = [bytes.fromhex(key) for key in keys]
        self.hosts = config.allowed_hosts or (LOOPBACK if config.loopback else ("*",))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        error = self.refusal(scope["path"], Headers(scope=scope))
        if error is not None:
            return await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
        return await self.app(scope, self.counted(receive), send)

    def refusal(self, path: str, headers: Headers) -> ApiError | None:
        host = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
        if "*" not in self.hosts and host not in self.hosts:
            return ApiError(400, f"host: {host[:80]!r} is not one of serve.allowed_hosts", param="host")
        if self.keys and path.startswith("/v1/") and not self.known(headers.get("authorization", "")):
            return ApiError(401, "the API key is missing or unknown", param=None, code="invalid_api_key")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.config.max_body:
            return ApiError(413, self.too_large(), param="body")
        return None

    def known(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        given = bytes.fromhex(digest(key.strip()))
        # every stored key is compared, and digests rather than keys, so that time tells nothing
        matches = [hmac.compare_digest(given, key) for key in self.keys]
        return scheme.lower() == "bearer" and any(matches)

    def too_large(self) -> str:
        return f"body: at most {self.config.max_body} bytes"

    def counted(self, receive: Receive) -> Receive:
        """The body's parts, refused once they are too many: a length need not be told in advance, or be true."""
        total = 0

        async def counting() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.config.max_body:
                raise HTTPException(413, self.too_large())
            return message

        return counting
