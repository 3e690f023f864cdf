"""Headers that answers of every medium carry: the model that made them, and the fields that said nothing to it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from urllib.parse import quote

from infra.serving.served_model import ServedModel

PLAIN = (string.punctuation + " ").replace("%", "")  # of a model's name; the rest is written as in a URL


def of_answer(model: ServedModel, names: Sequence[str]) -> dict[str, str]:
    """`names`: of ignored fields."""
    headers = {"x-model": quote(model.id, safe=PLAIN)}
    if names:
        headers["x-ignored"] = ", ".join(map(quote, names))
    return headers
