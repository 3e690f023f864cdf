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
import torch
import yaml
from markupsafe import Markup

from components import run_folder
from components.data import Dataset, verify
from components.errors import InputError
from components.families.vae import VAE
from components.files import write_whole
from components.pictures import data_uri, grid_uri, interpolations, read, rows_by_class, squared_error, strips
from components.plots import COLOURS, Line, Point, curves, trade_off
from pipelines import cli, paths
from pipelines.measurements import read_json, read_metrics
from pipelines.params import TRAINED, Params, load

TEMPLATE = Path(__file__).with_name("report.html.j2")
DVC_LOCK = Path("dvc.lock")
NONE = "\N{EN DASH}"  # in place of a figure
_COLUMNS = 10  # images in a row of pictures
_PAIRS = 5  # interpolations shown
_STEPS = 10  # images of one interpolation

Context = dict[str, Any]


def read_grid(sampler: str, number: int) -> bytes:
    path = paths.SAMPLES / sampler / f"{number}.png"
    if not path.is_file():
        raise InputError(f"{path}: missing; expected what `python -m pipelines.evaluate samplers.{sampler}` writes")
    return path.read_bytes()


def told(settings: dict) -> str:
    """Settings in a few words."""
    return (
        ", ".join(f"{name.removeprefix('num_').replace('_', ' ')} {value}" for name, value in settings.items())
        or "nothing to set"
    )


def candidate_rows(metrics: dict[str, dict], promoted: dict) -> list[Context]:
    """Every candidate of every sampler, best first."""
    rows = []
    for sampler, measured in metrics.items():
        for number, figures in enumerate(measured["candidates"]):
            rows.append(
                {
                    **figures,
                    "sampler": sampler,
                    "number": number,
                    "told": told(figures["settings"]),
                    "champion": (sampler, number) == (promoted["sampler"], promoted["candidate"]),
                    "grid": data_uri(read_grid(sampler, number)),
                }
            )
    return sorted(rows, key=lambda row: row["frechet_distance"])


def quality_against_time(rows: list[Context], floor: dict) -> Context:
    """The plot and its legend."""
    order = {sampler: place for place, sampler in enumerate(dict.fromkeys(row["sampler"] for row in rows))}
    points = [
        Point(
            x=row["ms_per_image"],
            y=row["frechet_distance"],
            group=row["sampler"],
            name=f"{row['sampler']} #{row['number']} ({row['told']}): "
            f"Fréchet distance {figure(row['frechet_distance'])}, {figure(row['ms_per_image'])} ms per image",
            mark=f"{row['sampler']} #{row['number']}",
            ringed=row["champion"],
        )
        for row in rows
    ]
    level = (floor["frechet_distance"], "real training images")
    svg = trade_off(points, "milliseconds per image", "Fréchet distance", level)
    legend = [(sampler, COLOURS[place % len(COLOURS)]) for sampler, place in order.items()]
    return {"svg": Markup(svg), "legend": legend}


def class_rows(dataset: Dataset, promoted: dict, metrics: dict[str, dict]) -> list[Context]:
    """For each class of a conditional champion: real images and generated ones."""
    if not metrics[promoted["sampler"]]["conditional"]:
        return []
    side = dataset.manifest.columns["image"].shape[1]
    names, real = dataset.manifest.classes, rows_by_class(dataset, _COLUMNS)
    png = read_grid(promoted["sampler"], promoted["candidate"])
    num_rows = min(len(names), 20)  # as many classes as components.metrics.generation puts into a grid
    return [
        {"name": name, "real": grid_uri(read(dataset, rows), _COLUMNS) if len(rows) else None, "made": data_uri(strip)}
        for name, rows, strip in zip(names, real, strips(png, num_rows, side), strict=False)
    ]


def real_grid(dataset: Dataset) -> str:
    """Ten rows of held-out images, a class a row."""
    rows = [found for found in rows_by_class(dataset, _COLUMNS) if len(found) == _COLUMNS]
    shown = torch.cat(rows[:_COLUMNS]) if rows else torch.arange(min(len(dataset), _COLUMNS**2))
    return grid_uri(read(dataset, shown), _COLUMNS)


