"""The HTTP side of the API: routes, server-sent events, errors in OpenAI's schema, the page.

Knows nothing of Ray: `build` makes an ASGI application around anything that can make images (a `Backend`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from infra.config import ServeConfig
from infra.http_guards import Guard
from infra.openai_api import ApiError, Backend, GenerationRequest, ImageOrder, ServedModel, Update, invalid, orders

PAGE = Path(__file__).with_name("page.html")
EVENT = "image_generation."
POLICY = (
    "default-src 'none'",
    "style-src 'unsafe-inline'",
    "script-src 'unsafe-inline'",
    "img-src data:",
    "connect-src 'self'",
    "frame-ancestors 'none'",
)
NO_USAGE = {  # nothing here is counted in tokens
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}


def build(backend: Backend, model: ServedModel, config: ServeConfig, keys: tuple[str, ...] = ()) -> FastAPI:
    """The ASGI application. `keys` are the digests of the accepted API keys."""
    app = FastAPI(title="Latent Foundry", version=model.version)
    _tell_errors(app)
    _tell_models(app, backend, model, config)
    app.add_middleware(Guard, config=config, keys=keys)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-request-id", "retry-after"],
        )

    @app.post("/v1/images/generations")
    async def generations(request: GenerationRequest) -> Response:
        wanted = orders(request, model, config)
        if request.stream:
            streams = await _accepted(backend, wanted)
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(_events(streams, wanted, model), media_type="text/event-stream", headers=headers)
        images = await _made(backend, wanted)
        data = [
            {"b64_json": base64.b64encode(image).decode(), "seed": order.seed}
            for image, order in zip(images, wanted, strict=True)
        ]
        return JSONResponse({"created": int(time.time()), "data": data, **_facts(wanted[0], model), "usage": NO_USAGE})

    return app


def _tell_models(app: FastAPI, backend: Backend, model: ServedModel, config: ServeConfig) -> None:
    """The routes that make nothing."""
    created = int(time.time())
    cards = {name: {"id": name, "object": "model", "created": created, "owned_by": model.name} for name in model.ids}

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": list(cards.values())}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict:
        if name not in cards:
            message = f"model: no {name!r} here; expected {model.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return cards[name]

    @app.get("/healthz")
    async def healthz() -> dict:
        return {"status": "ok", "model": model.ids[1], "load": await backend.check()}

    @app.get("/champion")
    async def champion() -> dict:
        """What the page shows: what can be asked for, and where the model comes from."""
        return {
            "name": model.name,
            "version": model.version,
            "classes": model.run.data.classes if model.kind.conditional else (),
            "size": model.size,
            "settings": model.kind.Settings(**model.settings).model_dump(mode="json"),
            "settings_schema": model.kind.Settings.model_json_schema()["properties"],
            "limits": {"n": config.max_images, "num_inference_steps": config.max_steps},
            "figures": model.figures,
            "lineage": {"family": model.run.family, "hash": model.hash, **model.run.provenance.model_dump()},
        }

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        # the page is whole in itself: nothing may be loaded from elsewhere
        return HTMLResponse(PAGE.read_text(), headers={"Content-Security-Policy": "; ".join(POLICY)})


async def _made(backend: Backend, wanted: list[ImageOrder]) -> list[bytes]:
    """All images of a request; the first failure ends the others."""
    tasks = [asyncio.ensure_future(backend.generate(order)) for order in wanted]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # nothing goes on behind an answer


async def _accepted(backend: Backend, wanted: list[ImageOrder]) -> list[AsyncIterator[Update]]:
    """A stream for each order, all of them accepted: a refusal can still be told by the status."""
    streams = [backend.stream(order) for order in wanted]
    try:
        await asyncio.gather(*(anext(stream) for stream in streams))
    except BaseException:
        await _closed(streams)
        raise
    return streams


async def _closed(streams: list[AsyncIterator[Update]]) -> None:
    for stream in streams:
        with contextlib.suppress(Exception):
            await stream.aclose()


async def _events(
    streams: list[AsyncIterator[Update]], wanted: list[ImageOrder], model: ServedModel
) -> AsyncIterator[str]:
    """Server-sent events of all images as they come. A failure ends the stream with an event that holds an `error`."""
    arrived: asyncio.Queue[tuple[int, Update | Exception]] = asyncio.Queue()

    async def pump(number: int) -> None:
        try:
            async for update in streams[number]:
                arrived.put_nowait((number, update))
        except Exception as error:
            arrived.put_nowait((number, error))

    pumps = [asyncio.ensure_future(pump(number)) for number in range(len(streams))]
    num_shown, num_open = [0] * len(streams), len(streams)
    try:
        while num_open:
            number, update = await arrived.get()
            if isinstance(update, Exception):
                yield f"event: error\ndata: {json.dumps(_known(update).body)}\n\n"
                return
            yield _event(number, update, num_shown[number], wanted[number], model)
            num_shown[number] += 1
            num_open -= update.final
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await _closed(streams)


def _event(number: int, update: Update, num_shown: int, order: ImageOrder, model: ServedModel) -> str:
    """One server-sent event. `number` is the image's place in its request."""
    name = EVENT + ("completed" if update.final else "partial_image")
    own = {"usage": NO_USAGE} if update.final else {"partial_image_index": num_shown, "progress": update.progress}
    body = {
        "type": name,
        "b64_json": base64.b64encode(update.image).decode(),
        "created_at": int(time.time()),
        **_facts(order, model),
        "index": number,
        "seed": order.seed,
        **own,
    }
    return f"event: {name}\ndata: {json.dumps(body)}\n\n"


def _facts(order: ImageOrder, model: ServedModel) -> dict[str, Any]:
    return {
        "model": model.ids[1],
        "size": model.size,
        "quality": "auto",
        "background": "opaque",
        "output_format": order.output_format,
    }


def _known(error: Exception) -> ApiError:
    """What a client is told of any failure."""
    if isinstance(error, ApiError):
        return error
    return ApiError(500, "the server failed to answer; its log says why", kind="server_error")


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


def _tell_errors(app: FastAPI) -> None:
    """Every error in the API's schema, whoever raises it."""

    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> JSONResponse:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        where = "" if error.status_code == 413 else f"{request.method} {request.url.path}: "
        return _answer(ApiError(error.status_code, f"{where}{error.detail}"))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return _answer(_known(error))
