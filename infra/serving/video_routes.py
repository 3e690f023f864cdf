"""OpenAI's Videos API: `POST /v1/videos` makes a job; it is polled, listed, fetched and deleted by its id."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import time
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import Field, ValidationError

from components.data.media.image import fitted, on_white
from components.data.media.video import FACTOR
from components.data.media.video import MEDIUM as VIDEOS
from infra.config import ServeConfig
from infra.serving import form_fields
from infra.serving.answer_headers import of_answer
from infra.serving.api_error import ApiError
from infra.serving.backend import Backend
from infra.serving.http_guards import key_of
from infra.serving.ignored_fields import ignored, in_body
from infra.serving.openai_api import UNUSED, PromptedRequest, invalid, order_basics, refuse_other_medium, seed_of
from infra.serving.orders import SampleRequest
from infra.serving.served_model import ServedModel, find
from infra.serving.uploads import Decoder, num_pixels, open_image
from infra.serving.video_jobs import Job, JobStore, Worker

POLL_AFTER = 500  # milliseconds, as clients are told
MOST_LISTED = 100
REFERENCE = "input_reference"  # the picture that a film begins with


class VideoRequest(PromptedRequest):
    """`POST /v1/videos`, as JSON or as a form with a file `input_reference`. `seconds` may be any length that the model
    makes; its settings (num_inference_steps, frames, ...) may stand beside."""

    unused = (*UNUSED, "response_format")

    seconds: str | Annotated[float, Field(strict=True)] | None = None
    output_format: Literal[tuple(VIDEOS.formats)] | None = "mp4"


def add(app: FastAPI, backend: Backend, config: ServeConfig, store: JobStore, worker: Worker, decoder: Decoder) -> None:
    """The routes. Jobs belong to the API key that made them; without keys to everybody, whoever made them."""

    def is_of(job: Job, raw: Request) -> bool:
        return key_of(raw) in ("", job.owner)

    def job_of(raw: Request, name: str) -> Job:
        job = store.get(name)
        if job is None or not is_of(job, raw):
            raise ApiError(404, f"videos: no {name[:80]!r} here", param="video_id", code="not_found")
        return job

    @app.post("/v1/videos", openapi_extra=_body())
    async def create(raw: Request) -> Response:
        request, picture = await _read(raw)
        model = find(request.model, await backend.served(), config.aliases)
        first = None if picture is None else await _first(picture, model, decoder)
        wanted = order(request, model, config, first)
        frames = wanted.settings.get("frames") or model.row_shape[1]
        job = Job(
            id=f"video_{uuid.uuid4().hex}",
            order=wanted,
            model=model.id,
            prompt=request.prompt,
            seconds=f"{frames / model.medium.rate:g}",
            frames=frames,
            size=wanted.size or model.size,
            created_at=int(time.time()),
            owner=key_of(raw),
        )
        await asyncio.to_thread(store.add, job)
        worker.start()
        names = ignored(request, model)
        return JSONResponse(job.card() | in_body(names), headers=of_answer(model, names))

    @app.get("/v1/videos")
    async def listed(raw: Request, after: str = "", limit: int = 20, order: Literal["asc", "desc"] = "desc") -> dict:
        jobs = [job for job in await asyncio.to_thread(store.all) if is_of(job, raw)]
        return _page(jobs if order == "asc" else jobs[::-1], after, max(1, min(limit, MOST_LISTED)))

    @app.get("/v1/videos/{name}")
    async def retrieve(raw: Request, name: str) -> Response:
        worker.start()
        return JSONResponse(job_of(raw, name).card(), headers={"openai-poll-after-ms": str(POLL_AFTER)})

    @app.delete("/v1/videos/{name}")
    async def delete(raw: Request, name: str) -> dict:
        job = job_of(raw, name)
        await asyncio.to_thread(store.remove, job.id)
        return {"id": job.id, "object": "video.deleted", "deleted": True}

    @app.get("/v1/videos/{name}/content")
    async def content(
        raw: Request, name: str, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
    ) -> Response:
        """The film; a thumbnail of its first frame; all its frames beside each other. The last two are of the latest
        estimate where the film is on its way."""
        return await asyncio.to_thread(_content, store, job_of(raw, name), variant)


def _page(jobs: list[Job], after: str, most: int) -> dict:
    """Up to `most` of the jobs that come behind the one of an id, as OpenAI lists them. Raises ApiError of an id that
    is none of theirs, or no more: who pages on from it would see the first ones again."""
    places = [place for place, job in enumerate(jobs) if job.id == after]
    if after and not places:
        raise ApiError(404, f"after: no {after[:80]!r} here", param="after", code="not_found")
    rest = jobs[places[0] + 1 :] if places else jobs
    shown = rest[:most]
    ends = {"first_id": shown[0].id, "last_id": shown[-1].id} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": [job.card() for job in shown], **ends, "has_more": len(rest) > len(shown)}


def _content(store: JobStore, job: Job, variant: str) -> Response:
    """A job's film or picture. Raises ApiError while there is none."""
    path = store.film(job, is_final=job.status == "completed")
    if job.status == "failed" or (variant == "video" and job.status != "completed") or not path.is_file():
        raise ApiError(409 if job.ended else 404, f"video: {job.status}, {job.progress} %", code="video_not_ready")
    if variant == "video":
        return Response(path.read_bytes(), media_type=VIDEOS.formats[job.order.output_format])
    return Response(_picture(path, job, variant), media_type="image/png")


