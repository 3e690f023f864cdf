"""The HTTP side of the API: routes, server-sent events, errors in OpenAI's schema, the pages.

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
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from infra.config import ServeConfig
from infra.serving import uploads
from infra.serving.api_error import ApiError
from infra.serving.http_guards import Guard
from infra.serving.openai_api import (
    Backend,
    EditRequest,
    GenerationRequest,
    ImageRequest,
    SampleRequest,
    ServedModel,
    Update,
    VariationRequest,
    find,
    invalid,
    names,
    orders,
)

PAGE, DOCS = (Path(__file__).with_name(name) for name in ("page.html", "docs.html"))
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


def build(backend: Backend, config: ServeConfig, keys: tuple[str, ...] = ()) -> FastAPI:
    """The ASGI application. `keys` are the digests of the accepted API keys."""
    app = FastAPI(title="Latent Foundry", version="1", docs_url=None, redoc_url=None)
    _tell_errors(app)
    _tell_models(app, backend, config)
    _tell_pages(app)
    _make_images(app, backend, config)
    app.add_middleware(Guard, config=config, keys=keys)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


def _make_images(app: FastAPI, backend: Backend, config: ServeConfig) -> None:
    """The routes that make images."""

    async def answer(request: ImageRequest, model: ServedModel, wanted: list[SampleRequest], event: str) -> Response:
        if request.stream:
            streams = await _accepted(backend, wanted)
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            shown = _events(streams, wanted, model, event)
            return StreamingResponse(shown, media_type="text/event-stream", headers=headers)
        images = await _made(backend, wanted)
        data = [
            {"b64_json": base64.b64encode(image).decode(), "seed": order.seed}
            for image, order in zip(images, wanted, strict=True)
        ]
        return JSONResponse({"created": int(time.time()), "data": data, **_facts(wanted[0], model), "usage": NO_USAGE})

    @app.post("/v1/images/generations")
    async def generations(request: GenerationRequest) -> Response:
        model = find(request.model, await backend.served())
        return await answer(request, model, orders(request, model, config), "image_generation")

    async def from_image(kind: type[ImageRequest], raw: Request, event: str) -> Response:
        request, files = await _form(kind, raw)
        model = find(request.model, await backend.served())
        opened = await asyncio.to_thread(
            uploads.source,
            files["image"],
            files.get("mask"),
            request.strength,
            model,
            config.max_pixels,
            redraws=kind is EditRequest,
        )
        return await answer(request, model, orders(request, model, config, opened), event)

    @app.post("/v1/images/edits", openapi_extra=_body(EditRequest, "image", "mask"))
    async def edits(request: Request) -> Response:
        return await from_image(EditRequest, request, "image_edit")

    @app.post("/v1/images/variations", openapi_extra=_body(VariationRequest, "image"))
    async def variations(request: Request) -> Response:
        return await from_image(VariationRequest, request, "image_variation")


async def _form(kind: type[ImageRequest], raw: Request) -> tuple[ImageRequest, dict[str, bytes]]:
    """A multipart body: its fields, checked, and its files by name, `image` always among them. Raises ApiError."""
    fields, files = {}, {}
    async with raw.form() as form:
        for name, value in form.multi_items():
            name = name.removesuffix("[]")  # how clients send a list of files
            if not isinstance(value, UploadFile):
                fields[name] = value
            elif name in files:
                raise ApiError(400, f"{name}: expected one file, found several", param=name)
            else:
                files[name] = await value.read()
    for name in ("image", "mask"):
        if name in fields:
            raise ApiError(400, f"{name}: expected a file", param=name)
    if "image" not in files:
        raise ApiError(400, "image: expected a file in a multipart/form-data body, found none", param="image")
    try:
        return kind(**fields), files
    except ValidationError as error:
        raise invalid(error.errors()) from None


def _body(kind: type[ImageRequest], *files: str) -> dict[str, Any]:
    """How OpenAPI describes a body that `_form` reads."""
    schema = kind.model_json_schema()
    schema["properties"] |= {name: {"type": "string", "format": "binary"} for name in files}
    schema["required"] = [*schema.get("required", ()), "image"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _tell_models(app: FastAPI, backend: Backend, config: ServeConfig) -> None:
    """The routes that tell what there is."""
    created = int(time.time())

    def card(name: str, model: ServedModel) -> dict:
        told = {"medium": model.medium.name, "size": model.size}
        return {"id": name, "object": "model", "created": created, "owned_by": model.name, **told}

    @app.get("/v1/models")
    async def models() -> dict:
        known = names(await backend.served())
        return {"object": "list", "data": [card(name, model) for name, model in known.items()]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict:
        return card(name, find(name, await backend.served()))

    @app.get("/healthz")
    async def healthz() -> dict:
        champion, *others = await backend.served()
        load = await backend.check(champion)
        return {"status": "ok", "model": champion.id, "others": [model.id for model in others], "load": load}

    @app.get("/champion")
    async def champion() -> dict:
        """What the page shows: what can be asked for, and where the model comes from."""
        model, *_ = await backend.served()
        return {
            "name": model.name,
            "version": model.version,
            "classes": model.classes,
            "texts": model.condition("prompt") == "prompt",
            "guided": model.condition("negative_prompt") is not None,
            "edits": "source" in model.accepts,
            "medium": model.medium.name,
            "size": model.size,
            "settings": model.kind.Settings(**model.settings).model_dump(mode="json"),
            "settings_schema": model.kind.Settings.model_json_schema()["properties"],
            "limits": {"n": config.max_images, "num_inference_steps": config.max_steps},
            "figures": model.figures,
            "lineage": {"family": model.run.family, "hash": model.hash, **model.run.provenance.model_dump()},
        }


def _tell_pages(app: FastAPI) -> None:
    # each page is whole in itself: nothing may be loaded from elsewhere
    headers = {"Content-Security-Policy": "; ".join(POLICY)}

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(), headers=headers)

    @app.get("/docs", response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        return HTMLResponse(DOCS.read_text(), headers=headers)


async def _made(backend: Backend, wanted: list[SampleRequest]) -> list[bytes]:
    """All images of a request; the first failure ends the others."""
    tasks = [asyncio.ensure_future(backend.generate(order)) for order in wanted]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # nothing goes on behind an answer


async def _accepted(backend: Backend, wanted: list[SampleRequest]) -> list[AsyncIterator[Update]]:
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
    streams: list[AsyncIterator[Update]], wanted: list[SampleRequest], model: ServedModel, event: str
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
            name = f"{event}.completed" if update.final else f"{event}.partial_image"
            yield _event(name, number, update, num_shown[number], wanted[number], model)
            num_shown[number] += 1
            num_open -= update.final
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await _closed(streams)


def _event(name: str, number: int, update: Update, num_shown: int, order: SampleRequest, model: ServedModel) -> str:
    """One server-sent event. `number` is the image's place in its request."""
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


def _facts(order: SampleRequest, model: ServedModel) -> dict[str, Any]:
    return {
        "model": model.id,
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
