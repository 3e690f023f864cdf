"""The plots of the report: quality against cost, held-out losses, curves of trainings."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from markupsafe import Markup

from components.artifacts import run_folder
from components.errors import InputError
from components.evaluation.generation import NETWORK_EVALUATIONS
from components.evaluation.plots import COLOURS, Line, Point, curves, trade_off
from components.families import family_class
from components.metrics import intervals
from components.metrics.figures import VALIDATION, Definition, definitions
from components.metrics.held_out import LIVE, HeldOutLoss
from pipelines.support import paths
from pipelines.support.metrics_files import Known, SamplerMetrics
from pipelines.support.params import TRAINED, Params
from pipelines.support.report_words import figure

Context = dict[str, Any]
History = list[dict[str, float]]
STEPS = "num_inference_steps"


def quality_against_cost(rows: list[Context], known: Known, metric: str) -> list[Context]:
    """A plot of the metric against the first figure that is a time, which depends on the machine, and one against
    network evaluations, which do not; those that somebody has both figures of."""
    defined = definitions(row["figures"] for row in rows)
    costs = [one for one in defined.values() if one.name != metric]
    times = [one for one in costs if one.kind == "time"][:1]
    found = (
        _quality_against(one, [row for row in rows if {metric, one.name} <= row["figures"].keys()], known, metric)
        for one in [*times, *(one for one in costs if one.name == NETWORK_EVALUATIONS.name)]
    )
    return [plot for plot in found if plot is not None]


def _quality_against(cost: Definition, rows: list[Context], known: Known, metric: str) -> Context | None:
    """A plot and its legend. Candidates of a sampler that differ in their number of steps alone are joined."""
    if not rows:
        return None
    quality, joined = rows[0]["figures"][metric].definition, Counter(map(_but_for_steps, rows))
    points = []
    for row in rows:
        path, steps = _but_for_steps(row), row["candidate"].settings.get(STEPS)
        is_joined = steps is not None and joined[path] > 1
        told = (row["figures"][name] for name in (metric, cost.name))
        point = Point(
            x=row["figures"][cost.name].value,
            y=row["figures"][metric].value,
            group=row["sampler"],
            name=f"{row['name']} ({row['settings']}): "
            + ", ".join(f"{one.definition.label} {figure(one)}" for one in told),
            mark=f"{steps} step{'s' * (steps > 1)}" if is_joined else row["name"],
            ringed=row["champion"],
            path=path if is_joined else "",
        )
        points.append(point)
    level = next(((one.figures[metric].value, one.label) for one in known.sets if metric in one.figures), None)
    higher_is_better = quality.better == "higher"
    svg = trade_off(points, axis_label(cost), axis_label(quality), level, higher_is_better)
    taught = {row["sampler"]: row["taught"] for row in rows}
    legend = [
        (f"{sampler}, taught by {teacher}" if teacher else sampler, COLOURS[place % len(COLOURS)])
        for place, (sampler, teacher) in enumerate(taught.items())
    ]
    return {"svg": Markup(svg), "legend": legend, "rising": higher_is_better}


def _but_for_steps(row: Context) -> str:
    """A candidate's sampler and its settings without the number of steps."""
    settings = {name: value for name, value in row["candidate"].settings.items() if name != STEPS}
    return f"{row['sampler']} {sorted(settings.items())}"


def axis_label(definition: Definition) -> str:
    """A figure's label with its unit."""
    return f"{definition.label}, {definition.unit}" if definition.unit else definition.label


def training_curves(params: Params) -> tuple[list[Context], list[Context]]:
    """A small plot for each term of each run, the phases of a run sharing a plot; and apart from those the figures of
    checkpoint validation, which show quality over training time. Held-out losses have plots of their own."""
    losses, validated = [], []
    for name, history in histories(params).items():
        plots, kind = defaultdict(list), _held_out(params, name)
        apart = {one.name for one in kind.definitions} if kind is not None else ()
        for key in dict.fromkeys(key for row in history for key in row if key != "step"):
            phase, _, term = key.rpartition("/")
            if phase != VALIDATION or term not in apart:
                plots[phase == VALIDATION, term].append(Line(phase, *_points(history, key)))
        for (is_validation, term), lines in plots.items():
            legend = [(line.name, COLOURS[place % len(COLOURS)]) for place, line in enumerate(lines)]
            plot = {"run": name, "term": term.replace("_", " "), "legend": legend, "svg": Markup(curves(lines, "step"))}
            (validated if is_validation else losses).append(plot)
    return losses, validated


