"""The OpenAI Images API in front of samplers: what a request may say, how it is checked, and how errors are told.

Knows neither HTTP nor Ray: `orders` turns a request into images to be made, an ApiError holds the answer otherwise.
"""

from __future__ import annotations

import re
import secrets
import uuid
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from components.conditioning.classes import class_of
from components.config import may_be_none, overlaid, without_truths_for_numbers
from components.data.media import Medium
from components.data.media.image import MEDIUM as IMAGES
from components.errors import SamplerError
from components.sampling.requests import BLEND
from infra.config import ServeConfig
from infra.serving.api_error import ApiError
from infra.serving.orders import SampleRequest, SourceImage, Towards, steps_by_part
from infra.serving.served_model import ServedModel

MAX_SEED = 2**53 - 1  # what every JSON parser reads exactly
RANDOM_SEED = -1  # as other servers' clients ask for any
MAX_RESIZED = 2048  # pixels of a side
UNUSED = ("n", "stream", "partial_images", "queue_updates")  # where a request makes one thing and is answered at once
ALIASES = {"sampler": "solver"}  # names that other servers give to our settings


def _of_whole_characters(text: str) -> str:
    """Raises PydanticCustomError of half a character, a lone surrogate, as JSON may escape one and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("half_character", "expected whole characters") from None
    return text


Text = Annotated[str, AfterValidator(_of_whole_characters)]


class Fields(BaseModel):
    """Base of what a request says: true is no number."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_truths(cls, body: Any) -> Any:
        return without_truths_for_numbers(cls, body)


class ImageRequest(Fields):
    """What every request may say. A sampler's own settings (num_inference_steps, guidance_scale, ...) may stand beside
    these fields; those that it does not have are ignored, as is everything else, and the answer says so."""

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
    prompt: Text
    negative_prompt: Text | None = None  # what guidance leads away from


class BlendRequest(Fields):
    """Another image to go towards: that of another seed, of another prompt or of both. `share` of the way, for each of
    the images and of seeds that count up alike; without it, the images are steps of one way, from the request's own
    image to the other."""

    model_config = ConfigDict(extra="forbid")

    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    prompt: Text | None = None
    share: float | None = Field(None, ge=0, le=1)


class GenerationRequest(PromptedRequest):
    """`POST /v1/images/generations`."""

    blend: BlendRequest | None = None


class EditRequest(PromptedRequest):
    """`POST /v1/images/edits`, beside its files. Without a mask the image is varied towards the prompt; with one, what
    the mask leaves transparent is redrawn. `strength`: see Source; 1 with a mask if not told, 0.6 without."""

    strength: float | None = Field(None, gt=0, le=1)
    instead_of: Text | None = None  # what the image shows, of a sampler that leads it from there to the prompt


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
    ways = _ways(request, model, limits, count)
    common = {
        **order_basics(request, model, limits),
        "source": source,
        "output_format": request.output_format or "png",
        "output_compression": 100 if request.output_compression is None else request.output_compression,
        "num_previews": (request.partial_images or 0) if request.stream else 0,
        "sides": None if request.size == model.size else model.own_sizes.get(request.size),
        "notes": request.metadata is not False,
    }
    return [SampleRequest(seed=seed, blend=way, **common) for seed, way in ways]


def refuse_other_medium(model: ServedModel, expected: Medium) -> None:
    """Raises ApiError of a model that makes something else."""
    if model.medium.name != expected.name:
        message = f"model: {model.id} makes {model.medium.plural}; expected a model of {expected.plural}"
        raise ApiError(400, message, param="model")


def declared(request: ImageRequest, field: str) -> Any:
    """A field's value; None where the request's route has no such field, though a client may send one beside."""
    return getattr(request, field) if field in type(request).model_fields else None


def seed_of(request: ImageRequest) -> int:
    """The seed that is asked for, or any."""
    return secrets.randbelow(2**31) if request.seed in (None, RANDOM_SEED) else request.seed


def seeds_of(first: int, count: int) -> list[int]:
    """Of a request's images: they count up, and start anew after the largest."""
    return [(first + number) % (MAX_SEED + 1) for number in range(count)]


def _ways(
    request: ImageRequest, model: ServedModel, limits: ServeConfig, count: int
) -> list[tuple[int, Towards | None]]:
    """Each image's seed and, of a blend, where it goes from there and how far. Raises ApiError."""
    seeds, blend = seeds_of(seed_of(request), count), declared(request, BLEND)
    if blend is None:
        return [(seed, None) for seed in seeds]
    other = _other(blend, model, limits)
    if blend.share is None:
        shares = [number / (count - 1) for number in range(count)] if count > 1 else [0.5]
        return [(seeds[0], Towards(share=share, seed=blend.seed, **other)) for share in shares]
    others = [None] * count if blend.seed is None else seeds_of(blend.seed, count)
    return [
        (seed, Towards(share=blend.share, seed=towards, **other)) for seed, towards in zip(seeds, others, strict=True)
    ]


