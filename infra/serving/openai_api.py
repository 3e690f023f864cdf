"""The OpenAI Images API in front of samplers: what a request may say, how it is checked, and how errors are told.

Knows neither HTTP nor Ray: `orders` turns a request into images to be made, an ApiError holds the answer otherwise.
"""

from __future__ import annotations

import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.artifacts.run_folder import RunConfig
from components.conditioning.classes import class_of
from components.config import Strict, overlaid
from components.data.media import Medium, medium
from components.data.media.image import MEDIUM as IMAGES
from components.errors import SamplerError
from components.families import family_class
from components.families.base import Sampler
from infra.config import ServeConfig
from infra.serving.api_error import ApiError

MAX_SEED = 2**53 - 1  # what every JSON parser reads exactly
RANDOM_SEED = -1  # as other servers' clients ask for any
MAX_RESIZED = 2048  # pixels of a side
AS_CLASS = {"prompt": "label", "negative_prompt": "negative_label"}
UNUSED = ("n", "stream", "partial_images", "queue_updates")  # where a request makes one thing and is answered at once
ALIASES = {"sampler": "solver"}  # names that other servers give to our settings


class ServedModel(Strict):
    """A version of a sampler. `folder` is absolute; `settings` are its defaults; `figures` are for display,
    `definitions` say how to read them; `hash` tells contents apart. `accepts` says what steers it (Sampler.accepts)."""

    name: str
    version: str
    folder: str
    run: RunConfig
    settings: dict[str, Any] = Field({})
    figures: dict[str, Any] = Field({})
    definitions: tuple[dict[str, Any], ...] = ()  # components/metrics/figures.py, Definition
    hash: str = ""
    accepts: tuple[str, ...] = ()
    sizes: tuple[tuple[int, ...], ...] = ()  # sides that it makes itself (Sampler.sizes)

    @property
    def kind(self) -> type[Sampler]:
        return family_class(self.run.family)

    @property
    def id(self) -> str:
        """The name that stays this version's own, whoever reigns."""
        return f"{self.name}@{self.version}"

    @property
    def key(self) -> str:
        """What tells it from every other content, as letters, digits, - and _."""
        content = self.hash or self.run.provenance.job
        return re.sub(r"[^A-Za-z0-9_-]", "_", f"{self.name}-{self.version}-{content[:12]}")

    @property
    def classes(self) -> tuple[str, ...]:
        """That a prompt may name; none where prompts are texts or mean nothing."""
        return self.run.data.classes if "label" in self.accepts else ()

    @property
    def voices(self) -> tuple[str, ...]:
        """Speakers that a request may name."""
        return self.run.data.speakers if "speaker" in self.accepts else ()

    def condition(self, field: Literal["prompt", "negative_prompt", "instead_of"]) -> str | None:
        """The condition that a request's text means to the sampler: the text itself or a class. None if nothing."""
        return next((name for name in (field, AS_CLASS.get(field)) if name in self.accepts), None)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of what it makes, channels first."""
        autoencoder = self.run.data.autoencoder
        return (autoencoder.data if autoencoder else self.run.data).shape

    @property
    def medium(self) -> Medium:
        return medium(self.run.data.decoded.medium, rate=self.run.data.decoded.rate)

    @property
    def size(self) -> str:
        """As a request and a person say it: of images WIDTHxHEIGHT."""
        return self.medium.size(self.row_shape)

    def size_of(self, order: SampleRequest) -> str:
        """That of the image of an order."""
        own = self.size if order.sides is None else self.medium.size((self.row_shape[0], *order.sides))
        return order.size or own

    @property
    def own_sizes(self) -> dict[str, tuple[int, ...]]:
        """The sides that it makes without resizing, by how a request says them, its usual ones first."""
        usual = {self.size: self.row_shape[1:]}
        return usual | {self.medium.size((self.row_shape[0], *sides)): sides for sides in self.sizes}


Served = tuple[ServedModel, ...]  # what requests may ask for, the champion first


def names(served: Served) -> dict[str, ServedModel]:
    """What a request may call each of them: its id, and the champion by the model's name alone."""
    return {served[0].name: served[0], **{model.id: model for model in served}}


def find(name: str | None, served: Served, aliases: Mapping[str, str] = {}) -> ServedModel:
    """The model that a request names, the champion if it names none. Raises ApiError listing those there are."""
    known = names(served)
    name = aliases.get(name, name)
    if name and name not in known:
        expected = " or ".join(map(repr, known))
        message = f"model: no {name[:80]!r} here; expected {expected}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return known[name] if name else served[0]


class SourceImage(Strict):
    """An image to start from, or to show anew by a sampler that takes the content of images, at the sampler's own size:
    uint8 pixels, channels first. `mask`: a byte a pixel, 255 where to redraw; empty for everywhere. `strength` in
    (0, 1]: how much noise is put on it."""

    pixels: bytes
    strength: float
    mask: bytes = b""


