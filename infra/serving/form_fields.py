"""Multipart forms as JSON bodies and files: clients write lists and blocks into names of fields, pages into text."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from infra.serving.api_error import ApiError


async def of_form(raw: Request, texts: Container[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The values of a request's fields, see `read`, and the content of its files by name. Raises ApiError."""
    fields, files = [], {}
    async with raw.form() as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields.append((name, value))
            elif (name := name.removesuffix("[]")) in files:  # how clients send a list of files
                raise ApiError(400, f"{name}: expected one file, found several", param=name)
            else:
                files[name] = await value.read()
    return read(fields, texts), files


_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)(\[\])?")  # setting, setting[key], setting[], setting[key][]


def read(items: Iterable[tuple[str, str]], texts: Container[str]) -> dict[str, Any]:
    """Values by the names of their fields: `a[b]` is a key of a block, `a[]` is one more value of a list, and a field
    that is none of `texts` may say a list or a block in JSON. Of a field that comes twice the last one counts. Raises
    ApiError of names that contradict each other and of JSON that is none."""
    found: dict[str, Any] = {}
    for name, text in items:
        parts = _NAME.fullmatch(name)
        if parts is None:
            raise ApiError(400, f"{name[:80]}: expected a field's name, as setting, setting[key] or setting[]")
        field, below, is_list = parts[1], re.findall(r"\[([^\[\]]+)\]", parts[2]), parts[3]
        value = text if field in texts else _value(name, text)
        block = found
        for key, inner in zip([field, *below], below, strict=False):
            block = block.setdefault(key, {})
            if not isinstance(block, dict):
                raise _contradicted(field)
            field = inner
        if is_list:
            values = block.setdefault(field, [])
            if not isinstance(values, list):
                raise _contradicted(field)
            values.append(value)
        else:
            block[field] = value
    return found


def _value(name: str, text: str) -> Any:
    if not text.startswith(("[", "{")) and text != "null":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ApiError(400, f"{name}: expected a value or JSON, found {text[:80]!r}", param=name) from None


def _contradicted(field: str) -> ApiError:
    return ApiError(400, f"{field}: expected a value, a list or a block, found two of them", param=field)