def _other(blend: BlendRequest, model: ServedModel, limits: ServeConfig) -> dict[str, Any]:
    """The condition that a blend goes towards, by name; none where it goes to another seed alone. Raises ApiError of
    what the model cannot go towards."""
    if BLEND not in model.accepts:
        raise ApiError(400, f"blend: {model.id} knows no way between two images", param="blend")
    if blend.seed is None and blend.prompt is None:
        raise ApiError(400, "blend: expected a seed, a prompt or both, found neither", param="blend")
    if blend.prompt is None:
        return {}
    other = _meaning("prompt", "blend.prompt", blend.prompt, model, limits)
    if not other:
        raise ApiError(400, f"blend.prompt: {model.id} takes no prompts", param="blend.prompt")
    return other


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


def _steering(request: ImageRequest, model: ServedModel, limits: ServeConfig, prompt_name: str) -> dict[str, Any]:
    """The conditions that the prompts mean to the model: texts or classes. What means nothing to it is ignored, like
    any setting that it does not have. `prompt_name`: see order_basics."""
    found: dict[str, Any] = {}
    if not isinstance(request, PromptedRequest):
        return found
    said = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or None}
    said |= {"instead_of": declared(request, "instead_of")}
    for field, text in said.items():
        if text is not None:
            found |= _meaning(field, prompt_name if field == "prompt" else field, text, model, limits)
    return found


def _meaning(field: str, told: str, text: str, model: ServedModel, limits: ServeConfig) -> dict[str, Any]:
    """The condition that a text is to the model, by name; none if it means nothing to it. `field`: what it is, `told`:
    what the request calls it. Raises ApiError."""
    if len(text) > limits.max_prompt_length:
        message = f"{told}: at most {limits.max_prompt_length} characters, found {len(text)}"
        raise ApiError(400, message, param=told)
    name = model.condition(field)
    if name is None:
        return {}
    return {name: text if name == field else _class(told, text, model.classes)}


def _class(param: str, text: str, classes: tuple[str, ...]) -> int:
    try:
        return class_of(text, classes)
    except SamplerError as error:
        message = f"{param}: {str(error).removeprefix('prompt: ')}"
        raise ApiError(400, message, param=param, code="unknown_class") from None


def own_settings(request: ImageRequest, model: ServedModel) -> dict[str, Any]:
    """The model's settings that a request says, as it says them; null says none where a setting may be none, or
    nothing."""
    fields = model.kind.Settings.model_fields
    given = {ALIASES.get(name, name): value for name, value in request.model_extra.items()}
    known = {name: value for name, value in given.items() if name in fields}
    return {name: value for name, value in known.items() if value is not None or may_be_none(fields[name])}


def _settings(request: ImageRequest, model: ServedModel, limits: ServeConfig) -> dict[str, Any]:
    """The model's default settings under the request's own."""
    known = own_settings(request, model)
    try:
        chosen = model.kind.Settings(**overlaid(model.settings, known))
    except ValidationError as error:
        raise invalid(error.errors()) from None
    except RecursionError:
        param = next(iter(known)) if len(known) == 1 else None
        message = f"{', '.join(known)[:80]}: nested too deeply"
        raise ApiError(400, message, param=param, code="invalid_value") from None
    if reason := model.kind.why_not(model.kind.Config(**model.run.config), chosen, model.run.data.outline):
        raise ApiError(400, reason, param=reason.partition(":")[0])
    settings = chosen.model_dump(mode="json")
    _refuse_too_many_steps(steps_by_part(settings), limits.max_steps)
    return settings


def _refuse_too_many_steps(found: dict[str, int], most: int) -> None:
    """Raises ApiError naming the parts and their sum; its `param` is the part with the most."""
    if (steps := sum(found.values())) <= most:
        return
    parts = "" if len(found) == 1 else f", the sum of {', '.join(f'{value} ({name})' for name, value in found.items())}"
    param = max(found, key=found.get)
    raise ApiError(400, f"{param}: at most {most}{' in all' if parts else ''}, found {steps}{parts}", param=param)


def _text(value: Any) -> str:
    try:
        return str(value)
    except RecursionError:
        return "values nested too deeply to be shown"


_OF_A_BLOCK = re.compile(r"([a-z][a-z0-9_.]*): (.*)", re.DOTALL)


def invalid(errors: list[dict]) -> ApiError:
    """The first thing wrong with a body; `errors` as pydantic lists them."""
    error = errors[0]
    if error["type"] == "json_invalid":
        return ApiError(400, "body: not valid JSON", code="invalid_json")
    place, message = [str(part) for part in error["loc"] if part != "body"], error["msg"]
    found = "" if error["type"] == "missing" else f", found {_text(error['input'])[:80]!r}"
    if error["type"] == "value_error":
        message = message.removeprefix("Value error, ")
        # what is wrong with a whole block names the field itself, and what it holds
        if named := _OF_A_BLOCK.match(message) if isinstance(error["input"], dict) else None:
            place, message, found = [*place, named[1]], named[2], ""
    path = ".".join(place)
    return ApiError(400, f"{path or 'body'}: {message}{found}", param=path or None, code="invalid_value")
