"""Measures a sampler's candidates: `python -m pipelines.evaluate samplers.ldm` -> metrics/ldm.json, samples/ldm.

samples/ldm/0-grid.png        a grid of candidate 0, a class a row
samples/ldm/0-nearest.png     its images that come closest to training images, above those
samples/ldm/0-failures.png    its images that the judge believes least to show their class
samples/ldm/candidates.csv    the figures of all candidates, for `dvc plots show`
"""

from __future__ import annotations

import csv
import functools
import io
import math
from dataclasses import asdict, replace
from pathlib import Path

import torch

from components.artifacts.run_folder import AVERAGES, Run, read_averages
from components.config import parse
from components.data.dataset import MANIFEST, Dataset, verify
from components.devices import default_device
from components.errors import ConfigError, InputError, SamplerError
from components.evaluation import generation
from components.evaluation.features import Extractors, Features
from components.evaluation.search import Trial, best, search
from components.families.base import Sampler
from components.files import sha256, whole_folder, write_whole
from components.metrics.figures import Figures, definitions, named
from components.metrics.frechet import FRECHET_DISTANCE, Moments, frechet_distance
from infra.ray_cluster.worker_pool import WorkerPool, worker_pool
from pipelines.support import cli, paths, remote, sample_pictures
from pipelines.support.candidates import Candidate, settings_text
from pipelines.support.measurement import (
    Measurement,
    clip_folder,
    judge_folder,
    likelihood_figures,
    load_sampler,
    measure,
    ms_per_image,
    open_extractors,
    open_measurement,
    row,
    sample,
    sampling,
)
from pipelines.support.metrics_files import (
    FLOOR,
    FLOOR_BY_CHANCE,
    FLOOR_OF_CAPTIONS,
    Known,
    SamplerMetrics,
    read_known,
)
from pipelines.support.params import Params, SamplerBlock, load, name_in, name_of
from pipelines.support.paths import ROOT


def known_sets(measurement: Measurement) -> Known:
    """What `reference` measured of known sets. Raises InputError if images or protocol have changed since, DataError of
    damaged images."""
    known = read_known()
    for folder, described in ((paths.TRAIN_IMAGES, "train_hash"), (paths.TEST_IMAGES, "reference_hash")):
        verify(folder)
        if sha256(folder / MANIFEST) != getattr(measurement.protocol, described):
            raise InputError(f"{folder}: other images than {paths.REFERENCE} describes; run pipelines.reference again")
    if known.protocol != measurement.protocol:
        raise InputError(f"{paths.KNOWN}: measured under another protocol; run pipelines.reference again")
    return known


def load_block(key: str, block: SamplerBlock, measurement: Measurement, device: str) -> Run:
    """The trained sampler of a block. Raises SamplerError if its run folder is damaged or another family's."""
    folder = paths.RUNS / name_of(key)
    run = load_sampler(folder, measurement, device)
    if run.config.family != block.family:
        raise SamplerError(f"{folder}: holds a {run.config.family}, params.yaml says {block.family}; train {key} again")
    return run


def search_settings(
    workers: WorkerPool, params: Params, run: Run, candidate: dict, measurement: Measurement, extractors: Extractors
) -> list[Trial]:
    """Trials of solver settings, scored against the training images with samples of another seed than the figures':
    the held-out images do not help to choose what they measure."""
    config, seed = params.evaluate.search, params.evaluate.seed
    task = replace(sampling(params, run.folder, candidate), num_samples=config.num_samples, seed=seed + 1)
    validation, device = Moments.of(measurement.train_features.vectors), default_device()

    def score(settings: dict) -> tuple[float, float]:
        tried = replace(task, candidate=settings)
        ready = tried.open(device)
        batches = sample(workers, tried, ready, extractors)
        moments = Moments.of(Features.joined([batch.features for batch in batches]).vectors)
        return frechet_distance(moments, validation), ms_per_image(workers, tried, batches, ready)

    has_averages = (run.folder / AVERAGES).is_file()
    known = {*run.family.Settings.model_fields, *([generation.AVERAGE] if has_averages else [])}
    start = task.open(device)[1].model_dump(mode="json") | candidate
    trials = search(config, known, start, score, seed, functools.partial(_takes, run.family))
    for number, trial in enumerate(trials):
        tried = ", ".join(f"{name}={value}" for name, value in trial.settings.items() if name in config.space)
        print(f"trial {number}: {tried}: {trial.distance:.4g}, {trial.ms_per_image:.3g} ms", flush=True)
    return trials


def _takes(sampler: Sampler, settings: dict) -> bool:
    """Whether a sampler can sample with settings that a search tries."""
    try:
        chosen = parse(sampler.Settings, generation.weights_and_settings(settings)[1], "settings")
    except ConfigError:
        return False
    return sampler.why_not(sampler.config, chosen, sampler.data.outline) is None


def figures_over_training(
    params: Params, run: Run, candidate: dict, measurement: Measurement, extractors: Extractors
) -> tuple[tuple[int, Figures], ...]:
    """The distance at each step that averages were kept of, by the narrowest: how quality grew with training."""
    count = params.evaluate.snapshot_samples
    if not count or not (run.folder / AVERAGES).is_file():
        return ()
    kept = sorted(read_averages(run.folder), key=lambda one: (one["step"], -one["sigma_rel"]))
    narrowest = {one["step"]: one["nets"] for one in kept}
    task = replace(sampling(params, run.folder, candidate), num_samples=count)
    sampler, settings = task.open(default_device())
    found = []
    for step, nets in narrowest.items():
        for net, weights in nets.items():
            sampler.nets[net].load_state_dict(weights)
        work = task.worker((sampler, settings), extractors)  # here: workers know the folder's own weights
        vectors = Features.joined([work(part).features for part in task.parts]).vectors
        distance = frechet_distance(Moments.of(vectors), measurement.real.reference.moments)
        found.append((step, named(FRECHET_DISTANCE.figure(distance))))
    return tuple(found)


