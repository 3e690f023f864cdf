"""Decides who reigns: `python -m pipelines.promote` -> promoted.json, champion/, and an MLflow model version.

Among the candidates that pass the guards of params.yaml's `promote` block the lowest metric challenges the reigning
champion, which is measured under the same protocol. Other uses:

    python -m pipelines.promote --show                     the champion and its figures
    python -m pipelines.promote --moves                    every change of the champion: who, when and why
    python -m pipelines.promote --to VERSION [--why TEXT]  goes to a version by hand; the version that is left is not
                                                           promoted again until somebody goes back to it
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch

from components.artifacts import pyfunc, run_folder
from components.errors import InputError
from components.evaluation import generation
from components.evaluation.tasks import default_device
from components.files import sha256_folder, whole_folder, write_json
from infra.ray_cluster.worker_pool import worker_pool
from infra.tracking import runs
from infra.tracking.registry import Entry, Registry, Version
from pipelines.evaluate import pictures
from pipelines.support import cli, lineage, measurement, paths
from pipelines.support.metrics_files import read_metrics, told
from pipelines.support.params import TRAINED, Params, load
from pipelines.support.paths import ROOT
from pipelines.support.policy import Candidate, decide, label, objections

PICTURES = {
    "-grid": "grid.png",
    "-nearest": "nearest.png",
    "-failures": "failures.png",
}  # as evaluate names them -> here
_NOT_FIGURES = ("sampler", "number", "settings", "content", "withdrawn", "version", "searched", "unmeasurable")


def content_hash(folder_hash: str, settings: dict) -> str:
    """Of what would be registered: equal contents sample equal images."""
    return hashlib.sha256(json.dumps([folder_hash, settings], sort_keys=True).encode()).hexdigest()


def read_candidates(metrics: dict[str, dict], withdrawn: dict[str, str]) -> list[Candidate]:
    """Every measured candidate of every sampler. `withdrawn` tells of contents that somebody took back."""
    found = []
    for sampler, measured in metrics.items():
        folder_hash = sha256_folder(paths.RUNS / sampler)
        for number, figures in enumerate(measured["candidates"]):
            content = content_hash(folder_hash, figures["settings"])
            taken_back = withdrawn.get(content, "")
            found.append({**figures, "sampler": sampler, "number": number, "content": content, "withdrawn": taken_back})
    return found


def read_reigning(
    params: Params, registry: Registry, candidates: list[Candidate], metrics: dict[str, dict], scratch: Path
) -> Candidate | None:
    """The reigning champion under the candidates' protocol; None if nobody reigns. It may be one of them. Otherwise it
    is fetched into `scratch`, where its figures are those on record if they are by the same protocol on the same
    device, and measured anew if not."""
    version = registry.champion()
    if version is None:
        return None
    same = next((candidate for candidate in candidates if candidate["content"] == version.content), None)
    if same:
        return {**same, "version": version.number}
    registry.fetch(version, scratch)
    recorded = json.loads((scratch / pyfunc.CANDIDATE).read_text())
    reigning = {name: recorded[name] for name in ("sampler", "settings")}
    reigning |= {"content": version.content, "version": version.number, "withdrawn": version.withdrawn}
    present = next(iter(metrics.values()))
    if all(recorded[name] == present[name] for name in ("protocol", "device")):
        return {**recorded["figures"], **reigning}
    print(f"{registry.model} v{version.number} reigns and was measured otherwise: measuring it again", flush=True)
    try:
        figures = measure_again(params, recorded["settings"], scratch)
    except InputError as error:
        return {**recorded["figures"], **reigning, "unmeasurable": f"cannot be measured any more: {error}"}
    anew = {"figures": figures, "protocol": present["protocol"], "device": present["device"]}
    write_json(scratch / pyfunc.CANDIDATE, recorded | anew)
    return {**figures, **reigning}


def measure_again(params: Params, settings: dict, scratch: Path) -> dict:
    """Figures of a fetched champion under the present protocol; its pictures take the place of the old ones."""
    device = default_device()
    extractors = measurement.open_extractors(params, device)
    measures = measurement.open_measurement(params, extractors)
    run = measurement.load_sampler(scratch / pyfunc.SAMPLER, measures, device)
    ready = generation.open_candidate(run.folder, settings, device, "the champion's settings")
    order = measurement.sampling(params, run.folder, settings)
    with worker_pool(params.cluster, ROOT) as workers:
        measured = measurement.measure(workers, order, ready, measures, extractors)
    for suffix, png in pictures(measured).items():
        (scratch / PICTURES[suffix]).write_bytes(png)
    return figures_of(measured.figures)


def parent_runs(params: Params) -> dict[str, str]:
    """The MLflow run that trained each model here, as far as this store knows it."""
    found = {}
    for name in [name for group in TRAINED for name in getattr(params, group)]:
        if (paths.RUNS / name / run_folder.CONFIG).is_file():
            job = run_folder.read_config(paths.RUNS / name).provenance.job
            run = runs.run_of_job(params.tracking, ROOT, job)
            found |= {name: run.run_id} if run else {}
    return found


def describe_lineage(params: Params) -> dict[str, Any]:
    outputs = {out["path"]: out["md5"] for out in lineage.locked_outputs()}
    return {"git": lineage.git_revision(), "dvc": outputs, "runs": parent_runs(params)}


def picture_files(candidate: Candidate) -> dict[str, bytes]:
    folder, number = paths.SAMPLES / candidate["sampler"], candidate["number"]
    found = {name: folder / f"{number}{suffix}.png" for suffix, name in PICTURES.items()}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


def figures_of(candidate: Candidate) -> dict[str, Any]:
    return {name: value for name, value in candidate.items() if name not in _NOT_FIGURES}


def described(params: Params, winner: Candidate, metrics: dict) -> dict[str, Any]:
    """A candidate as the registry keeps it beside its weights."""
    length, settings = generation.weights_and_settings(winner["settings"])
    return {
        "sampler": winner["sampler"],
        "settings": settings,
        generation.AVERAGE: length,  # the weights are averaged so already
        "figures": figures_of(winner),
        "protocol": metrics["protocol"],
        "device": metrics["device"],
        "lineage": describe_lineage(params),
    }


def copy_sampler(winner: Candidate, target: Path) -> Path:
    """The winner's run folder with the weights that it sampled with, and without the other averages. Raises
    SamplerError of a folder that could not be served."""
    folder = paths.RUNS / winner["sampler"]
    length, _ = generation.weights_and_settings(winner["settings"])
    run = run_folder.load(folder, ema_sigma_rel=length)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(run_folder.AVERAGES))
    if length is not None:
        for net in run.family.kept:
            weights = {key: value.contiguous() for key, value in run.family.nets[net].state_dict().items()}
            safetensors.torch.save_file(weights, target / f"{net}.safetensors")
    return target


def register(
    params: Params, registry: Registry, winner: Candidate, metrics: dict, folder: Path
) -> tuple[Version, bool]:
    """The winner's version, and whether it is new. `folder` is its sampler, as `copy_sampler` writes it."""
    metric = params.promote.metric
    told = described(params, winner, metrics)
    tags = {
        "sampler": winner["sampler"],
        "settings": json.dumps(winner["settings"], sort_keys=True),
        "git": told["lineage"]["git"],
        metric: f"{winner[metric]:.6g}",
    }
    job = run_folder.read_config(folder).provenance.job
    return registry.register(Entry(folder, winner["content"], job, told, picture_files(winner), tags))


