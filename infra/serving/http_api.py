"""The HTTP side of the API: routes, server-sent events, errors in OpenAI's schema, the pages.

Knows nothing of Ray: `build` makes an ASGI application around anything that can make images (a `Backend`).
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from infra.config import ServeConfig
from infra.serving import events, form_fields, model_routes, speech, uploads, video_routes
from infra.serving.answer_headers import of_answer
from infra.serving.api_error import ApiError
from infra.serving.backend import Backend
from infra.serving.http_guards import Guard, Held, key_of
from infra.serving.ignored_fields import ignored, in_body
from infra.serving.openai_api import EditRequest, GenerationRequest, ImageRequest, VariationRequest, invalid, orders
from infra.serving.orders import SampleRequest, SourceImage
from infra.serving.served_model import ServedModel, find
from infra.serving.video_jobs import JobStore, Worker

PAGES = Path(__file__).with_name("pages")
FILES = {path.name: path for path in sorted(PAGES.glob("*.*")) if path.suffix in (".js", ".css")}
KINDS = {".js": "text/javascript", ".css": "text/css"}
POLICY = (
    "default-src 'none'",
    "style-src 'self'",
    "script-src 'self'",
    "img-src data: blob:",
    "media-src data:",
    "connect-src 'self' data:",
    "form-action 'none'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
)


def build(backend: Backend, config: ServeConfig, keys: tuple[str, ...] = ()) -> FastAPI:
    """The ASGI application. `keys` are the digests of the accepted API keys."""
    store = JobStore(Path(config.videos), config.videos_kept, 3600 * config.video_hours)
    worker = Worker(store, backend, config)
    app = FastAPI(
        title="Latent Foundry",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=worker.lifespan,
    )
    _tell_errors(app)
    model_routes.add(app, backend, config)
    _tell_pages(app)
    held = Held(config.images_per_key)
    decoder = uploads.Decoder(config.max_pixels, config.pixels_in_flight)
    _make_images(app, backend, config, held, decoder)
    speech.add(app, backend, config, held)
    video_routes.add(app, backend, config, store, worker, decoder)
    app.add_middleware(Guard, config=config, keys=keys)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's client sends headers of its own, x-stainless-...
            expose_headers=["x-request-id", "retry-after", "x-model", "x-queue-ms", "x-queue-position", "x-ignored"],
        )
    return app


def _make_images(app: FastAPI, backend: Backend, config: ServeConfig, held: Held, decoder: uploads.Decoder) -> None:
    """The routes that make images."""

    async def answer(
        raw: Request, request: ImageRequest, model: ServedModel, event: str, source: SourceImage | None = None
    ) -> Response:
        wanted = orders(request, model, config, source)
        names = ignored(request, model)
        headers = of_answer(model, names)
        with contextlib.ExitStack() as answered:
            answered.enter_context(held.by(key_of(raw), len(wanted)))
            if request.stream:
                position, updates = await events.accepted(backend, wanted)
                headers["x-queue-position"] = str(position)  # the head is sent before anybody knows how long it waits
                shown = events.told(updates, wanted, model, event, bool(request.queue_updates), in_body(names))
                headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
                lasting = _within(shown, answered.pop_all())
                return StreamingResponse(lasting, media_type="text/event-stream", headers=headers)
            made = await backend.generate(wanted)
        headers["x-queue-ms"] = str(events.log_queue(model, len(wanted), made.queue_seconds))
        as_url = request.response_format == "url"
        data = [_item(image, order, model, as_url) for image, order in zip(made.images, wanted, strict=True)]
        body = {"created": int(time.time()), "data": data, **events.facts(wanted[0], model), "usage": events.NO_USAGE}
        return JSONResponse(body | in_body(names), headers=headers)

    @app.post("/v1/images/generations")
    async def generations(raw: Request, request: GenerationRequest) -> Response:
        model = find(request.model, await backend.served(), config.aliases)
        return await answer(raw, request, model, "image_generation")

    async def from_image(kind: type[ImageRequest], raw: Request, event: str) -> Response:
        request, files = await _form(kind, raw)
        model = find(request.model, await backend.served(), config.aliases)
        redraws = kind is EditRequest
        opened = await decoder.source(files["image"], files.get("mask"), request.strength, model, redraws)
        return await answer(raw, request, model, event, opened)

    @app.post("/v1/images/edits", openapi_extra=_body(EditRequest, "image", "mask"))
    async def edits(request: Request) -> Response:
        return await from_image(EditRequest, request, "image_edit")

    @app.post("/v1/images/variations", openapi_extra=_body(VariationRequest, "image"))
    async def variations(request: Request) -> Response:
        return await from_image(VariationRequest, request, "image_variation")


def _item(image: bytes, order: SampleRequest, model: ServedModel, as_url: bool) -> dict[str, Any]:
    encoded = base64.b64encode(image).decode()
    if as_url:
        return {"url": f"data:{model.medium.formats[order.output_format]};base64,{encoded}", "seed": order.seed}
    return {"b64_json": encoded, "seed": order.seed}


async def _within(shown: AsyncIterator[str], answered: contextlib.ExitStack) -> AsyncIterator[str]:
    with answered:
        async for event in shown:
            yield event


async def _form(kind: type[ImageRequest], raw: Request) -> tuple[ImageRequest, dict[str, bytes]]:
    """A multipart body: its fields, checked, and its files by name, `image` always among them. Raises ApiError."""
    fields, files = await form_fields.of_form(raw, kind.model_fields)
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


def _tell_pages(app: FastAPI) -> None:
    # nothing may be loaded from elsewhere, and nothing that stands in the page itself is run
    headers = {"Content-Security-Policy": "; ".join(POLICY), "X-Content-Type-Options": "nosniff"}

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse((PAGES / "page.html").read_text(), headers=headers)

    @app.get("/docs", response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        return HTMLResponse((PAGES / "docs.html").read_text(), headers=headers)

    @app.get("/pages/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in FILES:
            raise ApiError(404, f"pages: no {name[:80]!r} here")
        return Response(FILES[name].read_text(), media_type=KINDS[FILES[name].suffix], headers=headers)


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
        where = "" if error.status_code in (408, 413) else f"{request.method} {request.url.path}: "
        return _answer(ApiError(error.status_code, f"{where}{error.detail}"))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return _answer(events.known(error))
