"""Fields of a request that say nothing to the model: none is refused for them, and every answer names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.config import overlaid
from infra.serving.openai_api import ALIASES, ImageRequest, declared, own_settings
from infra.serving.served_model import ServedModel

MAX_NAMED = 20  # fields that an answer lists
MAX_LETTERS = 40  # of each


def ignored(request: ImageRequest, model: ServedModel, further: Sequence[str] = ()) -> list[str]:
    """Their names, as an answer tells them. `further`: fields that only the request's own route knows of."""
    settings, fields = model.kind.Settings.model_fields, type(request).model_fields
    said = [name for name, value in request.model_extra.items() if value is not None]
    found = [name for name in said if ALIASES.get(name, name) not in settings]
    given = request.model_fields_set
    found += [name for name in request.unused if name in given and getattr(request, name) is not None]
    for field in ("prompt", "negative_prompt", "instead_of"):
        if declared(request, field) and model.condition(field) is None:
            found.append(fields[field].alias or field)
    if declared(request, "strength") is not None and "source" not in model.accepts:
        found.append("strength")  # of a sampler that shows images anew, and starts from none
    found += [*_unheard(request, model), *further]
    return [name[:MAX_LETTERS] for name in found[:MAX_NAMED]]


def in_body(names: Sequence[str]) -> dict[str, list[str]]:
    """What a JSON answer says of ignored fields, where there are any: OpenAI's clients hide headers."""
    return {"ignored": list(names)} if names else {}


def _unheard(request: ImageRequest, model: ServedModel) -> list[str]:
    """Settings that a request chooses and the model has, but that change nothing: what belongs to another condition
    than it was given, guidance of a model that never learned what to be led away from, and the like."""
    asked, kind = own_settings(request, model), model.kind
    if not asked:
        return []
    found = [name for name, field in kind.beside.items() if name in asked and not declared(request, field)]
    config, outline = kind.Config(**model.run.config), model.run.data.outline
    while True:
        whole = kind.Settings(**overlaid(model.settings, asked))
        chosen = kind.Settings.model_construct(set(asked), **dict(whole))
        name = (kind.unheard(config, chosen, outline) or "").partition(":")[0]
        if not _said(asked, name):
            break
        found.append(name)
        asked = _without(asked, name)
    # a negative prompt says what to be led away from
    led = declared(request, "negative_prompt") and model.condition("negative_prompt")
    return [name for name in found if not (led and name.rpartition(".")[2] == "guidance_scale")]


def _said(block: Any, path: str) -> bool:
    for key in path.split("."):
        block = block.get(key) if isinstance(block, Mapping) else None
    return block is not None


def _without(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    key, _, rest = path.partition(".")
    kept = {name: value for name, value in block.items() if name != key}
    return kept | {key: _without(block[key], rest)} if rest else kept
