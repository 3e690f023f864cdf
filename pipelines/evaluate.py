"""Measures a sampler's candidates: `python -m pipelines.evaluate samplers.ldm` -> metrics/ldm.json, samples/ldm.

samples/ldm/0-grid.png        a grid of candidate 0, a class a row
samples/ldm/0-nearest.png     its images that come closest to training images, above those
samples/ldm/0-failures.png    its images that the judge believes least to show their class
samples/ldm/candidates.csv    the figures of all candidates, for `dvc plots show`
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from components.artifacts.run_folder import AVERAGES, Run, read_averages
from components.data.dataset import MANIFEST, verify
from components.data.media import Medium
from components.errors import InputError, SamplerError
from components.evaluation import generation
from components.evaluation.measuring import FAILURE_PICTURES, NEIGHBOUR_PICTURES
from components.evaluation.search import Trial, best, refuse_bad_space, search
from components.evaluation.tasks import Extractors, Seen, default_device
from components.files import sha256, whole_folder, write_json, write_whole
from components.metrics.frechet import Moments, frechet_distance
from infra.ray_cluster.worker_pool import WorkerPool, worker_pool
from pipelines.support import cli, paths, remote
from pipelines.support.measurement import (
    FIGURES,
    Measured,
    Measurement,
    judge_folder,
    load_sampler,
    measure,
    ms_per_image,
    open_extractors,
    open_measurement,
    row,
    sample,
    sampling,
)
from pipelines.support.metrics_files import read_json
from pipelines.support.params import Params, SamplerBlock, load, name_in, name_of
from pipelines.support.paths import ROOT

_GRID_SIDE = 48  # pixels: an image is shown at least about this large in a grid


def read_known(bench: Measurement) -> dict:
    """What `reference` found of known sets. Raises InputError if images or protocol have changed since, DataError of
    damaged images."""
    content = read_json(paths.KNOWN, "reference")
    for folder, described in ((paths.TRAIN_IMAGES, "train_hash"), (paths.TEST_IMAGES, "reference_hash")):
        verify(folder)
        if sha256(folder / MANIFEST) != getattr(bench.protocol, described):
            raise InputError(f"{folder}: other images than {paths.REFERENCE} describes; run pipelines.reference again")
    if content["protocol"] != bench.protocol.model_dump(mode="json"):
        raise InputError(f"{paths.KNOWN}: measured under another protocol; run pipelines.reference again")
    return content


def load_block(key: str, block: SamplerBlock, bench: Measurement, device: str) -> Run:
    """The trained sampler of a block. Raises SamplerError if its run folder is damaged or another family's."""
    folder = paths.RUNS / name_of(key)
    run = load_sampler(folder, bench, device)
    if run.config.family != block.family:
        raise SamplerError(f"{folder}: holds a {run.config.family}, params.yaml says {block.family}; train {key} again")
    return run


def searched(
    workers: WorkerPool, params: Params, run: Run, candidate: dict, bench: Measurement, extractors: Extractors
) -> list[Trial]:
    """Trials of solver settings, scored against the training images with samples of another seed than the figures':
    the held-out images do not help to choose what they measure."""
    config, seed = params.evaluate.search, params.evaluate.seed
    refuse_bad_space(config.space, "evaluate.search.space")
    order = replace(sampling(params, run.folder, candidate), num_samples=config.num_samples, seed=seed + 1)
    validation, device = Moments.of(bench.train_seen.vectors), default_device()

    def score(settings: dict) -> tuple[float, float]:
        tried = replace(order, candidate=settings)
        ready = tried.open(device)
        pieces = sample(workers, tried, ready, extractors)
        moments = Moments.of(Seen.joined([piece.seen for piece in pieces]).vectors)
        return frechet_distance(moments, validation), ms_per_image(workers, tried, pieces, ready)

    has_averages = (run.folder / AVERAGES).is_file()
    known = {*run.family.Settings.model_fields, *([generation.AVERAGE] if has_averages else [])}
    start = order.open(device)[1].model_dump(mode="json") | candidate
    trials = search(config, known, start, score, seed)
    for number, trial in enumerate(trials):
        told = ", ".join(f"{name}={value}" for name, value in trial.settings.items() if name in config.space)
        print(f"trial {number}: {told}: {trial.distance:.4g}, {trial.ms_per_image:.3g} ms", flush=True)
    return trials


def over_training(params: Params, run: Run, candidate: dict, bench: Measurement, extractors: Extractors) -> list[dict]:
    """The distance at each step that averages were kept of, by the narrowest: how quality grew with training."""
    count = params.evaluate.snapshot_samples
    if not count or not (run.folder / AVERAGES).is_file():
        return []
    kept = sorted(read_averages(run.folder), key=lambda one: (one["step"], -one["sigma_rel"]))
    narrowest = {one["step"]: one["nets"] for one in kept}
    order = replace(sampling(params, run.folder, candidate), num_samples=count)
    sampler, settings = order.open(default_device())
    found = []
    for step, nets in narrowest.items():
        for net, weights in nets.items():
            sampler.nets[net].load_state_dict(weights)
        work = order.worker((sampler, settings), extractors)  # here: workers know the folder's own weights
        vectors = Seen.joined([work(part).seen for part in order.parts]).vectors
        distance = frechet_distance(Moments.of(vectors), bench.real.reference.moments)
        found.append({"step": step, "frechet_distance": distance})
    return found


