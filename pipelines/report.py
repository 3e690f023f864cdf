"""One page that shows which sampler reigns and why: `python -m pipelines.report` -> report.html.

The page holds everything that it shows and asks nothing of any network. It is a function of the stages' outputs and of
the git revision; no date is in it.
"""

from __future__ import annotations

import math
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from components.artifacts import run_folder
from components.data.dataset import Dataset, verify
from components.errors import InputError
from components.evaluation.pictures import data_uri
from components.evaluation.plots import COLOURS, Line, Point, curves, trade_off
from components.evaluation.protocol import Protocol
from components.files import write_whole
from components.metrics.figures import VALIDATION, Definition, Figure, definitions
from infra.tracking import runs
from pipelines.support import cli, lineage, paths, sample_pictures
from pipelines.support.candidates import Candidate, read_champion, settings_text
from pipelines.support.metrics_files import Known, SamplerMetrics, read_json, read_metrics
from pipelines.support.params import TRAINED, Params, PromoteConfig, load
from pipelines.support.paths import ROOT
from pipelines.support.policy import cost
from pipelines.support.report_pictures import (
    autoencoder_pictures,
    champion_film,
    champion_grid,
    champion_walks,
    class_rows,
    real_grid,
)

TEMPLATE = Path(__file__).parent / "support/report.html.j2"
NONE = "\N{EN DASH}"  # in place of a figure

Context = dict[str, Any]


def candidate_rows(metrics: dict[str, SamplerMetrics], promoted: dict, metric: str) -> list[Context]:
    """Every candidate of every sampler, and a champion of an earlier training, best first; those without the metric
    last."""
    candidates = [candidate for measured in metrics.values() for candidate in measured.candidates]
    rows = []
    for candidate in candidates:
        reigns = (candidate.sampler, candidate.number) == (promoted["sampler"], promoted["candidate"])
        grid = champion_grid() if reigns else sample_pictures.read_grid(candidate.sampler, candidate.number)
        rows.append(_row(candidate, candidate.name, reigns, grid))
    if promoted["candidate"] is None:
        candidate = read_champion(version=promoted["version"])
        rows.append(_row(candidate, f"{candidate.sampler} {candidate.name}", True, champion_grid()))
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
        "grid": data_uri(grid),
    }


def columns(rows: list[Context], known: Known, policy: PromoteConfig) -> list[Definition]:
    """The definitions of all figures on the page: those that decide first, then as they were measured."""
    defined = definitions([*(row["figures"] for row in rows), *(one.figures for one in known.sets)])
    deciding = [name for name in dict.fromkeys([policy.metric, *policy.guards]) if name in defined]
    return [*(defined.pop(name) for name in deciding), *defined.values()]


def quality_against_time(rows: list[Context], known: Known, metric: str) -> Context | None:
    """A plot of the metric against the first figure that is a time, and its legend; None where nobody has both."""
    defined = definitions(row["figures"] for row in rows)
    time = next((one for one in defined.values() if one.kind == "time" and one.name != metric), None)
    rows = [row for row in rows if time is not None and {metric, time.name} <= row["figures"].keys()]
    if time is None or not rows:
        return None
    order = {sampler: place for place, sampler in enumerate(dict.fromkeys(row["sampler"] for row in rows))}
    x, y = time.name, metric
    points = [
        Point(
            x=row["figures"][x].value,
            y=row["figures"][y].value,
            group=row["sampler"],
            name=f"{row['name']} ({row['settings']}): "
            + ", ".join(f"{row['figures'][one].definition.label} {figure(row['figures'][one])}" for one in (y, x)),
            mark=row["name"],
            ringed=row["champion"],
        )
        for row in rows
    ]
    level = next(((one.figures[metric].value, one.label) for one in known.sets if metric in one.figures), None)
    higher_is_better = defined[metric].better == "higher"
    svg = trade_off(points, axis_label(time), axis_label(defined[metric]), level, higher_is_better)
    legend = [(sampler, COLOURS[place % len(COLOURS)]) for sampler, place in order.items()]
    return {"svg": Markup(svg), "legend": legend, "x": time, "y": defined[metric], "rising": higher_is_better}


def axis_label(definition: Definition) -> str:
    """A figure's label with its unit."""
    return f"{definition.label}, {definition.unit}" if definition.unit else definition.label


def training_curves(params: Params) -> tuple[list[Context], list[Context]]:
    """A small plot for each term of each run, the phases of a run sharing a plot; and apart from those the figures of
    checkpoint validation, which show quality over training time."""
    losses, validated = [], []
    for name in [name for group in TRAINED for name in getattr(params, group)]:
        path = paths.RUNS / name / run_folder.HISTORY
        if not path.is_file():
            raise InputError(f"{path}: missing; expected what `python -m pipelines.train` writes")
        history = run_folder.read_history(path.parent)
        plots = defaultdict(list)
        for key in dict.fromkeys(key for row in history for key in row if key != "step"):
            phase, _, term = key.rpartition("/")
            reports = [(row["step"], row[key]) for row in history if key in row]
            plots[phase == VALIDATION, term].append(Line(phase, *zip(*reports, strict=True)))
        for (is_validation, term), lines in plots.items():
            legend = [(line.name, COLOURS[place % len(COLOURS)]) for place, line in enumerate(lines)]
            plot = {"run": name, "term": term.replace("_", " "), "legend": legend, "svg": Markup(curves(lines, "step"))}
            (validated if is_validation else losses).append(plot)
    return losses, validated


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