class SampleRequest(Strict):
    """One image to be made by the version with the key `model`. `group` is shared by the images of one request, which
    came at `asked_at`, a time.time()."""

    model: str
    seed: int
    settings: dict[str, Any]
    group: str
    label: int | None = None
    speaker: int | None = None
    negative_label: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    source: SourceImage | None = None
    first: str | None = None  # of a film: a picture that it begins with, its stored values in base64
    instead_of: str | None = None
    output_format: str = "png"  # one of its medium's
    output_compression: int = 100
    num_previews: int = 0
    size: str | None = None  # that the image is resized to; None for the model's own
    sides: tuple[int, ...] | None = None  # that the model makes; None for its usual ones
    notes: bool = True  # whether the file says what it was made with, where its format can
    asked_at: float = Field(default_factory=time.time)


class Made(NamedTuple):
    """The encoded images of a request, and the seconds that it waited for its turn."""

    images: list[bytes]
    queue_seconds: float


class Update(NamedTuple):
    """An encoded image on its way: an estimate at `progress` in [0, 1], or the image itself. Before the first, without
    an image, `num_before`: those that come before it; when it has its turn, `queue_seconds`: how long it waited."""

    progress: float
    image: bytes
    final: bool = False
    num_before: int = 0
    queue_seconds: float = 0.0


class Backend(Protocol):
    """What makes the images. `trouble`: what keeps it from following the registry, if something does."""

    trouble: str

    async def served(self) -> Served:
        """The models that orders may be for. Raises ApiError while there is none."""

    async def generate(self, orders: list[SampleRequest]) -> Made:
        """The images of one request. Raises ApiError; cancelling it ends the work."""

    def stream(self, orders: list[SampleRequest]) -> AsyncIterator[tuple[int, Update]]:
        """By the number of an order: the first one's place in the queue, at first when the orders of one request are
        accepted, its turn, previews, and each image. Raises ApiError; closing it ends the work."""

    async def check(self, model: ServedModel) -> dict[str, int]:
        """The load of one engine. Raises ApiError if no image can be made at the moment."""

    async def metrics(self, everything: bool) -> str:
        """Figures as Prometheus reads them; `everything`: the cluster's beside our own."""


class ImageRequest(BaseModel):
    """What every request may say. A sampler's own settings (num_inference_steps, guidance_scale, ...) may stand beside
    these fields; those that it does not have are ignored, as is everything else, and a header says so."""

    model_config = ConfigDict(extra="allow")
    unused: ClassVar[tuple[str, ...]] = ()  # fields that mean nothing on its route

    model: str | None = None
    n: int | None = Field(1, ge=1)
    size: str | None = "auto"
    response_format: Literal["b64_json", "url"] | None = None  # url: a data URL, which never expires
    # of the first image; each further one has the next, after the largest comes 0
    seed: int | None = Field(None, ge=RANDOM_SEED, le=MAX_SEED)
    output_format: Literal[tuple(IMAGES.formats)] | None = "png"
    output_compression: int | None = Field(100, ge=0, le=100)
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3)
    user: str | None = None
    metadata: bool | None = True  # PNG files say what they were made with
    queue_updates: bool | None = False  # a stream also tells how many come before: events image_generation.queued


class PromptedRequest(ImageRequest):
    prompt: str
    negative_prompt: str | None = None  # what guidance leads away from


class GenerationRequest(PromptedRequest):
    """`POST /v1/images/generations`."""


class EditRequest(PromptedRequest):
    """`POST /v1/images/edits`, beside its files. Without a mask the image is varied towards the prompt; with one, what
    the mask leaves transparent is redrawn. `strength`: see Source; 1 with a mask if not told, 0.6 without."""

    strength: float | None = Field(None, gt=0, le=1)
    instead_of: str | None = None  # what the image shows, of a sampler that leads it from there to the prompt


class VariationRequest(ImageRequest):
    """`POST /v1/images/variations`, beside its file."""

    strength: float | None = Field(None, gt=0, le=1)


def orders(
    request: ImageRequest, model: ServedModel, limits: ServeConfig, source: SourceImage | None = None
) -> list[SampleRequest]:
    """The images that a request asks of a model. Raises ApiError naming the field that cannot be met."""
    refuse_other_medium(model, IMAGES)
    count = request.n or 1
    if count > limits.max_images:
        raise ApiError(400, f"n: at most {limits.max_images} images a request, found {count}", param="n")
    first = seed_of(request)
    common = {
        **order_basics(request, model, limits),
        "source": source,
        "output_format": request.output_format or "png",
        "output_compression": 100 if request.output_compression is None else request.output_compression,
        "num_previews": (request.partial_images or 0) if request.stream else 0,
        "sides": None if request.size == model.size else model.own_sizes.get(request.size),
        "notes": request.metadata is not False,
    }
    return [SampleRequest(seed=(first + number) % (MAX_SEED + 1), **common) for number in range(count)]


def refuse_other_medium(model: ServedModel, expected: Medium) -> None:
    """Raises ApiError of a model that makes something else."""
    if model.medium.name != expected.name:
        message = f"model: {model.id} makes {model.medium.plural}; expected a model of {expected.plural}"
        raise ApiError(400, message, param="model")


