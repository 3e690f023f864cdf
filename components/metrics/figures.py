"""Figures: numbers about a model, each with all that it takes to read it.

A metric defines its figures where it computes them, families and media add theirs. Policy, report, tables and trackers
iterate over what they are given and know none by its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from components.config import Strict, parse
from components.metrics.intervals import Interval

VALIDATION = "validation"  # a training's history names figures of its checkpoints validation/<name>
Figures = dict[str, "Figure"]  # by name, in the order in which they are shown


class Definition(Strict):
    """A figure whatever its value. `name`: as files and params.yaml write it; `label`: as papers do; `explanation`: one
    line; `unit`: empty of a plain number; `better`: None where neither way is; `labelled`: measured of samplers alone
    that are asked for classes, so that others are not held to it; `column`: as papers head a table's column, the label
    where empty; `group`: which figures it is shown
    with; `summary`: whether it is among the few that stand for a model in `dvc metrics show`."""

    name: str
    label: str
    explanation: str
    kind: Literal["distance", "score", "share", "count", "time", "likelihood"]  # a share is a part of 1
    better: Literal["lower", "higher"] | None
    unit: str = ""
    labelled: bool = False
    column: str = ""
    group: str = ""
    summary: bool = False

    @property
    def heading(self) -> str:
        return self.column or self.label

    def figure(self, value: float | Tensor, interval: Interval | None = None) -> Figure:
        return Figure(self, float(value), interval)

    def cost(self, value: float) -> float:
        """The value where lower is better, its negative where higher is. Not of a figure without a better way."""
        assert self.better is not None, f"{self.name} has no better way"
        return value if self.better == "lower" else -value


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval, where it has one, and the id of the protocol that it was measured by."""

    definition: Definition
    value: float
    interval: Interval | None = None
    protocol: str | None = None

    @property
    def name(self) -> str:
        return self.definition.name


def named(*figures: Figure | None) -> Figures:
    """Figures by name; what is None or not finite is left out, since it can be neither stored nor compared."""
    found = [figure for figure in figures if figure is not None and math.isfinite(figure.value)]
    return {figure.name: figure for figure in found}


def values(figures: Figures) -> dict[str, float]:
    """The plain numbers by name."""
    return {name: figure.value for name, figure in figures.items()}


def under(protocol: str, figures: Figures) -> Figures:
    """The same figures, measured by a protocol."""
    return {name: replace(figure, protocol=protocol) for name, figure in figures.items()}


def definitions(collections: Iterable[Figures]) -> dict[str, Definition]:
    """The definitions of all figures of several sets by name, in the order of their first appearance."""
    return {name: figure.definition for figures in collections for name, figure in figures.items()}


def as_json(figures: Figures) -> dict[str, dict[str, Any]]:
    """Values and intervals by name; definitions are stored once for many sets, by `definitions_as_json`."""
    intervals = {name: list(figure.interval) for name, figure in figures.items() if figure.interval is not None}
    return {"figures": values(figures), "intervals": intervals}


def definitions_as_json(collections: Iterable[Figures]) -> list[dict[str, Any]]:
    """The definitions of several sets of figures, in order."""
    return [one.model_dump(mode="json") for one in definitions(collections).values()]


def from_json(
    content: Mapping[str, Mapping], defined: Iterable[Mapping[str, Any]], protocol: str | None, where: str
) -> Figures:
    """Figures as `as_json` and `definitions_as_json` give them, in the order of their definitions. Raises ConfigError
    naming `where` of malformed definitions."""
    order = [parse(Definition, one, f"{where}.definitions") for one in defined]
    found, intervals = content["figures"], content["intervals"]
    return named(
        *(
            Figure(one, found[one.name], tuple(intervals[one.name]) if one.name in intervals else None, protocol)
            for one in order
            if one.name in found
        )
    )
