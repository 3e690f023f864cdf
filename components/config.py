"""Strict typed configuration: every block of params.yaml becomes a frozen pydantic model at the door."""

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, ValidationError, model_validator
from pydantic.fields import FieldInfo

from components.errors import ConfigError

MOST_SHOWN = 100  # characters of a value in a message


class Strict(BaseModel):
    """Base of every configuration block: unknown keys are refused, values never change. A block below that names
    some of its keys keeps the default block's values in the others, not those of the block's type."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, block: Any) -> Any:
        if not isinstance(block, dict):
            return block
        laid = {}
        for name, field in cls.model_fields.items():
            if isinstance(block.get(name), dict) and _of_one_model(field):
                laid[name] = _laid_over(field.default, block[name])
            elif name in block and name in _fields_of_numbers(cls):
                laid[name] = _truths_in_words(block[name])
        return block | laid


@functools.cache
def _fields_of_numbers(kind: type[BaseModel]) -> frozenset[str]:
    """The keys that take numbers and neither truth values, which pydantic takes for 0 and 1, nor words."""
    leaves = {name: list(_leaves(field.annotation)) for name, field in kind.model_fields.items()}
    others = (bool, str, Any)
    return frozenset(
        name
        for name, found in leaves.items()
        if {int, float} & set(found) and not any(one in others or isinstance(one, bool) for one in found)
    )


def without_truths_for_numbers(kind: type[BaseModel], block: Any) -> Any:
    """A block with words for truth values under keys that take numbers, which pydantic then refuses: for blocks of a
    `kind` that is no Strict."""
    if not isinstance(block, dict):
        return block
    names = {of: name for name, field in kind.model_fields.items() for of in (name, field.alias)}
    numbers = _fields_of_numbers(kind)
    return {key: _truths_in_words(value) if names.get(key) in numbers else value for key, value in block.items()}


def _leaves(annotation: Any) -> Iterator[Any]:
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _leaves(part)


def _truths_in_words(value: Any, depth: int = 3) -> Any:
    """A value, and those of a list and of lists in it, with words for truth values, which pydantic then refuses where a
    number belongs."""
    if isinstance(value, list) and depth:
        return [_truths_in_words(one, depth - 1) for one in value]
    return str(value).lower() if isinstance(value, bool) else value


def _of_one_model(field: FieldInfo) -> bool:
    """Whether the default is a block of the only kind that the field takes; where there is a choice, keys of one kind
    mean nothing in another."""
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    return isinstance(field.default, BaseModel) and [type(field.default)] == [k for k in kinds if k is not type(None)]


def _laid_over(default: BaseModel, block: dict) -> dict:
    """The default's values with the block's in their place, and so in the blocks below that the default has. What
    follows from other values, unless said, is left to follow from the block's."""
    values = {
        name: getattr(default, name)
        for name, field in type(default).model_fields.items()
        if not field.default_factory_takes_validated_data or name in default.model_fields_set
    }
    for name, value in block.items():
        fields = type(default).model_fields
        below = name in fields and _of_one_model(fields[name]) and isinstance(value, dict)
        values[name] = _laid_over(values[name], value) if below else value
    return values


def overlaid(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values with others in their place, key by key in blocks below too."""
    return {**defaults} | {
        name: overlaid(defaults[name], value)
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping)
        else value
        for name, value in given.items()
    }


def by_path(block: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a block and of those below it, each by its keys with dots between: `redraw.solver`."""
    found = {}
    for name, value in block.items():
        below = by_path(value) if isinstance(value, Mapping) else {"": value}
        found |= {f"{name}.{path}".rstrip("."): inner for path, inner in below.items()}
    return found


def from_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The block that `by_path` took apart."""
    block: dict[str, Any] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        block = overlaid(block, {name: from_paths({rest: value}) if rest else value})
    return block


def named_block(default: str) -> Discriminator:
    """For a choice of blocks, each under the Tag of what its key `name` says; a block without one is of `default`."""

    def name(block: Any) -> Any:
        return block.get("name", default) if isinstance(block, dict) else getattr(block, "name", default)

    return Discriminator(name)


def _kinds_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """The blocks that the last part of an error's place may be a key of; parts that are no fields are keys of mappings,
    numbers of lists or tags of choices."""
    kinds = [model]
    for part in loc[:-1]:
        fields = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
        kinds = [below for field in fields for below in models_in(field.annotation)] or kinds
        kinds = [kind for kind in kinds if getattr(kind.model_fields.get("name"), "default", None) == part] or kinds
    return kinds


def may_be_none(field: FieldInfo) -> bool:
    """Whether a key takes null."""
    return type(None) in get_args(field.annotation)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The blocks that a type is made of: itself, or those of a choice, a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in models_in(part)]


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse(model: type[ConfigT], block: object, where: str) -> ConfigT:
    """Builds `model` from a plain mapping.

    `where` is the dotted path of the block, used in messages. Raises ConfigError naming every offending field, what
    was found and what was expected.
    """
    if not isinstance(block, dict):
        raise ConfigError(f"{where}: expected a mapping of {', '.join(model.model_fields)}, found {block!r}")
    try:
        return model.model_validate(block)  # unlike model(**block), it can name a key that is no string
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(item, model, where, block) for item in error.errors())) from None


def _describe(item: dict, model: type[BaseModel], where: str, block: object) -> str:
    path = ".".join([where, *_keys(item, block)])
    if item["type"] == "union_tag_invalid":
        return f"{path}.name: expected one of {item['ctx']['expected_tags']}, found {item['ctx']['tag']!r}"
    if item["type"] == "extra_forbidden":
        known = list(dict.fromkeys(name for kind in _kinds_at(model, item["loc"]) for name in kind.model_fields))
        return f"{path}: unknown key; known keys here: {', '.join(known)}{nearest(str(item['loc'][-1]), known)}"
    if item["type"] == "missing":
        return f"{path}: required key is missing"
    found = repr(item["input"])
    shown = found if len(found) <= MOST_SHOWN else f"{found[: MOST_SHOWN - 4]} ..."
    return f"{path}: {item['msg'].removeprefix('Value error, ')}, found {shown}"


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message on a name that is none of `known`: which of them comes near, if one does."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; the nearest is {near[0]}" if near else ""


def _keys(item: dict, block: Any) -> list[str]:
    """Where in a block an error lies, without the tags that pydantic names where there is a choice of blocks."""
    found, last = [], len(item["loc"]) - 1
    for place, part in enumerate(item["loc"]):
        if isinstance(block, dict) and part not in block and not (place == last and item["type"] == "missing"):
            continue
        found.append(str(part))
        below = isinstance(block, dict) or (isinstance(block, list | tuple) and isinstance(part, int))
        block = block[part] if below and place != last else None
    return found
