"""One page that shows which sampler reigns and why: `python -m pipelines.report` -> report.html.

The page holds everything that it shows and asks nothing of any network. It is a function of the stages' outputs and of
the git revision; no date is in it.
"""

from __future__ import annotations

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
from components.files import write_whole
from infra.tracking import runs
from pipelines.support import cli, lineage, paths
from pipelines.support.metrics_files import read_json, read_metrics, told
from pipelines.support.params import TRAINED, Params, load
from pipelines.support.paths import ROOT
from pipelines.support.report_pictures import (
    autoencoder_pictures,
    champion_film,
    champion_grid,
    champion_picture,
    champion_walks,
    class_rows,
    read_grid,
    real_grid,
)

TEMPLATE = Path(__file__).parent / "support/report.html.j2"
NONE = "\N{EN DASH}"  # in place of a figure
_LOOKS = "watch"  # as the training loop's history names what was found at checkpoints

Context = dict[str, Any]


def candidate_rows(metrics: dict[str, dict], promoted: dict) -> list[Context]:
    """Every candidate of every sampler, and a champion of an earlier training, best first."""
    rows = []
    for sampler, measured in metrics.items():
        for number, figures in enumerate(measured["candidates"]):
            champion = (sampler, number) == (promoted["sampler"], promoted["candidate"])
            grid = champion_grid() if champion else read_grid(sampler, number)
            told_by = {"sampler": sampler, "name": f"{sampler} #{number}", "told": told(figures["settings"])}
            rows.append({**figures, **told_by, "champion": champion, "grid": data_uri(grid)})
    if promoted["candidate"] is None:
        name = f"{promoted['sampler']} v{promoted['version']}"
        told_by = {"sampler": promoted["sampler"], "name": name, "told": told(promoted["settings"])}
        grid = data_uri(champion_grid())
        rows.append({**promoted["figures"], **told_by, "searched": False, "champion": True, "grid": grid})
    return sorted(rows, key=lambda row: row["frechet_distance"])


def quality_against_time(rows: list[Context], floor: dict) -> Context:
    """The plot and its legend."""
    order = {sampler: place for place, sampler in enumerate(dict.fromkeys(row["sampler"] for row in rows))}
    points = [
        Point(
            x=row["ms_per_image"],
            y=row["frechet_distance"],
            group=row["sampler"],
            name=f"{row['name']} ({row['told']}): "
            f"Fréchet distance {figure(row['frechet_distance'])}, {figure(row['ms_per_image'])} ms per image",
            mark=row["name"],
            ringed=row["champion"],
        )
        for row in rows
    ]
    level = (floor["frechet_distance"], "real training images")
    svg = trade_off(points, "milliseconds per image", "Fréchet distance", level)
    legend = [(sampler, COLOURS[place % len(COLOURS)]) for sampler, place in order.items()]
    return {"svg": Markup(svg), "legend": legend}


def training_curves(params: Params) -> tuple[list[Context], list[Context]]:
    """A small plot for each figure of each run, the phases of a run sharing a plot; and apart from those the figures of
    looks at checkpoints, which tell quality over training time."""
    losses, looks = [], []
    for name in [name for group in TRAINED for name in getattr(params, group)]:
        path = paths.RUNS / name / run_folder.HISTORY
        if not path.is_file():
            raise InputError(f"{path}: missing; expected what `python -m pipelines.train` writes")
        history = run_folder.read_history(path.parent)
        plots = defaultdict(list)
        for key in dict.fromkeys(key for row in history for key in row if key != "step"):
            phase, _, term = key.rpartition("/")
            reports = [(row["step"], row[key]) for row in history if key in row]
            plots[phase == _LOOKS, term].append(Line(phase, *zip(*reports, strict=True)))
        for (is_look, term), lines in plots.items():
            legend = [(line.name, COLOURS[place % len(COLOURS)]) for place, line in enumerate(lines)]
            plot = {"run": name, "term": term.replace("_", " "), "legend": legend, "svg": Markup(curves(lines, "step"))}
            (looks if is_look else losses).append(plot)
    return losses, looks


def quality_over_time(metrics: dict[str, dict]) -> list[Context]:
    """The distance of each sampler at the steps of its training that snapshots were kept of."""
    found = []
    for sampler, measured in metrics.items():
        points = measured.get("over_training", [])
        if len(points) > 1:
            line = Line(sampler, [point["step"] for point in points], [point["frechet_distance"] for point in points])
            plot = Markup(curves([line], "step"))
            found.append({"run": sampler, "term": "Fréchet distance", "legend": [], "svg": plot})
    return found


def origins(promoted: dict, protocol: dict) -> Context:
    """Where the champion comes from: name -> value, and the two tables beside."""
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
        "extractor": f"{protocol['extractor']} {protocol['extractor_hash']}",
        "judge's weights": protocol["judge_hash"] or "no judge",
        "reference images": protocol["reference_hash"],
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in {"python": platform.python_version(), **protocol["versions"]}.items()
        ),
    }
    return {"facts": facts, "locked": lineage.locked_outputs(), "model": yaml.safe_dump(config.config, sort_keys=True)}


def figure(value: float | None) -> str:
    """A figure as a person reads it: three digits or so; a dash where there is none."""
    if value is None:
        return NONE
    if isinstance(value, int) or value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}%"


def duration(seconds: float | None) -> str:
    """As a person reads it: seconds, or minutes and seconds."""
    if seconds is None:
        return NONE
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def gather(params: Params) -> Context:
    """Everything that the page shows. Raises InputError naming what is missing."""
    promoted = read_json(paths.PROMOTED, "promote")
    metrics = read_metrics(params)
    if promoted["sampler"] not in metrics:
        raise InputError(f"{paths.PROMOTED}: champion {promoted['sampler']!r} is not in params.yaml; promote again")
    verify(paths.TEST_IMAGES)
    test, num_train = Dataset(paths.TEST_IMAGES), len(Dataset(paths.TRAIN_IMAGES))
    measured = metrics[promoted["sampler"]]
    rows = candidate_rows(metrics, promoted)
    reigning = next((row for row in rows if row["champion"]), None)
    if reigning is None:
        raise InputError(f"{paths.PROMOTED}: candidate {promoted['candidate']} was not measured; promote again")
    champion = run_folder.load(Path(promoted["run_folder"])).family
    losses, looks = training_curves(params)
    pictures = {name: champion_picture(f"{name}.png") for name in ("nearest", "failures")}
    return {
        "promoted": promoted,
        "champion": reigning,
        "measured": measured,
        "rows": rows,
        "plot": quality_against_time(rows, measured["floor"]),
        "classes": class_rows(test, champion),
        "real": real_grid(test),
        "has": {name: any(row.get(name) is not None for row in rows) for name in ("lpips_diversity", "clip_score")},
        "pictures": {name: data_uri(png) for name, png in pictures.items() if png},
        "film": champion_film(champion, promoted["settings"]),
        "walks": champion_walks(champion, promoted["settings"]),
        "autoencoders": [autoencoder_pictures(name, test) for name in params.autoencoders],
        "curves": losses,
        "over_time": quality_over_time(metrics) + looks,
        "graph": lineage.graph(),
        "lineage": origins(promoted, measured["protocol"]),
        "data": {"train": num_train, "test": len(test), "classes": len(test.manifest.classes)},
        "policy": params.promote.model_dump(mode="json", exclude={"registered_model"}, exclude_none=True),
    }


def render(context: Context) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(figure=figure, share=share, duration=duration)
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