def promote(params: Params, registry: Registry, metrics: dict[str, dict]) -> dict[str, Any]:
    """Decides, registers and moves the alias where it must; writes champion/ and promoted.json. Returns the latter."""
    withdrawn = {version.content: version.withdrawn for version in registry.versions()}
    candidates = read_candidates(metrics, withdrawn)
    for candidate in candidates:
        for reason in objections(candidate, params.promote):
            print(f"{label(candidate)} is out: {reason}")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        reigning = read_reigning(params, registry, candidates, metrics, scratch)
        decision = decide(candidates, reigning, params.promote)
        winner = decision.winner
        if decision.stays:
            version = registry.version(winner["version"])
            print(f"{registry.model} v{version.number} stays: {decision.why}")
        else:
            version, is_new = register(
                params, registry, winner, metrics[winner["sampler"]], copy_sampler(winner, scratch / "registered")
            )
            registry.move(version, decision.why)
            verb = "registered as" if is_new else "already registered as"
            print(f"{label(winner)} {verb} {registry.model} v{version.number}: {decision.why}")
        track(params, metrics)
        if "number" not in winner:  # it reigns and is no candidate: as fetched, and perhaps measured again
            return write_champion(registry, version, scratch, decision.why)
        copy_sampler(winner, scratch / "of_candidate" / pyfunc.SAMPLER)
        for name, png in picture_files(winner).items():
            (scratch / "of_candidate" / name).write_bytes(png)
        told = described(params, winner, metrics[winner["sampler"]]) | {"candidate": winner["number"]}
        write_json(scratch / "of_candidate" / pyfunc.CANDIDATE, told)
        return write_champion(registry, version, scratch / "of_candidate", decision.why)