def seed_of(request: ImageRequest) -> int:
    """The seed that is asked for, or any."""
    return secrets.randbelow(2**31) if request.seed in (None, RANDOM_SEED) else request.seed


def order_basics(
    request: ImageRequest, model: ServedModel, limits: ServeConfig, prompt_name: str = "prompt"
) -> dict[str, Any]:
    """What every medium's orders say: the model, its settings, what steers it, the size. `prompt_name`: what the
    request calls its prompt. Raises ApiError."""
    return {
        "model": model.key,
        "settings": _settings(request, model, limits),
        **_steering(request, model, limits, prompt_name),
        "group": uuid.uuid4().hex,
        "size": None if "size" in request.unused else _size(request.size, model, limits),
    }


def _size(asked: str | None, model: ServedModel, limits: ServeConfig) -> str | None:
    """What the image is to be resized to, if to anything. Raises ApiError of a size that is not served."""
    if asked in (None, "auto", *model.own_sizes):
        return None
    sides = re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", asked)
    if limits.sizes == "exact" or not sides:
        known = ", ".join(map(repr, model.own_sizes))
        raise ApiError(400, f"size: expected {known} or 'auto', found {asked[:80]!r}", param="size")
    if limits.sizes == "nearest":
        return None
    if max(map(int, sides.groups())) > MAX_RESIZED:
        raise ApiError(400, f"size: at most {MAX_RESIZED}x{MAX_RESIZED}, found {asked!r}", param="size")
    return asked


def ignored(request: ImageRequest, model: ServedModel) -> list[str]:
    """Fields of a request that say nothing to the model."""
    named = [ALIASES.get(name, name) for name, value in request.model_extra.items() if value is not None]
    found = [name for name in named if name not in model.kind.Settings.model_fields]
    given = request.model_fields_set
    found += [name for name in request.unused if name in given and getattr(request, name) is not None]
    fields = type(request).model_fields
    for field in ("prompt", "negative_prompt", "instead_of"):
        if getattr(request, field, None) and model.condition(field) is None:
            found.append(fields[field].alias or field)
    return found


def _steering(request: ImageRequest, model: ServedModel, limits: ServeConfig, prompt_name: str) -> dict[str, Any]:
    """The conditions that the prompts mean to the model: texts or classes. What means nothing to it is ignored, like
    any setting that it does not have. `prompt_name`: see order_basics."""
    found: dict[str, Any] = {}
    if not isinstance(request, PromptedRequest):
        return found
    said = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or None}
    said |= {"instead_of": getattr(request, "instead_of", None)}
    for field, text in said.items():
        if text is None:
            continue
        if len(text) > limits.max_prompt_length:
            message = f"{field}: at most {limits.max_prompt_length} characters, found {len(text)}"
            raise ApiError(400, message, param=field)
        name = model.condition(field)
        if name is not None:
            told = prompt_name if field == "prompt" else field
            found[name] = text if name == field else _class(told, text, model.classes)
    return found


def _class(param: str, text: str, classes: tuple[str, ...]) -> int:
    try:
        return class_of(text, classes)
    except SamplerError as error:
        message = f"{param}: {str(error).removeprefix('prompt: ')}"
        raise ApiError(400, message, param=param, code="unknown_class") from None


def _settings(request: ImageRequest, model: ServedModel, limits: ServeConfig) -> dict[str, Any]:
    """The model's default settings under the request's own."""
    given = {ALIASES.get(name, name): value for name, value in request.model_extra.items() if value is not None}
    known = {name: given[name] for name in given if name in model.kind.Settings.model_fields}
    try:
        chosen = model.kind.Settings(**overlaid(model.settings, known))
    except ValidationError as error:
        raise invalid(error.errors()) from None
    if reason := model.kind.why_not(model.kind.Config(**model.run.config), chosen, model.run.data.outline):
        raise ApiError(400, reason, param=reason.partition(":")[0])
    settings = chosen.model_dump(mode="json")
    steps = num_steps(settings)
    if steps > limits.max_steps:
        raise ApiError(
            400, f"num_inference_steps: at most {limits.max_steps}, found {steps}", param="num_inference_steps"
        )
    return settings


def num_steps(settings: Mapping[str, Any]) -> int:
    """Of a sampler's settings, or of all parts of a composite's, a block each."""
    blocks = [block for block in settings.values() if isinstance(block, dict)]
    return settings.get("num_inference_steps", 0) + sum(map(num_steps, blocks))


def invalid(errors: list[dict]) -> ApiError:
    """The first thing wrong with a body; `errors` as pydantic lists them."""
    error = errors[0]
    if error["type"] == "json_invalid":
        return ApiError(400, "body: not valid JSON", code="invalid_json")
    path = ".".join(str(part) for part in error["loc"] if part != "body")
    found = "" if error["type"] == "missing" else f", found {str(error['input'])[:80]!r}"
    return ApiError(400, f"{path or 'body'}: {error['msg']}{found}", param=path or None, code="invalid_value")
