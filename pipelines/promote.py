"""Picks who reigns: `python -m pipelines.promote` -> promoted.json, champion/, and an MLflow model version.

Among the candidates that pass the guards of params.yaml's `promote` block the best metric challenges the reigning
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch

from components.artifacts import pyfunc, run_folder
from components.data.dataset import read_manifest
from components.devices import default_device
from components.errors import InputError
from components.evaluation import generation
from components.files import read_json, sha256_folder, whole_folder, write_json, write_whole
from components.metrics.figures import Figures, as_json, definitions, definitions_as_json, values
from infra.ray_cluster.worker_pool import worker_pool
from infra.tracking import runs
from infra.tracking.registry import SHA256_TAG, Entry, Registry, Version
from pipelines.support import cli, lineage, measurement, paths, sample_pictures
from pipelines.support.candidates import Candidate, read_champion, read_promotion, recorded_candidate, settings_text
from pipelines.support.metrics_files import SamplerMetrics, read_metrics
from pipelines.support.params import TRAINED, Bound, Params, PromoteConfig, load
from pipelines.support.paths import ROOT
from pipelines.support.policy import decide, objections, refuse_unknown_figures
from pipelines.support.yardsticks import Yardsticks, in_figures


def content_hash(folder_hash: str, settings: dict) -> str:
    """Hash of what would be registered: equal contents sample equal images."""
    return hashlib.sha256(json.dumps([folder_hash, settings], sort_keys=True).encode()).hexdigest()


def read_candidates(metrics: dict[str, SamplerMetrics], withdrawn: dict[str, str]) -> list[Candidate]:
    """Every measured candidate of every sampler. `withdrawn` tells of contents that somebody took back."""
    found = []
    for sampler, measured in metrics.items():
        folder_hash = sha256_folder(paths.RUNS / sampler)
        for candidate in measured.candidates:
            content = content_hash(folder_hash, candidate.settings)
            found.append(replace(candidate, content=content, withdrawn=withdrawn.get(content, "")))
    return found


def read_reigning(
    params: Params,
    registry: Registry,
    candidates: list[Candidate],
    metrics: dict[str, SamplerMetrics],
    scratch: Path,
) -> Candidate | None:
    """The reigning champion under the candidates' protocol; None if nobody reigns. It may be one of them. Otherwise it
    is fetched into `scratch`, where its figures are those on record if they are by the same protocol on the same
    device, and measured anew if not."""
    version = registry.champion()
    if version is None:
        return None
    same = next((candidate for candidate in candidates if candidate.content == version.content), None)
    if same:
        return replace(same, version=version.number)
    registry.fetch(version, scratch)
    recorded = read_json(scratch / pyfunc.CANDIDATE)
    facts = {"content": version.content, "version": version.number, "withdrawn": version.withdrawn}
    present = next(iter(metrics.values()))
    # of versions registered before figures had definitions, the figures can be read by nobody
    is_readable = "definitions" in recorded
    measured_by = (present.protocol.model_dump(mode="json"), present.device)
    if is_readable and (recorded["protocol"], recorded["device"]) == measured_by:
        return recorded_candidate(recorded, registry.model, **facts)
    print(f"{registry.model} v{version.number} reigns and was measured otherwise: measuring it again", flush=True)
    try:
        measured = measure_again(params, recorded["settings"], scratch)
    except InputError as error:
        facts |= {"unmeasurable": f"cannot be measured any more: {error}"}
        if is_readable:
            return recorded_candidate(recorded, registry.model, **facts)
        return Candidate(recorded["sampler"], recorded["settings"], {}, **facts)
    anew = described_figures(measured.figures) | {"collapsed": measured.collapsed}
    anew |= dict(zip(("protocol", "device"), measured_by, strict=True))
    write_json(scratch / pyfunc.CANDIDATE, recorded | anew)
    return Candidate(recorded["sampler"], recorded["settings"], measured.figures, collapsed=measured.collapsed, **facts)


def measure_again(params: Params, settings: dict, scratch: Path) -> measurement.Measured:
    """A fetched champion under the present protocol; its pictures take the place of the old ones."""
    device = default_device()
    extractors = measurement.open_extractors(params, device)
    opened = measurement.open_measurement(params, extractors)
    run = measurement.load_sampler(scratch / pyfunc.SAMPLER, opened, device)
    ready = generation.open_candidate(run.folder, settings, device, "the champion's settings")
    task = measurement.sampling(params, run.folder, settings)
    with worker_pool(params.cluster, ROOT) as workers:
        measured = measurement.measure(workers, task, ready, opened, extractors)
    for name, png in sample_pictures.draw(measured, run.family.medium).items():
        (scratch / f"{name}.png").write_bytes(png)
    return measured


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
    """The candidate's pictures by the names that they have beside a champion."""
    assert candidate.number is not None
    return {f"{name}.png": png for name, png in sample_pictures.read_all(candidate.sampler, candidate.number).items()}