def histories(params: Params) -> dict[str, History]:
    """The curves of every trained model. Raises InputError of a run that has none."""
    found = {}
    for name in [name for group in TRAINED for name in getattr(params, group)]:
        path = paths.RUNS / name / run_folder.HISTORY
        if not path.is_file():
            raise InputError(f"{path}: missing; expected what `python -m pipelines.train` writes")
        found[name] = run_folder.read_history(path.parent)
    return found


def _points(history: History, key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The steps at which a figure was reported, and its values."""
    steps, values = zip(*[(row["step"], row[key]) for row in history if key in row], strict=True)
    return steps, values


def held_out_losses(params: Params) -> list[Context]:
    """For each run whose checkpoints were measured on held-out and on training rows: both losses and their gap over
    training, both by noise level at the end, and the gap in words."""
    found = []
    for name, history in histories(params).items():
        kind = _held_out(params, name)
        told = [row for row in history if kind is not None and f"{VALIDATION}/{kind.gap}" in row]
        if told:
            last = {key.removeprefix(f"{VALIDATION}/"): value for key, value in told[-1].items()}
            found.append(
                {
                    "run": name,
                    "kind": kind,
                    "step": last["step"],
                    "gap": _gap(last, kind),
                    "live": _gap(last, kind, LIVE),
                    "plots": [_both(told, kind), _gap_plot(told, kind), *_by_level(last, kind)],
                }
            )
    return found


def _held_out(params: Params, name: str) -> HeldOutLoss | None:
    """What a model's checkpoints are measured by on held-out rows."""
    return family_class(params.models[name].family).held_out


def _gap(last: dict[str, float], kind: HeldOutLoss, prefix: str = "") -> Context:
    """The gap, its interval, and whether it lies above zero."""
    value, error = last[f"{prefix}{kind.gap}"], last[f"{prefix}{kind.gap_stderr}"]
    low, high = intervals.normal(value, error)
    return {"value": value, "low": low, "high": high, "open": low > 0, "loss": last[f"{prefix}{kind.held_out}"]}


def _plot(term: str, lines: list[Line], x_label: str, level: float | None = None) -> Context:
    legend = [(line.name, COLOURS[place % len(COLOURS)]) for place, line in enumerate(lines)]
    return {"run": "", "term": term, "legend": legend, "svg": Markup(curves(lines, x_label, level))}


def _both(told: History, kind: HeldOutLoss) -> Context:
    lines = []
    for prefix, weights in (("", "average"), (LIVE, "live")):
        for name, rows in ((kind.held_out, "held out"), (kind.training, "training rows")):
            points = _points(told, f"{VALIDATION}/{prefix}{name}")
            lines.append(Line(f"{rows}, {weights}", *points, faint=bool(prefix)))
    return _plot(kind.label, lines, "step")


def _gap_plot(told: History, kind: HeldOutLoss) -> Context:
    lines = []
    for prefix, weights in (("", "average"), (LIVE, "live")):
        steps, gaps = _points(told, f"{VALIDATION}/{prefix}{kind.gap}")
        _, errors = _points(told, f"{VALIDATION}/{prefix}{kind.gap_stderr}")
        ends = [intervals.normal(gap, error) for gap, error in zip(gaps, errors, strict=True)]
        # one band: two of them hide each other
        band = None if prefix else tuple(zip(*ends, strict=True))
        lines.append(Line(weights, steps, gaps, band=band, faint=bool(prefix)))
    return _plot("gap: held out less training rows", lines, "step", level=0)


def _by_level(last: dict[str, float], kind: HeldOutLoss) -> list[Context]:
    if kind.levels == 1:
        return []
    levels = tuple(range(1, kind.levels + 1))
    lines = [
        Line(rows, levels, [last[f"{name}_{level}"] for level in levels])
        for name, rows in ((kind.held_out, "held out, average"), (kind.training, "training rows, average"))
    ]
    return [_plot(f"{kind.label} by noise", lines, "noise level, little to much")]


def quality_over_time(metrics: dict[str, SamplerMetrics]) -> list[Context]:
    """A plot for each figure of each sampler at the steps of its training that snapshots were kept of."""
    found = []
    for sampler, measured in metrics.items():
        grown = measured.over_training
        for name, definition in definitions(figures for _, figures in grown).items():
            points = [(step, figures[name].value) for step, figures in grown if name in figures]
            if len(points) > 1:
                svg = Markup(curves([Line(sampler, *zip(*points, strict=True))], "step"))
                found.append({"run": sampler, "term": axis_label(definition), "legend": [], "svg": svg})
    return found