def evaluate(params: Params, key: str, device: str) -> SamplerMetrics:
    """Measures all candidates of a block; writes the pictures, then the figures, each whole or not at all."""
    block, name = params.samplers[name_of(key)], name_of(key)
    extractors = open_extractors(params, device)
    measurement = open_measurement(params, extractors)
    known = known_sets(measurement)
    run = load_block(key, block, measurement, device)
    first = block.candidates[0]
    candidates: list[Candidate] = []
    likelihoods: dict[str, Figures] = {}  # by weights: no solver setting changes them
    with worker_pool(params.cluster, ROOT) as workers, whole_folder(paths.SAMPLES / name) as folder:
        trials = search_settings(workers, params, run, first, measurement, extractors)
        found = best(trials)
        for number, chosen in enumerate([*block.candidates, *([found.settings] if found else [])]):
            task = sampling(params, run.folder, chosen)
            ready, weights = task.open(device), repr(generation.weights_and_settings(chosen)[0])
            if weights not in likelihoods:
                likelihoods[weights] = likelihood_figures(ready[0], measurement)
            measured = measure(workers, task, ready, measurement, extractors, likelihoods[weights])
            candidate = Candidate(
                sampler=name,
                settings=measured.settings,
                figures=measured.figures,
                number=number,
                searched=number == len(block.candidates),
                collapsed=measured.collapsed,
            )
            candidates.append(candidate)
            for picture, png in sample_pictures.draw(measured, run.family.medium).items():
                sample_pictures.path_in(folder, number, picture).write_bytes(png)
            print(f"{key} candidate {number}: {row(candidate.figures)}", flush=True)
        grown = figures_over_training(params, run, first, measurement, extractors)
        write_whole(folder / "candidates.csv", plottable(candidates))
    metrics = SamplerMetrics(
        sampler=name,
        family=block.family,
        conditional=run.family.conditional,
        device=device_name(device),
        known=known,
        candidates=tuple(candidates),
        best=best_candidate(candidates),
        search=tuple(asdict(trial) for trial in trials),
        over_training=grown,
        floor_name=floor_name(run.family),
    )
    metrics.write()
    return metrics


def floor_name(sampler: Sampler) -> str:
    """The known set of real images under the conditions that a sampler is asked for."""
    captions = generation.Captions.of(Dataset(paths.TEST_IMAGES))
    if generation.wanted_labels(sampler, captions, 1) is None:
        return FLOOR_BY_CHANCE
    return FLOOR_OF_CAPTIONS if sampler.texts else FLOOR


def best_candidate(candidates: list[Candidate]) -> int:
    """The number of the candidate with the best first figure, which stands for the sampler in `dvc metrics`."""
    headline = next(iter(candidates[0].figures.values())).definition
    found = [candidate.figures.get(headline.name) for candidate in candidates]
    costs = [math.inf if figure is None else headline.cost(figure.value) for figure in found]
    return costs.index(min(costs))


def plottable(candidates: list[Candidate]) -> str:
    """A CSV file with a row a candidate and a column a figure."""
    columns = list(definitions(candidate.figures for candidate in candidates))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["candidate", *columns])
    for candidate in candidates:
        figures = candidate.figures
        writer.writerow([candidate.name, *(figures[name].value if name in figures else "" for name in columns)])
    return buffer.getvalue()


def device_name(device: str) -> str:
    """What the milliseconds were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"


def table(metrics: SamplerMetrics) -> str:
    """A line a figure and a column a set, for the terminal."""
    sets = [(f"#{one.number}", one.figures) for one in metrics.candidates]
    sets += [(one.label, one.figures) for one in metrics.known.sets]
    defined = definitions(figures for _, figures in sets)
    width = max(len(name) for name in defined)
    lines = [f"{'':{width}}  " + "  ".join(f"{name:>12}" for name, _ in sets)]
    for name in defined:
        cells = (f"{figures[name].value:.4g}" if name in figures else "" for _, figures in sets)
        lines.append(f"{name:{width}}  " + "  ".join(f"{cell:>12}" for cell in cells))
    lines += [f"#{one.number}: {settings_text(one.settings)}" for one in metrics.candidates]
    lines += [f"{figure.definition.explanation}: {figure.value:.4g}" for figure in metrics.known.judge.values()]
    lines.append(f"measured on {metrics.device}")
    return "\n".join(lines)


def inputs(params: Params, key: str) -> list[Path]:
    """All that a measurement reads: the sampler, the judge and the clip, what is known of the real images, weights of
    extractors that lie here rather than on a hub."""
    asked, measuring = params.evaluate, (judge_folder(params), clip_folder(params))
    weights = (asked.extractor.weights, asked.lpips, asked.clip_score)
    return [
        paths.RUNS / name_of(key),
        *(paths.RUNS / folder.name for folder in measuring if folder is not None),
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
        outputs = [paths.SAMPLES / name, *(folder / f"{name}.json" for folder in (paths.METRICS, paths.SUMMARY))]
        remote.run(params, "pipelines.evaluate", [key], inputs(params, key), outputs)
        return
    print(table(evaluate(params, key, default_device())))


if __name__ == "__main__":
    cli.run(main)
