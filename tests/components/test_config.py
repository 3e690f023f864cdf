"""Strict configuration: every mistake is named with its path, what was found and what was expected."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from components.config import Strict, by_path, from_paths, overlaid, parse
from components.errors import ConfigError


class Inner(Strict):
    rate: float = Field(0.1, gt=0)
    kind: Literal["a", "b"] = "a"


class Outer(Strict):
    steps: int
    inner: Inner = Inner()
    widths: tuple[int, ...] = (1,)

    @model_validator(mode="after")
    def _fits(self) -> Outer:
        if len(self.widths) > 3:
            raise ValueError("at most three widths")
        return self


def test_valid_block():
    outer = parse(Outer, {"steps": 3, "inner": {"rate": "1e-4"}, "widths": [1, 2]}, "x")
    assert outer == Outer(steps=3, inner=Inner(rate=1e-4), widths=(1, 2))


class Whole(Strict):
    outer: Outer = Outer(steps=7, inner=Inner(rate=0.5, kind="b"), widths=(2,))
    chosen: Inner | Outer = Inner(kind="b")
    perhaps: Inner | None = Inner(kind="b")
    absent: Inner | None = None


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"outer": {"widths": [3]}}, Whole(outer=Outer(steps=7, inner=Inner(rate=0.5, kind="b"), widths=(3,)))),
        ({"outer": {"inner": {"rate": 1}}}, Whole(outer=Outer(steps=7, inner=Inner(rate=1, kind="b"), widths=(2,)))),
        ({"perhaps": {"rate": 1}}, Whole(perhaps=Inner(rate=1, kind="b"))),
        ({"perhaps": None, "absent": {"rate": 1}}, Whole(perhaps=None, absent=Inner(rate=1))),
        ({"chosen": {"rate": 1}}, Whole(chosen=Inner(rate=1))),  # a choice of kinds: nothing is carried over
    ],
)
def test_a_partial_block_is_laid_over_the_default_block(block, expected):
    assert parse(Whole, block, "x") == expected


def test_a_mistake_in_a_partial_block_is_named():
    with pytest.raises(ConfigError, match=r"x\.outer\.inner\.lr: unknown key"):
        parse(Whole, {"outer": {"inner": {"lr": 1}}}, "x")


MISTAKES = {
    "unknown key": (
        {"steps": 1, "stpes": 2},
        ["x.stpes: unknown key", "known keys here: steps, inner, widths; the nearest is steps"],
    ),
    "unknown key below": ({"steps": 1, "inner": {"lr": 1}}, ["x.inner.lr: unknown key"]),
    "missing key": ({}, ["x.steps: required key is missing"]),
    "wrong type": ({"steps": "many"}, ["x.steps: ", "integer", "found 'many'"]),
    "no fraction": ({"steps": 1.5}, ["x.steps: ", "integer", "found 1.5"]),
    "impossible value": ({"steps": 1, "inner": {"rate": -1}}, ["x.inner.rate: ", "greater than 0", "found -1"]),
    "no choice": ({"steps": 1, "inner": {"kind": "c"}}, ["x.inner.kind: ", "'a' or 'b'", "found 'c'"]),
    "infinite": ({"steps": 1, "inner": {"rate": float("inf")}}, ["x.inner.rate: ", "finite", "found inf"]),
    "in a list": ({"steps": 1, "widths": [1, "wide"]}, ["x.widths.1: ", "integer", "found 'wide'"]),
    "together impossible": ({"steps": 1, "widths": [1, 2, 3, 4]}, ["x: at most three widths"]),
    "a block that is none": ({"steps": 1, "inner": 3}, ["x.inner: ", "found 3"]),
    "key that is no string": ({"steps": 1, 7: 2}, ["x.7: "]),
    "two mistakes": ({"a": 1}, ["x.steps: required key is missing", "; ", "x.a: unknown key"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_named_in_one_line(mistake):
    block, expected = MISTAKES[mistake]
    with pytest.raises(ConfigError) as error:
        parse(Outer, block, "x")
    message = str(error.value)
    assert "\n" not in message
    assert "Value error" not in message
    for part in expected:
        assert part in message


class Chosen(Strict):
    often: bool | int = 1
    share: float | None = None


@pytest.mark.parametrize("value", [True, False])
def test_truth_values_are_no_numbers(value):
    """pydantic takes them for 1 and 0."""
    word = str(value).lower()
    for kind, block, path in (
        (Outer, {"steps": value}, "x.steps"),
        (Outer, {"steps": 1, "widths": [2, value]}, "x.widths.1"),
        (Outer, {"steps": 1, "inner": {"rate": value}}, "x.inner.rate"),
        (Chosen, {"share": value}, "x.share"),
    ):
        with pytest.raises(ConfigError, match=f"^{path}: [^;]*found '{word}'$"):
            parse(kind, block, "x")
    assert parse(Chosen, {"often": value}, "x").often is value


@pytest.mark.parametrize("block", [None, 3, "steps", ["steps"]])
def test_block_that_is_no_mapping(block):
    with pytest.raises(ConfigError, match=r"^a\.b: expected a mapping of steps, inner, widths, found "):
        parse(Outer, block, "a.b")


def test_values_never_change():
    outer = Outer(steps=1)
    with pytest.raises(ValidationError):
        outer.steps = 2


def test_blocks_by_path_and_back_and_over_others():
    block = {"a": 1, "part": {"b": 2, "inner": {"c": [3]}}}
    assert by_path(block) == {"a": 1, "part.b": 2, "part.inner.c": [3]}
    assert from_paths(by_path(block)) == block
    changed = overlaid(block, {"part": {"b": 5}, "new": {"d": 1}})
    assert changed == {"a": 1, "part": {"b": 5, "inner": {"c": [3]}}, "new": {"d": 1}}
