"""One page that shows which sampler reigns and why: `python -m pipelines.report` -> report.html.

The page holds everything that it shows and asks nothing of any network. It is a function of the stages' outputs and of
the git revision; no date is in it.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import jinja2
import yaml

from components.artifacts import run_folder
from components.data.dataset import Dataset, verify
from components.errors import InputError
from components.evaluation.pictures import data_uri
from components.evaluation.protocol import Protocol
from components.few_step.base import TEACHER
from components.files import write_whole
from infra.tracking import runs
from pipelines.support import cli, lineage, paths, sample_pictures
from pipelines.support.candidates import read_promotion
from pipelines.support.metrics_files import SamplerMetrics, read_metrics
from pipelines.support.params import Params, load
from pipelines.support.paths import ROOT
from pipelines.support.report_pictures import (
    autoencoder_pictures,
    champion_film,
    champion_walks,
    champion_ways,
    class_rows,
    played,
    real_grid,
)
from pipelines.support.report_plots import held_out_losses, quality_against_cost, quality_over_time, training_curves
from pipelines.support.report_tables import bound_text, bounds_of, candidate_rows, deciding, grouped, meets
from pipelines.support.report_words import duration, figure, interval, number

TEMPLATE = Path(__file__).parent / "support/report.html.j2"
Context = dict[str, Any]


def origins(promoted: dict, protocol: Protocol, params: Params) -> Context:
    """The champion's lineage, and which runs others learn from: name -> value, and the two tables beside."""
    config = None if promoted["version"] is None else run_folder.read_config(Path(promoted["run_folder"]))
    facts = {
        "git revision": lineage.git_revision() or "not a git checkout",
        **(_origin(promoted, config) if config is not None else {"nobody reigns": promoted["why"]}),
        "extractor": f"{protocol.extractor} {protocol.extractor_hash}",
        "judge's weights": protocol.judge_hash or "no judge",
        "reference images": protocol.reference_hash,
        "protocol": protocol.id,
        "versions": ", ".join(
            f"{name} {version}" for name, version in {"python": platform.python_version(), **protocol.versions}.items()
        ),
        **{f"{name}'s {role}": str(path) for name in params.samplers for role, path in params.inputs_of(name).items()},
    }
    model = yaml.safe_dump(config.config, sort_keys=True) if config is not None else ""
    return {"facts": facts, "locked": lineage.locked_outputs(), "model": model}


def _origin(promoted: dict, config: run_folder.RunConfig) -> dict[str, str]:
    origin = config.provenance
    return {
        "registered model": f"{promoted['model']} version {promoted['version']}",
        "why it reigns": promoted["why"],
        "champion's hash": promoted["hash"],
        "run folder": promoted["run_folder"],
        "family": config.family,
        "trained for": f"{origin.step} steps, seed {origin.seed}",
        "training data": origin.data,
        "training code": origin.code,
        "training job": origin.job,
        **{f"champion's {role}": run for role, run in origin.inputs.items()},
    }


def teachers(params: Params, promoted: dict) -> dict[str, str]:
    """By sampler, the name of the run that taught it, of those that were taught."""
    folders = {name: paths.RUNS / name for name in params.samplers}
    if promoted["version"] is not None and promoted["sampler"] not in folders:
        folders[promoted["sampler"]] = Path(promoted["run_folder"])
    learned = {name: run_folder.read_config(folder).provenance.inputs for name, folder in folders.items()}
    # where it lay, and its hash
    return {name: Path(found[TEACHER].split()[0]).name for name, found in learned.items() if TEACHER in found}


def gather(params: Params) -> Context:
    """Everything that the page shows. Raises InputError naming what is missing."""
    promoted = read_promotion()
    metrics = read_metrics(params)
    _refuse_stale(promoted, metrics)
    policy = params.promote
    verify(paths.TEST_IMAGES)
    test, num_train = Dataset(paths.TEST_IMAGES), len(Dataset(paths.TRAIN_IMAGES))
    # a champion of earlier trainings may be of a sampler that is there no more; what is known of the data is the same
    measured = metrics.get(promoted["sampler"], next(iter(metrics.values())))
    rows = candidate_rows(metrics, promoted, policy.metric, teachers(params, promoted))
    bounds = bounds_of(promoted, policy)
    reigning = next((row for row in rows if row["champion"]), None)
    if reigning is None and promoted["version"] is not None:
        raise InputError(f"{paths.PROMOTED}: candidate {promoted['candidate']} was not measured; promote again")
    losses, validated = training_curves(params)
    return {
        "promoted": promoted,
        "champion": reigning,
        "passing": [row for row in rows if row["objections"] == []],
        "measured": measured,
        "floor": measured.floor,
        "deciding": deciding(rows, measured.known, policy, bounds),
        "groups": grouped(rows, measured.known),
        "bounds": bounds,
        "rows": rows,
        "trade_offs": quality_against_cost(rows, measured.known, policy.metric),
        "real": real_grid(test),
        **of_champion(promoted, test),
        "autoencoders": [autoencoder_pictures(name, test) for name in params.autoencoders],
        "held_out": held_out_losses(params),
        "curves": losses,
        "over_time": quality_over_time(metrics) + validated,
        "graph": lineage.graph(),
        "lineage": origins(promoted, measured.protocol, params),
        "data": {"train": num_train, "test": len(test), "classes": len(test.manifest.classes)},
        "policy": policy,
    }


def _refuse_stale(promoted: dict, metrics: dict[str, SamplerMetrics]) -> None:
    if promoted["candidate"] is not None and promoted["sampler"] not in metrics:
        raise InputError(f"{paths.PROMOTED}: champion {promoted['sampler']!r} is not in params.yaml; promote again")


def of_champion(promoted: dict, test: Dataset) -> Context:
    """Pictures of the champion beside real images; none where nobody reigns."""
    if promoted["version"] is None:
        return {"classes": [], "played": [], "pictures": {}, "film": None, "walks": []}
    champion = run_folder.load(Path(promoted["run_folder"])).family
    pictures = {name: sample_pictures.read_champions(name) for name in ("nearest", "failures")}
    return {
        "classes": class_rows(test, champion),
        "played": played(test, champion, promoted["settings"]),
        "pictures": {name: data_uri(png) for name, png in pictures.items() if png},
        "film": champion_film(champion, promoted["settings"]),
        "walks": champion_walks(champion, promoted["settings"]) + champion_ways(champion, test),
    }


def render(context: Context) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(figure=figure, interval=interval, number=number, duration=duration, bound=bound_text)
    environment.globals.update(meets=meets)
    return environment.from_string(TEMPLATE.read_text()).render(context)


def track(params: Params, page: str) -> None:
    """Puts the page, with all its plots, into the MLflow run that trained the champion, if this store has it."""
    promoted = read_promotion()
    if promoted["version"] is None:
        return
    champion = Path(promoted["run_folder"])
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
