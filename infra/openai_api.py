"""The OpenAI Images API in front of a sampler: what a request may say, how it is checked, and how errors are told.

Knows neither HTTP nor Ray: `orders` turns a request into images to be made, an ApiError holds the answer otherwise.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.config import Strict
from components.errors import SamplerError
from components.families import family_class
from components.families.base import Sampler
from components.prompts import class_of
from components.run_folder import RunConfig
from infra.config import ServeConfig

MAX_SEED = 2**53 - 1  # what every JSON parser reads exactly
ALIASES = {"sampler": "solver"}  # names that other servers give to our settings


class ServedModel(Strict):
    """A promoted sampler. `folder` is absolute; `settings` are its defaults; `figures` and `hash` are for display."""

    name: str
    version: str
    folder: str
    run: RunConfig
    settings: dict[str, Any] = Field({})
    figures: dict[str, Any] = Field({})
    hash: str = ""

    @property
    def kind(self) -> type[Sampler]:
        return family_class(self.run.family)

    @property
    def ids(self) -> tuple[str, str]:
        """The names that a request may call it by."""
        return self.name, f"{self.name}@{self.version}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of what it makes."""
        autoencoder = self.run.data.autoencoder
        return (autoencoder.data if autoencoder else self.run.data).shape

    @property
    def size(self) -> str:
        _, height, width = self.image_shape
        return f"{width}x{height}"


class ImageOrder(Strict):
    """One image to be made. `group` is shared by the images of one request."""

    seed: int
    label: int | None
    settings: dict[str, Any]
    group: str
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = 100
    num_previews: int = 0


class Update(NamedTuple):
    """An encoded image on its way: an estimate at `progress` in [0, 1], or the image itself."""

    progress: float
    image: bytes
    final: bool = False


class Backend(Protocol):
    """What makes the images."""

    async def generate(self, order: ImageOrder) -> bytes:
        """The encoded image. Raises ApiError; cancelling it ends the work."""

    def stream(self, order: ImageOrder) -> AsyncIterator[Update | None]:
        """None when the order is accepted, then previews, then the image. Raises ApiError; closing it ends the work."""

    async def check(self) -> dict[str, int]:
        """The load of one engine. Raises ApiError if no image can be made at the moment."""


class ApiError(Exception):
    """An answer in OpenAI's error schema."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class GenerationRequest(BaseModel):
    """`POST /v1/images/generations`. A sampler's own settings (num_inference_steps, guidance_scale, ...) may stand
    beside these fields; those that it does not have are ignored, as is everything else."""

    model_config = ConfigDict(extra="allow")

    prompt: str
    model: str | None = None
    n: int | None = Field(1, ge=1)
    size: str | None = "auto"
    response_format: Literal["b64_json"] | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)  # of the first image; each further one has the next
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: int | None = Field(100, ge=0, le=100)
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3)
    user: str | None = None


def orders(request: GenerationRequest, model: ServedModel, limits: ServeConfig) -> list[ImageOrder]:
    """The images that a request asks of a model. Raises ApiError naming the field that cannot be met."""
    if request.model is not None and request.model not in model.ids:
        raise ApiError(
            404, f"model: no {request.model!r} here; expected {model.name!r}", param="model", code="model_not_found"
        )
    count = request.n or 1
    if count > limits.max_images:
        raise ApiError(400, f"n: at most {limits.max_images} images a request, found {count}", param="n")
    if request.size not in (None, "auto", model.size):
        raise ApiError(400, f"size: expected {model.size!r} or 'auto', found {request.size!r}", param="size")
    settings, label = _settings(request, model, limits), _label(request.prompt, model, limits)
    first = secrets.randbelow(2**31) if request.seed is None else request.seed
    common = {
        "label": label,
        "settings": settings,
        "group": uuid.uuid4().hex,
        "output_format": request.output_format or "png",
        "output_compression": 100 if request.output_compression is None else request.output_compression,
        "num_previews": (request.partial_images or 0) if request.stream else 0,
    }
    return [ImageOrder(seed=first + number, **common) for number in range(count)]


def _label(prompt: str, model: ServedModel, limits: ServeConfig) -> int | None:
    if len(prompt) > limits.max_prompt_length:
        raise ApiError(
            400, f"prompt: at most {limits.max_prompt_length} characters, found {len(prompt)}", param="prompt"
        )
    if not (model.kind.conditional and model.run.data.classes):
        return None
    try:
        return class_of(prompt, model.run.data.classes)
    except SamplerError as error:
        raise ApiError(400, str(error), param="prompt", code="unknown_class") from None


def _settings(request: GenerationRequest, model: ServedModel, limits: ServeConfig) -> dict[str, Any]:
    """The model's default settings under the request's own."""
    given = {ALIASES.get(name, name): value for name, value in request.model_extra.items() if value is not None}
    known = {name: given[name] for name in given if name in model.kind.Settings.model_fields}
    try:
        settings = model.kind.Settings(**{**model.settings, **known}).model_dump(mode="json")
    except ValidationError as error:
        raise invalid(error.errors()) from None
    steps = settings.get("num_inference_steps", 1)
    if steps > limits.max_steps:
        raise ApiError(
            400, f"num_inference_steps: at most {limits.max_steps}, found {steps}", param="num_inference_steps"
        )
    return settings


def invalid(errors: list[dict]) -> ApiError:
    """The first thing wrong with a body; `errors` as pydantic lists them."""
    error = errors[0]
    if error["type"] == "json_invalid":
        return ApiError(400, "body: not valid JSON", code="invalid_json")
    path = ".".join(str(part) for part in error["loc"] if part != "body")
    found = "" if error["type"] == "missing" else f", found {str(error['input'])[:80]!r}"
    return ApiError(400, f"{path or 'body'}: {error['msg']}{found}", param=path or None, code="invalid_value")