def described_figures(figures: Figures) -> dict[str, Any]:
    """Figures with their definitions, for a file that stands alone."""
    return {**as_json(figures), "definitions": definitions_as_json([figures])}


def described(params: Params, winner: Candidate, metrics: SamplerMetrics) -> dict[str, Any]:
    """A candidate as the registry keeps it beside its weights."""
    weights, settings = generation.weights_and_settings(winner.settings)
    return {
        "sampler": winner.sampler,
        "settings": settings,
        **{name: weights.get(name) for name in generation.WEIGHTS},  # the weights are these already
        **described_figures(winner.figures),
        "collapsed": winner.collapsed,
        "protocol": metrics.protocol.model_dump(mode="json"),
        "device": metrics.device,
        "lineage": describe_lineage(params),
    }


def copy_sampler(winner: Candidate, target: Path) -> Path:
    """The winner's run folder with the weights that it sampled with, and without the other averages. Raises
    SamplerError of a folder that could not be served."""
    folder = paths.RUNS / winner.sampler
    weights, _ = generation.weights_and_settings(winner.settings)
    run = run_folder.load(folder, **weights)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(run_folder.AVERAGES, run_folder.BEST))
    if weights:
        for net in run.family.kept:
            tensors = {key: value.contiguous() for key, value in run.family.nets[net].state_dict().items()}
            safetensors.torch.save_file(tensors, target / f"{net}.safetensors")
    return target


def register(
    params: Params, registry: Registry, winner: Candidate, metrics: SamplerMetrics, folder: Path
) -> tuple[Version, bool]:
    """The winner's version, and whether it is new. `folder` is its sampler, as `copy_sampler` writes it."""
    metric = params.promote.metric
    description = described(params, winner, metrics)
    tags = {
        "sampler": winner.sampler,
        "settings": json.dumps(winner.settings, sort_keys=True),
        "git": description["lineage"]["git"],
        metric: f"{winner.figures[metric].value:.6g}",
    }
    job = run_folder.read_config(folder).provenance.job
    told = f"{winner.name} ({settings_text(winner.settings)}): {metric} {winner.figures[metric].value:.4g}"
    return registry.register(Entry(folder, winner.content, job, description, picture_files(winner), tags, told))


def read_policy(params: Params, metrics: dict[str, SamplerMetrics], candidates: list[Candidate]) -> PromoteConfig:
    """The policy of params.yaml for these data: its relative bounds as figures, which are told."""
    known, asked = next(iter(metrics.values())).known, params.promote
    num_classes = len(read_manifest(paths.REFERENCE / "test").classes)
    policy = in_figures(asked, Yardsticks(num_classes, known.judge, known.sets[0].figures), candidates)
    for name, bound in asked.guards.items():
        if name not in policy.guards:
            print(f"guard {name}: left out, because these data or their samplers have no labels")
        elif bound.of is not None:
            print(f"guard {name}: of {bound.of}, that is {bound_text(policy.guards[name])}")
    return policy


def bound_text(bound: Bound) -> str:
    """Both ends of a bound in words."""
    ends = {"at least": bound.at_least, "at most": bound.at_most}
    return ", ".join(f"{words} {end:.4g}" for words, end in ends.items() if end is not None)