def autoencoder_pictures(name: str, dataset: Dataset) -> Context:
    """What an autoencoder makes of held-out images."""
    vae = run_folder.load(paths.RUNS / name).family
    if not isinstance(vae, VAE):
        raise InputError(f"{paths.RUNS / name}: expected a trained vae, as params.yaml.autoencoders says")
    firsts = [rows[0] for rows in rows_by_class(dataset, 1) if len(rows)]
    shown = torch.stack(firsts)[:_COLUMNS] if firsts else torch.arange(min(len(dataset), _COLUMNS))
    images = read(dataset, shown)
    pairs = images[: 2 * (len(images) // 2)].unflatten(0, (-1, 2))[:_PAIRS]
    error = squared_error(vae, dataset)
    return {
        "name": name,
        "reconstructions": grid_uri(torch.cat([images, vae.reconstruct(images)]), len(images)),
        "interpolations": grid_uri(interpolations(vae, pairs[:, 0], pairs[:, 1], _STEPS), _STEPS)
        if len(pairs)
        else None,
        "psnr": 10 * math.log10(4 / max(error, 1e-12)),  # the peak of [-1, 1] is 2
    }


def training_curves(params: Params) -> list[Context]:
    """A small plot for each figure of each run; the phases of a run share a plot."""
    found = []
    for name in [name for group in TRAINED for name in getattr(params, group)]:
        path = paths.RUNS / name / run_folder.HISTORY
        if not path.is_file():
            raise InputError(f"{path}: missing; expected what `python -m pipelines.train` writes")
        history = run_folder.read_history(path.parent)
        plots = defaultdict(list)
        for key in dict.fromkeys(key for row in history for key in row if key != "step"):
            reports = [(row["step"], row[key]) for row in history if key in row]
            plots[key.rpartition("/")[2]].append(Line(key.rpartition("/")[0], *zip(*reports, strict=True)))
        for term, lines in plots.items():
            legend = [(line.name, COLOURS[place % len(COLOURS)]) for place, line in enumerate(lines)]
            title = term.replace("_", " ")
            found.append({"run": name, "term": title, "legend": legend, "svg": Markup(curves(lines, "step"))})
    return found


def lineage(promoted: dict, protocol: dict) -> Context:
    """Where the champion comes from: name -> value, and the two tables beside."""
    folder = Path(promoted["run_folder"])
    config = run_folder.read_config(folder)
    origin = config.provenance
    facts = {
        "git revision": git_revision() or "not a git checkout",
        "registered model": f"{promoted['model']} version {promoted['version']}",
        "champion's hash": promoted["hash"],
        "run folder": promoted["run_folder"],
        "family": config.family,
        "trained for": f"{origin.step} steps, seed {origin.seed}",
        "training data": origin.data,
        "training code": origin.code,
        "training job": origin.job,
        "judge's weights": protocol["extractor_hash"],
        "reference images": protocol["reference_hash"],
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in {"python": platform.python_version(), **protocol["versions"]}.items()
        ),
    }
    return {"facts": facts, "locked": locked_outputs(), "model": yaml.safe_dump(config.config, sort_keys=True)}


def figure(value: float | None) -> str:
    """A figure as a person reads it: three digits or so; a dash where there is none."""
    if value is None:
        return NONE
    if isinstance(value, int) or value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}%"


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
    champion = next((row for row in rows if row["champion"]), None)
    if champion is None:
        raise InputError(f"{paths.PROMOTED}: candidate {promoted['candidate']} was not measured; promote again")
    return {
        "promoted": promoted,
        "champion": champion,
        "measured": measured,
        "rows": rows,
        "plot": quality_against_time(rows, measured["floor"]),
        "classes": class_rows(test, promoted, metrics),
        "real": real_grid(test),
        "autoencoders": [autoencoder_pictures(name, test) for name in params.autoencoders],
        "curves": training_curves(params),
        "lineage": lineage(promoted, measured["protocol"]),
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
    environment.filters.update(figure=figure, share=share)
    return environment.from_string(TEMPLATE.read_text()).render(context)


def main(argv: list[str]) -> None:
    cli.no_arguments(argv, "python -m pipelines.report")
    page = render(gather(load()))
    write_whole(paths.REPORT, page)
    print(f"{paths.REPORT}: {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
