"""`POST /v1/audio/speech`, in OpenAI's schema: a class or text that a speaker says, as a file or as it comes about."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import ConfigDict, Field

from components.conditioning.classes import class_of
from components.data.media.audio import MEDIUM, samples
from components.errors import SamplerError
from infra.config import ServeConfig
from infra.serving import events
from infra.serving.answer_headers import of_answer
from infra.serving.api_error import ApiError
from infra.serving.backend import Backend
from infra.serving.http_guards import Held, key_of
from infra.serving.ignored_fields import ignored
from infra.serving.openai_api import UNUSED, PromptedRequest, Text, order_basics, refuse_other_medium, seed_of
from infra.serving.orders import SampleRequest
from infra.serving.served_model import ServedModel, find

PCM = {"pcm": "audio/pcm"}  # bare int16 samples, little-endian, at the model's rate
STREAMED = ("wav", "pcm")  # formats whose beginning is known before their end
_PARTS = 100  # of a streamed clip, at most
_UNKNOWN = 0xFFFFFFFF  # a length that a WAV file's header says while nobody knows it


class SpeechRequest(PromptedRequest):
    """`input`: a class's name or a text; `voice`: a speaker, or empty for nobody in particular. A sampler's settings
    may stand beside, and `seed`."""

    model_config = ConfigDict(extra="allow")
    unused = (*UNUSED, "size", "output_format", "output_compression", "metadata")

    prompt: Text = Field(alias="input")
    voice: str | dict[str, Any] | None = None
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] | None = "mp3"


def add(app: FastAPI, backend: Backend, config: ServeConfig, held: Held) -> None:
    @app.post("/v1/audio/speech")
    async def speech(raw: Request, request: SpeechRequest) -> Response:
        model = find(request.model, await backend.served(), config.aliases)
        file_format = request.response_format or "mp3"
        order = order_of(request, model, config)
        mime = (PCM | dict(MEDIUM.formats))[file_format]
        unheard = ["voice"] if request.voice and not model.voices else []
        headers = of_answer(model, ignored(request, model, unheard)) | {"x-sample-rate": str(round(model.medium.rate))}
        with contextlib.ExitStack() as answered:
            answered.enter_context(held.by(key_of(raw), 1))
            if file_format in STREAMED and model.kind.streams:
                _, updates = await events.accepted(backend, [order])
                parts = _told(updates, round(model.medium.rate), file_format, answered.pop_all())
                return StreamingResponse(parts, media_type=mime, headers=headers)
            made = await backend.generate([order])
        headers["x-queue-ms"] = str(events.log_queue(model, 1, made.queue_seconds))
        (data,) = made.images
        content = samples(io.BytesIO(data), model.medium.rate).tobytes() if file_format == "pcm" else data
        return Response(content, media_type=mime, headers=headers)


def order_of(request: SpeechRequest, model: ServedModel, config: ServeConfig) -> SampleRequest:
    """The clip that a request asks of a model. Raises ApiError naming the field that cannot be met."""
    refuse_other_medium(model, MEDIUM)
    plain = request.response_format in STREAMED
    return SampleRequest(
        **order_basics(request, model, config, "input"),
        seed=seed_of(request),
        speaker=_speaker(request.voice, model),
        output_format="wav" if plain else request.response_format or "mp3",
        num_previews=_PARTS if plain and model.kind.streams else 0,
        notes=False,
    )


def _speaker(voice: str | dict[str, Any] | None, model: ServedModel) -> int | None:
    """The speaker that a voice names; voices of models without speakers mean nothing."""
    name = voice.get("id") if isinstance(voice, dict) else voice
    if not name or not model.voices:
        return None
    try:
        return class_of(str(name), model.voices)
    except SamplerError:
        known = ", ".join(model.voices)
        raise ApiError(
            400, f"voice: no {str(name)[:80]!r} here; expected one of {known}", param="voice", code="unknown_voice"
        ) from None


async def _told(
    updates: events.Updates, rate: int, file_format: str, answered: contextlib.ExitStack
) -> AsyncIterator[bytes]:
    """A clip's samples as they come. What fails on the way breaks the connection off, so that nobody takes a part for
    the whole."""
    sent = 0
    with answered:
        try:
            if file_format == "wav":
                yield wav_header(rate)
            async for _, update in updates:
                if update.image:
                    known = samples(io.BytesIO(update.image), rate)
                    if len(known) > sent:
                        yield known[sent:].astype("<i2").tobytes()
                        sent = len(known)
        finally:
            with contextlib.suppress(Exception):
                await updates.aclose()


def wav_header(rate: int) -> bytes:
    """Of one channel of int16 and a length that is not known yet."""
    chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", _UNKNOWN, b"WAVE") + chunk + struct.pack("<4sI", b"data", _UNKNOWN)