def order(request: VideoRequest, model: ServedModel, limits: ServeConfig, first: str | None) -> SampleRequest:
    """The film that a request asks of a model; `first`: as SampleRequest has it. Raises ApiError naming the field that
    cannot be met."""
    refuse_other_medium(model, VIDEOS)
    basics = order_basics(request, model, limits)
    if request.seconds is not None:
        if "frames" not in model.kind.Settings.model_fields:
            raise ApiError(400, f"seconds: {model.id} makes films of one length; expected none", param="seconds")
        basics["settings"]["frames"] = _frames(request.seconds, model)
    return SampleRequest(
        seed=seed_of(request),
        first=first,
        output_format=request.output_format or "mp4",
        output_compression=100 if request.output_compression is None else request.output_compression,
        notes=request.metadata is not False,
        **basics,
    )


def _frames(seconds: str | float, model: ServedModel) -> int:
    """The nearest number of frames that there is. Raises ApiError of a length that the model does not make."""
    rate, most = model.medium.rate, model.row_shape[1]
    try:
        asked = float(seconds) * rate
    except ValueError:
        asked = float("nan")
    if not 0 < asked <= most + FACTOR / 2:
        message = f"seconds: expected up to {most / rate:g}, found {str(seconds)[:40]!r}"
        raise ApiError(400, message, param="seconds")
    return min(most, 1 + FACTOR * round((asked - 1) / FACTOR))


async def _first(picture: bytes, model: ServedModel, decoder: Decoder) -> str:
    """A picture that a film begins with, decoded beside the event loop. Raises ApiError."""
    refuse_other_medium(model, VIDEOS)
    if "first" not in model.accepts:
        raise ApiError(400, f"{REFERENCE}: {model.id} begins with no picture", param=REFERENCE)
    pixels = num_pixels(picture, REFERENCE, decoder.most)
    return await decoder.run(pixels, functools.partial(_stored, picture, model, decoder.most))


def _stored(picture: bytes, model: ServedModel, max_pixels: int) -> str:
    """A picture brought to the model's sides: its stored values in base64."""
    opened = open_image(picture, REFERENCE, max_pixels)
    channels, _, *sides = model.row_shape
    return base64.b64encode(fitted(on_white(opened), (channels, *sides)).tobytes()).decode()


async def _read(raw: Request) -> tuple[VideoRequest, bytes | None]:
    """The fields of a JSON body or a form, and the picture in it. Raises ApiError."""
    files: dict[str, bytes] = {}
    if raw.headers.get("content-type", "").startswith("application/json"):
        try:
            fields = await raw.json()
        except (ValueError, RecursionError):
            raise ApiError(400, "body: not valid JSON", code="invalid_json") from None
        if not isinstance(fields, dict):
            raise ApiError(400, "body: expected an object", code="invalid_value")
    else:
        fields, files = await form_fields.of_form(raw, VideoRequest.model_fields)
    first, given = files.get(REFERENCE), fields.pop(REFERENCE, None)
    if given is not None:
        first = _of_url(str(given.get("image_url", "") if isinstance(given, dict) else given))
    try:
        return VideoRequest(**fields), first
    except ValidationError as error:
        raise invalid(error.errors()) from None


def _body() -> dict[str, Any]:
    """How OpenAPI describes a body that `_read` reads."""
    schema = VideoRequest.model_json_schema()
    with_file = {**schema, "properties": {**schema["properties"], REFERENCE: {"type": "string", "format": "binary"}}}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": with_file}}
    return {"requestBody": {"required": True, "content": content}}


def _of_url(url: str) -> bytes:
    """A data URL's content: nothing is fetched from elsewhere."""
    head, _, content = url.partition(";base64,")
    try:
        if not head.startswith("data:image/"):
            raise ValueError
        return base64.b64decode(content, validate=True)
    except ValueError:
        message = f"{REFERENCE}: expected a file or a data URL of an image"
        raise ApiError(400, message, param=REFERENCE) from None


def _picture(path: Path, job: Job, variant: str) -> bytes:
    """A PNG of a film's first frame, or of all of them side by side."""
    width, height = map(int, job.size.split("x"))
    seconds = float(job.seconds)
    frames = job.frames or max(1, round(seconds * VIDEOS.rate))
    film = VIDEOS.at(frames / seconds).read(path, (3, frames, height, width))
    film = film[:, :1] if variant == "thumbnail" else film
    sheet = np.concatenate(np.moveaxis(film, 0, -1), axis=1)  # (H, T * W, 3)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    return buffer.getvalue()
