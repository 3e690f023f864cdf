"""The tables of the report: candidates, the figures that decide, the others by what they are about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from components.evaluation.pictures import data_uri
from components.metrics.figures import Definition, Figure, definitions
from pipelines.support import sample_pictures
from pipelines.support.candidates import Candidate, read_champion, settings_text
from pipelines.support.metrics_files import Known, SamplerMetrics
from pipelines.support.params import PromoteConfig
from pipelines.support.policy import cost
from pipelines.support.report_pictures import champion_grid
from pipelines.support.report_words import value_text

Context = dict[str, Any]
Bounds = dict[str, dict[str, float | None]]  # by figure: at_least, at_most
GROUPS = ("distances", "fidelity and diversity", "labels", "likelihood", "cost")  # in this order, then others
_WIDEST = 6  # columns of a table


def candidate_rows(
    metrics: dict[str, SamplerMetrics], promoted: dict, metric: str, teachers: Mapping[str, str]
) -> list[Context]:
    """Every candidate of every sampler, and a champion of an earlier training, best first; those without the metric
    last. `teachers`: by sampler, the run that taught it."""
    candidates = [candidate for measured in metrics.values() for candidate in measured.candidates]
    rows = []
    for candidate in candidates:
        reigns = (candidate.sampler, candidate.number) == (promoted["sampler"], promoted["candidate"])
        grid = champion_grid() if reigns else sample_pictures.read_grid(candidate.sampler, candidate.number)
        rows.append(_row(candidate, candidate.name, reigns, grid))
    if promoted["version"] is not None and promoted["candidate"] is None:
        candidate = read_champion(version=promoted["version"])
        rows.append(_row(candidate, f"{candidate.sampler} {candidate.name}", True, champion_grid()))
    judged = promoted.get("objections", {})
    for row in rows:
        row["objections"] = judged.get(row["candidate"].name)
        row["taught"] = teachers.get(row["sampler"], "")
    return sorted(rows, key=lambda row: cost(row["candidate"], metric) if metric in row["figures"] else math.inf)


def _row(candidate: Candidate, name: str, reigns: bool, grid: bytes) -> Context:
    return {
        "candidate": candidate,
        "sampler": candidate.sampler,
        "name": name,
        "settings": settings_text(candidate.settings),
        "figures": candidate.figures,
        "searched": candidate.searched,
        "collapsed": candidate.collapsed,
        "champion": reigns,
        "objections": None,
        "grid": data_uri(grid),
    }


def deciding(rows: list[Context], known: Known, policy: PromoteConfig, bounds: Bounds) -> list[Definition]:
    """The figures that decide who reigns, as far as anything was measured by them."""
    defined = definitions([*(row["figures"] for row in rows), *(one.figures for one in known.sets)])
    second = policy.second_opinion.metric if policy.second_opinion is not None else None
    names = dict.fromkeys([policy.metric, second, policy.tie_break, *bounds])
    return [defined[name] for name in names if name in defined]


def grouped(rows: list[Context], known: Known) -> list[tuple[str, list[Definition]]]:
    """All figures by what they are about, in tables of a few columns."""
    defined = definitions([*(row["figures"] for row in rows), *(one.figures for one in known.sets)])
    groups: dict[str, list[Definition]] = {name: [] for name in GROUPS}
    for one in defined.values():
        groups.setdefault(one.group or "others", []).append(one)
    return [
        (name, found[start : start + _WIDEST])
        for name, found in groups.items()
        for start in range(0, len(found), _WIDEST)
    ]


def bounds_of(promoted: dict, policy: PromoteConfig) -> Bounds:
    """The guards' bounds in figures: as promote recorded them, which knows what relative ones come to."""
    if "guards" in promoted:
        return promoted["guards"]
    return {name: {"at_least": one.at_least, "at_most": one.at_most} for name, one in policy.guards.items()}


def meets(found: Figure | None, bound: dict[str, float | None] | None) -> bool | None:
    """Whether a figure lies within its guard's bounds; None where there is no figure, or no guard."""
    if found is None or bound is None:
        return None
    low, high = bound.get("at_least"), bound.get("at_most")
    return (low is None or found.value >= low) and (high is None or found.value <= high)


def bound_text(definition: Definition, bound: dict[str, float | None]) -> str:
    """A guard's bounds as a person reads them: >= 95.0%."""
    signs = {"at_least": "\N{GREATER-THAN OR EQUAL TO}", "at_most": "\N{LESS-THAN OR EQUAL TO}"}
    ends = ((sign, bound.get(key)) for key, sign in signs.items())
    return ", ".join(f"{sign} {value_text(definition, end)}" for sign, end in ends if end is not None)