def pictures(measured: Measured, medium: Medium) -> dict[str, bytes]:
    """By what follows the candidate's number in the file's name."""
    scale = medium.preview_scale(measured.grid.shape[1:], _GRID_SIDE)

    def png(rows: Tensor, columns: int) -> bytes:
        return medium.preview(rows, columns, scale)

    found = {"-grid": png(measured.grid, generation.GRID_COLUMNS)}
    found["-nearest"] = png(measured.nearest, min(NEIGHBOUR_PICTURES, len(measured.nearest) // 2))
    if measured.failures is not None:
        found["-failures"] = png(measured.failures, FAILURE_PICTURES // 2)
    return found


def evaluate(params: Params, key: str, device: str) -> dict:
    """Measures all candidates of a block; writes the pictures, then the figures, each whole or not at all."""
    block, name = params.samplers[name_of(key)], name_of(key)
    extractors = open_extractors(params, device)
    bench = open_measurement(params, extractors)
    known = read_known(bench)
    run = load_block(key, block, bench, device)
    first = block.candidates[0]
    with worker_pool(params.cluster, ROOT) as workers, whole_folder(paths.SAMPLES / name) as folder:
        trials = searched(workers, params, run, first, bench, extractors)
        found = best(trials)
        candidates = [*block.candidates, *([found.settings] if found else [])]
        measured = []
        for number, candidate in enumerate(candidates):
            order = sampling(params, run.folder, candidate)
            result = measure(workers, order, order.open(device), bench, extractors)
            measured.append({**result.figures, "searched": number == len(block.candidates)})
            for suffix, png in pictures(result, run.family.medium).items():
                (folder / f"{number}{suffix}.png").write_bytes(png)
            print(f"{key} candidate {number}: {row(result.figures)}", flush=True)
        grown = over_training(params, run, first, bench, extractors)
        write_whole(folder / "candidates.csv", plottable(name, measured))
    distances = [figures["frechet_distance"] for figures in measured]
    winner = distances.index(min(distances))
    result = {
        **known,
        "sampler": name,
        "family": block.family,
        "conditional": run.family.conditional,
        "device": device_name(device),
        "candidates": measured,
        "search": [asdict(trial) for trial in trials],
        "over_training": grown,
        "best": winner,
        # `dvc metrics` follows mappings, not lists
        "summary": {figure: measured[winner].get(figure) for figure in FIGURES},
    }
    write_json(paths.METRICS / f"{name}.json", result)
    return result


def plottable(name: str, measured: list[dict]) -> str:
    """A row a candidate."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["candidate", *FIGURES], lineterminator="\n")
    writer.writeheader()
    for number, figures in enumerate(measured):
        writer.writerow({"candidate": f"{name} #{number}", **{figure: figures.get(figure) for figure in FIGURES}})
    return buffer.getvalue()


def device_name(device: str) -> str:
    """What the milliseconds were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"


def table(result: dict) -> str:
    """All rows, one below the other, for the terminal."""
    named = [("floor: real training images", result["floor"]), ("copy: the training set itself", result["copy"])]
    for candidate in result["candidates"]:
        settings = ", ".join(f"{name}={value}" for name, value in candidate["settings"].items())
        named.append((settings or "default", candidate))
    named.append(("noise", result["noise"]))
    width = max(len(name) for name, _ in named)
    heads = "  ".join(f"{name.removesuffix('_distance').replace('_', ' '):>15}" for name in FIGURES)
    lines = [f"{'':{width}}  {heads}"]
    for name, figures in named:
        cells = (figures.get(figure) for figure in FIGURES)
        lines.append(f"{name:{width}}  " + "  ".join(f"{'' if cell is None else f'{cell:.4g}':>15}" for cell in cells))
    if result["judge_accuracy"] is not None:
        lines.append(f"judge accuracy on the held-out images: {result['judge_accuracy']:.2%}")
    lines.append(f"measured on {result['device']}")
    return "\n".join(lines)


def inputs(params: Params, key: str) -> list[Path]:
    """All that a measurement reads: the sampler, the judge, what is known of the real images, weights of extractors
    that lie here rather than on a hub."""
    asked, judge = params.evaluate, judge_folder(params)
    weights = (asked.extractor.weights, asked.lpips, asked.clip_score)
    return [
        paths.RUNS / name_of(key),
        *([paths.RUNS / judge.name] if judge else []),
        paths.REFERENCE,
        paths.TRAIN_IMAGES,
        paths.TEST_IMAGES,
        *(Path(weight) for weight in weights if weight and Path(weight).exists()),
    ]


def main(argv: list[str]) -> None:
    key = cli.one_argument(argv, "python -m pipelines.evaluate samplers.NAME")
    params = load()
    name = name_in(params, "samplers", key)
    if remote.is_away(params.cluster):
        outputs = [paths.SAMPLES / name, paths.METRICS / f"{name}.json"]
        remote.run(params, "pipelines.evaluate", [key], inputs(params, key), outputs)
        return
    print(table(evaluate(params, key, default_device())))


if __name__ == "__main__":
    cli.run(main)
