"""Headers that answers of every medium carry: the model that made them, and the fields that said nothing to it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from urllib.parse import quote

from infra.serving.openai_api import ImageRequest, ignored
from infra.serving.served_model import ServedModel

MAX_NAMED = 20  # ignored fields that a header lists
PLAIN = (string.punctuation + " ").replace("%", "")  # of a model's name; the rest is written as in a URL


def of_answer(request: ImageRequest, model: ServedModel, further: Sequence[str] = ()) -> dict[str, str]:
    """`further`: ignored fields that only the request's own route knows of."""
    headers = {"x-model": quote(model.id, safe=PLAIN)}
    if names := [*ignored(request, model), *further]:
        headers["x-ignored"] = ", ".join(quote(name[:40]) for name in names[:MAX_NAMED])
    return headers
