"""The table of docs/PARADIGMS.md of what `tests.benchmarks.paradigms` has kept:

python -m tests.benchmarks.paradigms --table [FOLDER]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

Runs = Sequence[Mapping]  # of one model, what was measured of each seed that is there


def markdown(models: Mapping[str, str], seeds: Sequence[int], folder: Path) -> str:
    """The table of models, each with its paradigm, in order of their first Fréchet distance. A model without all seeds
    says how many it has, one without any is left out, and so is a column that no model fills."""
    found = {}
    for name in models:
        paths = [folder / f"{name}_{seed}.json" for seed in seeds]
        runs = [json.loads(path.read_text()) for path in paths if path.exists()]
        if runs:
            found[name] = runs
    order = sorted(found, key=lambda name: _least([run for run in found[name] if not run["failed"]]))
    rows = {}
    for name in order:
        runs, counted = found[name], len(found[name])
        whole = [run for run in runs if not run["failed"]]
        told = f"`{name}`" if counted == len(seeds) else f"`{name}`, {counted} of {len(seeds)} seeds"
        rows[name] = [models[name], told, *(column(whole) for column in COLUMNS.values()), str(counted - len(whole))]
    headings = ["paradigm", "model", *COLUMNS, "failed runs"]
    filled = [place for place in range(len(headings)) if any(row[place] for row in rows.values())]
    lines = [headings, ["---"] * len(headings), *rows.values()]
    return "\n".join(f"| {' | '.join(line[place] for place in filled)} |" for line in lines)


def _least(runs: Runs) -> float:
    return mean(run["frechet_distance"] for run in runs) if runs else float("inf")


def _number(value: float) -> str:
    """Three digits, and none behind the point that say nothing."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _mean(name: str, shown: Callable[[float], str] = _number) -> Callable[[Runs], str]:
    """A column of the means of a figure."""

    def column(runs: Runs) -> str:
        values = [run[name] for run in runs if name in run]
        return shown(mean(values)) if values else ""

    return column


def _distance(runs: Runs) -> str:
    each = [_number(run["frechet_distance"]) for run in runs]
    return f"{_number(_least(runs))} ({', '.join(each)})" if runs else ""


def _bits(runs: Runs) -> str:
    """Held out and, in brackets, of training rows; of tokens where they are theirs."""
    for unit, what in (("dim", ""), ("token", " a token")):
        pair = [_mean(f"bits_per_{unit}{which}", lambda value: f"{value:.2f}")(runs) for which in ("", "_train")]
        if all(pair):
            return f"{pair[0]} ({pair[1]}){what}"
    return ""


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _thousands(value: float) -> str:
    return f"{value / 1000:,.0f} k"


COLUMNS: dict[str, Callable[[Runs], str]] = {
    "Fréchet distance (seeds)": _distance,
    "precision": _mean("precision", lambda value: f"{value:.2f}"),
    "recall": _mean("recall", lambda value: f"{value:.2f}"),
    "coverage": _mean("coverage", lambda value: f"{value:.2f}"),
    "classes hit": _mean("classes_hit"),
    "label agreement": _mean("label_agreement", _share),
    "bits/dim held out (training)": _bits,
    "ms alone": _mean("cpu_ms_1"),
    "ms of 100": _mean("cpu_ms_100"),
    "evaluations": _mean("network_evaluations"),
    "parameters": _mean("parameters", _thousands),
    "steps": _mean("steps", lambda value: f"{value:,.0f}"),
    "linear probe": _mean("probe_accuracy", _share),
}