def promote(params: Params, registry: Registry, metrics: dict[str, SamplerMetrics]) -> dict[str, Any]:
    """Decides, registers and moves the alias where it must; writes champion/ and promoted.json. Returns the latter."""
    withdrawn = {version.content: version.withdrawn for version in registry.versions()}
    candidates = read_candidates(metrics, withdrawn)
    policy = read_policy(params, metrics, candidates)
    refuse_unknown_figures(policy, candidates)  # before a champion is measured again, which takes minutes
    judgement = judge(candidates, policy)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        reigning = read_reigning(params, registry, candidates, metrics, scratch)
        decision = decide(candidates, reigning, policy)
        winner = decision.winner
        if winner is None:
            track(params, metrics)
            print(f"nobody is promoted: {decision.why}")
            return write_nobody(registry, decision.why, judgement)
        if decision.stays:
            version = registry.version(winner.version)
            print(f"{registry.model} v{version.number} stays: {decision.why}")
        else:
            version, is_new = register(
                params, registry, winner, metrics[winner.sampler], copy_sampler(winner, scratch / "registered")
            )
            registry.move(version, decision.why)
            verb = "registered as" if is_new else "already registered as"
            print(f"{winner.name} {verb} {registry.model} v{version.number}: {decision.why}")
        track(params, metrics)
        if winner.number is None:  # it reigns and is no candidate: as fetched, and perhaps measured again
            return write_champion(registry, version, scratch, decision.why, judgement)
        copy_sampler(winner, scratch / "of_candidate" / pyfunc.SAMPLER)
        for name, png in picture_files(winner).items():
            (scratch / "of_candidate" / name).write_bytes(png)
        description = described(params, winner, metrics[winner.sampler]) | {"candidate": winner.number}
        write_json(scratch / "of_candidate" / pyfunc.CANDIDATE, description)
        return write_champion(registry, version, scratch / "of_candidate", decision.why, judgement)


def judge(candidates: list[Candidate], policy: PromoteConfig) -> dict[str, Any]:
    """What promoted.json keeps of how candidates were judged: the guards' bounds in figures, and each one's objections,
    which are told."""
    defined = definitions(candidate.figures for candidate in candidates)
    found = {candidate.name: objections(candidate, policy, defined) for candidate in candidates}
    for name, reasons in found.items():
        for reason in reasons:
            print(f"{name} is out: {reason}")
    bounds = {name: {"at_least": one.at_least, "at_most": one.at_most} for name, one in policy.guards.items()}
    return {"guards": bounds, "objections": found}


def write_nobody(registry: Registry, why: str, judgement: dict[str, Any]) -> dict[str, Any]:
    """champion/ and promoted.json where nobody reigns: for the report, and for whoever asks who does."""
    with whole_folder(paths.CHAMPION) as folder:
        write_whole(folder / "nobody.txt", f"{why}\n")
    nobody = dict.fromkeys(("sampler", "key", "candidate", "settings", "figures", "run_folder", "version", "hash"))
    promoted = {**nobody, "model": registry.model, "why": why, **judgement}
    write_json(paths.PROMOTED, promoted)
    return promoted


def write_champion(
    registry: Registry, version: Version, source: Path, why: str, judgement: dict[str, Any]
) -> dict[str, Any]:
    """champion/ and promoted.json, from a folder as the registry keeps it."""
    with whole_folder(paths.CHAMPION) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    champion = read_json(paths.CHAMPION / pyfunc.CANDIDATE)
    promoted = {
        "sampler": champion["sampler"],
        "key": f"samplers.{champion['sampler']}",
        "candidate": champion.get("candidate"),  # None of a champion of earlier trainings
        "settings": champion["settings"],
        **{name: champion.get(name) for name in generation.WEIGHTS},
        "figures": champion["figures"],
        "definitions": champion.get("definitions", []),  # none of figures measured before they had any
        "run_folder": (paths.CHAMPION / pyfunc.SAMPLER).as_posix(),
        "model": registry.model,
        "version": version.number,
        "hash": version.content,
        SHA256_TAG: sha256_folder(paths.CHAMPION / pyfunc.SAMPLER),
        "why": why,
        **judgement,
    }
    write_json(paths.PROMOTED, promoted)
    return promoted


def track(params: Params, metrics: dict[str, SamplerMetrics]) -> None:
    """Puts every candidate's figures and grid into the run that trained its sampler, and those of the best by their
    plain names, which compare runs."""
    for sampler, measured in metrics.items():
        job = run_folder.read_config(paths.RUNS / sampler).provenance.job
        run = runs.run_of_job(params.tracking, ROOT, job)
        if run is None:
            continue
        figures, files = values(measured.candidates[measured.best].figures), {}
        for candidate in measured.candidates:
            number = candidate.number
            figures |= {f"candidate_{number}/{name}": value for name, value in values(candidate.figures).items()}
            grid = sample_pictures.path_in(paths.SAMPLES / sampler, number, "grid")
            files |= {f"samples/{number}.png": grid.read_bytes()} if grid.is_file() else {}
        runs.log_evaluation(run, figures, files)


