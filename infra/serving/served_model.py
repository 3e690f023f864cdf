"""Versions of samplers as a server offers them, and how requests name them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from components.artifacts.run_folder import RunConfig
from components.config import Strict
from components.data.media import Medium, medium
from components.families import family_class
from components.families.base import Sampler
from infra.serving.api_error import ApiError
from infra.serving.orders import SampleRequest

AS_CLASS = {"prompt": "label", "negative_prompt": "negative_label"}


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