def write_champion(registry: Registry, version: Version, source: Path, why: str) -> dict[str, Any]:
    """champion/ and promoted.json, from a folder as the registry keeps it."""
    with whole_folder(paths.CHAMPION) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    told = json.loads((paths.CHAMPION / pyfunc.CANDIDATE).read_text())
    promoted = {
        "sampler": told["sampler"],
        "key": f"samplers.{told['sampler']}",
        "candidate": told.get("candidate"),  # None of a champion of earlier trainings
        "settings": told["settings"],
        generation.AVERAGE: told.get(generation.AVERAGE),
        "figures": told["figures"],
        "run_folder": (paths.CHAMPION / pyfunc.SAMPLER).as_posix(),
        "model": registry.model,
        "version": version.number,
        "hash": version.content,
        "why": why,
    }
    write_json(paths.PROMOTED, promoted)
    return promoted


def track(params: Params, metrics: dict[str, dict]) -> None:
    """Puts every candidate's figures and grid into the run that trained its sampler."""
    for sampler, measured in metrics.items():
        job = run_folder.read_config(paths.RUNS / sampler).provenance.job
        run = runs.run_of_job(params.tracking, ROOT, job)
        if run is None:
            continue
        figures, files = {}, {}
        for number, candidate in enumerate(measured["candidates"]):
            plain = {name: value for name, value in figures_of(candidate).items() if isinstance(value, int | float)}
            figures |= {f"candidate_{number}/{name}": value for name, value in plain.items()}
            grid = paths.SAMPLES / sampler / f"{number}-grid.png"
            files |= {f"samples/{number}.png": grid.read_bytes()} if grid.is_file() else {}
        runs.log_evaluation(run, figures, files)


def go_to(params: Params, registry: Registry, number: str, why: str) -> dict[str, Any]:
    """Makes a version the champion by hand."""
    version = registry.version(number)
    with tempfile.TemporaryDirectory() as temporary:
        source = registry.fetch(version, Path(temporary))
        registry.move(version, why, withdraw=True)
        return write_champion(registry, version, source, why)


def describe(promoted: dict[str, Any], report: Path) -> str:
    """The champion and its figures, for a terminal."""
    model = f"{promoted['model']} v{promoted['version']}"
    lines = [f"champion: {promoted['sampler']} ({told(promoted['settings'])}), registered as {model}"]
    figures = promoted["figures"]
    for name, value in figures.items():
        if value is None or isinstance(value, list):
            continue
        low_high = figures.get(f"{name.removesuffix('_distance')}_interval")
        around = f"  ({low_high[0]:.4g} to {low_high[1]:.4g})" if low_high else ""
        lines.append(f"  {name:<20} {f'{value:.4g}' if isinstance(value, float) else value}{around}")
    lines.append(f"report:   {report.resolve()}" if report.is_file() else "report:   not written yet")
    return "\n".join(lines)


def show() -> None:
    if not paths.PROMOTED.is_file():
        raise InputError(f"{paths.PROMOTED}: missing; expected what `dvc repro` writes")
    print(describe(json.loads(paths.PROMOTED.read_text()), paths.REPORT))


def show_moves(registry: Registry) -> None:
    for move in registry.moves():
        begun = "" if move.made else "  (begun, did not come about)"
        print(f"{move.when}  v{move.left or 'none'} -> v{move.to}  {move.who}  {move.why}{begun}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m pipelines.promote", description=__doc__.partition(":")[0])
    parser.add_argument("--show", action="store_true", help="print the champion and its figures")
    parser.add_argument("--moves", action="store_true", help="print every change of the champion")
    parser.add_argument("--to", metavar="VERSION", help="go to a version by hand")
    parser.add_argument("--why", default="by hand", help="the reason that is recorded with --to")
    asked = parser.parse_args(argv)
    if asked.show:
        return show()
    params = load()
    registry = Registry(params.tracking, ROOT, params.promote.registered_model)
    if asked.moves:
        return show_moves(registry)
    if asked.to:
        promoted = go_to(params, registry, asked.to.removeprefix("v"), asked.why)
        print(f"{promoted['model']} v{promoted['version']} reigns: {asked.why}")
        return None
    promote(params, registry, read_metrics(params))
    return None


if __name__ == "__main__":
    cli.run(main)