def go_to(params: Params, registry: Registry, number: str, why: str) -> dict[str, Any]:
    """Makes a version the champion by hand."""
    version = registry.version(number)
    with tempfile.TemporaryDirectory() as temporary:
        source = registry.fetch(version, Path(temporary))
        registry.move(version, why, withdraw=True)
        return write_champion(registry, version, source, why, recorded_judgement())


def recorded_judgement() -> dict[str, Any]:
    """How candidates were judged last; nothing where that is not on record."""
    recorded = read_promotion() if paths.PROMOTED.is_file() else {}
    return {name: recorded[name] for name in ("guards", "objections") if name in recorded}


def describe(promoted: dict[str, Any], champion: Candidate, report: Path) -> str:
    """The champion and its figures, for a terminal."""
    model = f"{promoted['model']} v{promoted['version']}"
    lines = [f"champion: {promoted['sampler']} ({settings_text(promoted['settings'])}), registered as {model}"]
    learned = run_folder.read_config(Path(promoted["run_folder"])).provenance.inputs
    lines += [f"{role + ':':<9} {run}" for role, run in learned.items()]
    for name, figure in champion.figures.items():
        around = "  ({:.4g} to {:.4g})".format(*figure.interval) if figure.interval else ""
        lines.append(f"  {name:<20} {figure.value:.4g}{around}")
    lines.append(f"report:   {report.resolve()}" if report.is_file() else "report:   not written yet")
    return "\n".join(lines)


def show(params: Params) -> None:
    promoted = read_promotion()
    if promoted["version"] is None:
        print(f"nobody reigns: {promoted['why']}")
    else:
        print(describe(promoted, read_champion(), paths.REPORT))
    if told := disagreement(promoted["version"], Registry(params.tracking, ROOT, promoted["model"])):
        print(f"registry: {told}")


def disagreement(version: str | None, registry: Registry) -> str | None:
    """What the registry says otherwise than promoted.json, which has `version`, and how to make them agree; None where
    they do, and where a clone has no registry."""
    if not registry.is_there():
        return None
    try:
        champion = registry.champion()
    except InputError as error:
        return f"could not be asked: {error}"
    if champion is None:
        return None if version is None else f"nobody reigns there; `--to {version}` makes v{version} reign"
    if champion.number == version:
        return None
    ours = "`dvc repro promote` decides again" if version is None else f"`--to {version}` makes v{version} reign there"
    return f"v{champion.number} reigns there; `--to {champion.number}` writes {paths.PROMOTED} anew, {ours}"


def show_moves(registry: Registry) -> None:
    for move in registry.moves():
        begun = "" if move.made else "  (begun, did not come about)"
        print(f"{move.when}  v{move.left or 'none'} -> v{move.to}  {move.who}  {move.why}{begun}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m pipelines.promote", description=__doc__.partition(":")[0])
    parser.add_argument("--show", action="store_true", help="print the champion and its figures")
    parser.add_argument("--moves", action="store_true", help="print every change of the champion")
    parser.add_argument("--to", metavar="VERSION", help="go to a version by hand")
    parser.add_argument("--why", help="the reason that is recorded with --to, `by hand` if there is none")
    asked = parser.parse_args(argv)
    if asked.to == "" or (asked.why is not None and asked.to is None):
        parser.error(f"--to: expected the number of a version, found {asked.to!r}")  # an unset variable of a shell, say
    params = load()
    if asked.show:
        return show(params)
    registry = Registry(params.tracking, ROOT, params.promote.registered_model)
    if asked.moves:
        return show_moves(registry)
    if asked.to is not None:
        why = asked.why or "by hand"
        promoted = go_to(params, registry, asked.to.removeprefix("v"), why)
        print(f"{promoted['model']} v{promoted['version']} reigns: {why}")
        return None
    promote(params, registry, read_metrics(params))
    return None


if __name__ == "__main__":
    cli.run(main)
