"""Lists and blocks in multipart fields."""

import pytest

from infra.serving import form_fields
from infra.serving.api_error import ApiError

TEXTS = {"prompt", "seed"}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([("prompt", "[a] {cat}"), ("seed", "3")], {"prompt": "[a] {cat}", "seed": "3"}),
        ([("levels[]", "0.2"), ("levels[]", "5")], {"levels": ["0.2", "5"]}),
        ([("levels", "[0.2, 5]"), ("scale", "2")], {"levels": [0.2, 5], "scale": "2"}),
        ([("decoder", '{"steps": 3, "levels": null}')], {"decoder": {"steps": 3, "levels": None}}),
        (
            [("decoder[steps]", "3"), ("decoder[levels][]", "1"), ("decoder[levels][]", "2"), ("decoder[a][b]", "x")],
            {"decoder": {"steps": "3", "levels": ["1", "2"], "a": {"b": "x"}}},
        ),
        ([("scale", "2"), ("scale", "3")], {"scale": "3"}),
        ([("levels", "null"), ("prompt", "null")], {"levels": None, "prompt": "null"}),
    ],
)
def test_they_are_what_a_json_body_would_say(items, expected):
    assert form_fields.read(items, TEXTS) == expected


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([("decoder", "{object Object}")], "decoder: expected a value or JSON, found '{object Object}'"),
        ([("decoder", "[" * 100_000)], "decoder: expected a value or JSON"),
        ([("a[b", "1")], r"a\[b: expected a field's name"),
        ([("", "1")], ": expected a field's name"),
        ([("a", "1"), ("a[b]", "2")], "a: expected a value, a list or a block, found two of them"),
        ([("a[b]", "1"), ("a[]", "2")], "a: expected a value, a list or a block, found two of them"),
    ],
)
def test_what_cannot_be_read_is_named(items, message):
    with pytest.raises(ApiError, match=message) as error:
        form_fields.read(items, TEXTS)
    assert error.value.status == 400
