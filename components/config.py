"""Strict typed configuration: every block of params.yaml becomes a frozen pydantic model at the door."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from components.errors import ConfigError


class Strict(BaseModel):
    """Base of every configuration block: unknown keys are refused, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
        raise ConfigError("; ".join(_describe(item, model, where) for item in error.errors())) from None


def _describe(item: dict, model: type[BaseModel], where: str) -> str:
    path = ".".join([where, *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        known = f"; known keys here: {', '.join(model.model_fields)}" if len(item["loc"]) == 1 else ""
        return f"{path}: unknown key{known}"
    if item["type"] == "missing":
        return f"{path}: required key is missing"
    return f"{path}: {item['msg'].removeprefix('Value error, ')}, found {item['input']!r}"