def origins(promoted: dict, protocol: Protocol) -> Context:
    """The champion's lineage: name -> value, and the two tables beside."""
    folder = Path(promoted["run_folder"])
    config = run_folder.read_config(folder)
    origin = config.provenance
    facts = {
        "git revision": lineage.git_revision() or "not a git checkout",
        "registered model": f"{promoted['model']} version {promoted['version']}",
        "why it reigns": promoted["why"],
        "champion's hash": promoted["hash"],
        "run folder": promoted["run_folder"],
        "family": config.family,
        "trained for": f"{origin.step} steps, seed {origin.seed}",
        "training data": origin.data,
        "training code": origin.code,
        "training job": origin.job,
        "extractor": f"{protocol.extractor} {protocol.extractor_hash}",
        "judge's weights": protocol.judge_hash or "no judge",
        "reference images": protocol.reference_hash,
        "protocol": protocol.id,
        "versions": ", ".join(
            f"{name} {version}" for name, version in {"python": platform.python_version(), **protocol.versions}.items()
        ),
    }
    return {"facts": facts, "locked": lineage.locked_outputs(), "model": yaml.safe_dump(config.config, sort_keys=True)}


def number(value: float) -> str:
    """A number as a person reads it: three digits or so."""
    if isinstance(value, int) or value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def value_text(definition: Definition, value: float) -> str:
    """A figure's value as a person reads it: shares in percent, counts whole where they are, units behind."""
    if definition.kind == "share":
        return f"{100 * value:.1f}%"
    whole = definition.kind == "count" and value == int(value)
    text = number(int(value) if whole else value)
    return f"{text} {definition.unit}" if definition.unit else text


def figure(one: Figure | None) -> str:
    """A figure's value; a dash where there is none."""
    return NONE if one is None else value_text(one.definition, one.value)


def interval(one: Figure | None, between: str = f" {NONE} ") -> str:
    """A figure's interval; empty where there is none."""
    if one is None or one.interval is None:
        return ""
    return between.join(value_text(one.definition, end) for end in one.interval)


def duration(seconds: float | None) -> str:
    """As a person reads it: seconds, or minutes and seconds."""
    if seconds is None:
        return NONE
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def gather(params: Params) -> Context:
    """Everything that the page shows. Raises InputError naming what is missing."""
    promoted = read_json(paths.PROMOTED, "promote")
    metrics = read_metrics(params)
    if promoted["sampler"] not in metrics and promoted["candidate"] is not None:
        raise InputError(f"{paths.PROMOTED}: champion {promoted['sampler']!r} is not in params.yaml; promote again")
    policy = params.promote
    verify(paths.TEST_IMAGES)
    test, num_train = Dataset(paths.TEST_IMAGES), len(Dataset(paths.TRAIN_IMAGES))
    # a champion of earlier trainings may be of a sampler that is there no more; what is known of the data is the same
    measured = metrics.get(promoted["sampler"], next(iter(metrics.values())))
    rows = candidate_rows(metrics, promoted, policy.metric)
    reigning = next((row for row in rows if row["champion"]), None)
    if reigning is None:
        raise InputError(f"{paths.PROMOTED}: candidate {promoted['candidate']} was not measured; promote again")
    champion = run_folder.load(Path(promoted["run_folder"])).family
    losses, validated = training_curves(params)
    pictures = {name: sample_pictures.read_champions(name) for name in ("nearest", "failures")}
    return {
        "promoted": promoted,
        "champion": reigning,
        "measured": measured,
        "floor": measured.floor,
        "columns": columns(rows, measured.known, policy),
        "rows": rows,
        "plot": quality_against_time(rows, measured.known, policy.metric),
        "classes": class_rows(test, champion),
        "real": real_grid(test),
        "pictures": {name: data_uri(png) for name, png in pictures.items() if png},
        "film": champion_film(champion, promoted["settings"]),
        "walks": champion_walks(champion, promoted["settings"]),
        "autoencoders": [autoencoder_pictures(name, test) for name in params.autoencoders],
        "curves": losses,
        "over_time": quality_over_time(metrics) + validated,
        "graph": lineage.graph(),
        "lineage": origins(promoted, measured.protocol),
        "data": {"train": num_train, "test": len(test), "classes": len(test.manifest.classes)},
        "policy": policy,
    }


def render(context: Context) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(figure=figure, interval=interval, number=number, duration=duration)
    return environment.from_string(TEMPLATE.read_text()).render(context)


def track(params: Params, page: str) -> None:
    """Puts the page, with all its plots, into the MLflow run that trained the champion, if this store has it."""
    champion = Path(read_json(paths.PROMOTED, "promote")["run_folder"])
    run = runs.run_of_job(params.tracking, ROOT, run_folder.read_config(champion).provenance.job)
    if run is not None:
        runs.log_evaluation(run, {}, {f"report/{paths.REPORT.name}": page.encode()})


def main(argv: list[str]) -> None:
    cli.no_arguments(argv, "python -m pipelines.report")
    params = load()
    page = render(gather(params))
    write_whole(paths.REPORT, page)
    track(params, page)
    print(f"{paths.REPORT}: {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
