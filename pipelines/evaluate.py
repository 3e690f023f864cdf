"""Measures a sampler's candidates: `python -m pipelines.evaluate samplers.ldm` -> metrics/ldm.json, samples/ldm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from components import run_folder
from components.config import Strict, parse
from components.data import MANIFEST, Dataset, verify
from components.errors import ConfigError, DataError, SamplerError
from components.families.base import Sampler
from components.files import sha256, whole_folder, write_json
from components.images import encode_png, from_uint8, grid
from components.metrics import generation
from components.metrics.extractor import Extractor, Features, extract, joined, judge_extractor, label_agreement
from components.metrics.protocol import EvaluateConfig, Protocol, library_versions
from components.metrics.quality import Reference, quality
from components.randomness import Draws
from pipelines import cli, paths
from pipelines.params import Params, SamplerBlock, load, name_of

_GRID_SIDE = 48  # pixels: an image is shown at least about this large in a grid
FIGURES = ("frechet_distance", "precision", "recall", "density", "coverage", "kid", "label_agreement", "ms_per_image")


@dataclass(frozen=True)
class Bench:
    """What every candidate is measured against."""

    config: EvaluateConfig
    extractor: Extractor
    protocol: Protocol
    reference: Reference
    train: Dataset
    test: Dataset
    judge_accuracy: float


def make_bench(params: Params, device: str) -> Bench:
    """Loads the judge and the real images. Raises InputError if either is missing, damaged or of other shapes."""
    if not params.judges:
        raise ConfigError("params.yaml.judges: empty; evaluation needs a judge as feature extractor")
    config, name = params.evaluate, next(iter(params.judges))
    extractor = judge_extractor(run_folder.load(paths.RUNS / name, device), name)
    for folder in (paths.TRAIN_IMAGES, paths.TEST_IMAGES):
        shape = verify(folder).columns["image"].shape
        if shape != extractor.shape:
            raise DataError(f"{folder}: images of shape {shape}; the judge was trained on {extractor.shape}")
    train, test = Dataset(paths.TRAIN_IMAGES), Dataset(paths.TEST_IMAGES)
    real = extract(extractor, real_images(test, torch.arange(len(test)), config.batch_size))
    labels = torch.cat([columns["label"] for columns in test.chunks(config.batch_size)])
    protocol = Protocol(
        extractor=name,
        extractor_hash=extractor.weights_hash,
        reference=paths.TEST_IMAGES.name,
        reference_hash=sha256(paths.TEST_IMAGES / MANIFEST),
        reference_count=len(test),
        image_shape=extractor.shape,
        versions=library_versions(),
        **config.model_dump(),
    )
    reference = Reference.of(real.vectors, config)
    return Bench(config, extractor, protocol, reference, train, test, label_agreement(real.logits, labels))


def real_images(dataset: Dataset, rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Images of the given rows, batch by batch."""
    for part in rows.split(batch_size):
        yield from_uint8(dataset.take(part)["image"])


def floor(bench: Bench) -> dict:
    """Real training images measured as if they were samples: what a perfect sampler would get."""
    generator = torch.Generator().manual_seed(bench.config.seed)
    rows = torch.randperm(len(bench.train), generator=generator)[: bench.config.num_samples]
    features = extract(bench.extractor, real_images(bench.train, rows, bench.config.batch_size))
    return {"num_samples": len(rows), **quality(features.vectors, bench.reference, bench.config)}


def noise(bench: Bench) -> dict:
    """Uniform noise measured as if it were samples: what no sampler should get."""
    draws = Draws.of_seeds(generation.seeds(bench.config.num_samples, bench.config.seed))
    parts = (
        bench.extractor.embed(2 * Draws(keys).uniform("noise", bench.extractor.shape) - 1)
        for keys in draws.keys.split(bench.config.batch_size)
    )
    return {
        "num_samples": bench.config.num_samples,
        **quality(joined(list(parts)).vectors, bench.reference, bench.config),
    }


def load_sampler(key: str, block: SamplerBlock, bench: Bench, device: str) -> Sampler:
    """The trained sampler of a block. Raises SamplerError if its run folder is damaged or another family's."""
    folder = paths.RUNS / name_of(key)
    run = run_folder.load(folder, device)
    if run.config.family != block.family:
        raise SamplerError(f"{folder}: holds a {run.config.family}, params.yaml says {block.family}; train {key} again")
    classes = bench.test.manifest.classes
    if run.family.conditional and run.family.data.classes != classes:
        raise SamplerError(f"{folder}: was trained on other classes than {paths.TEST_IMAGES} has; train {key} again")
    return run.family


def measure(sampler: Sampler, settings: Strict, bench: Bench) -> tuple[dict, Tensor, int]:
    """One candidate's figures, its grid's images, and the grid's columns. The grid is sampled first and warms up."""
    config = bench.config
    request = generation.grid_request(sampler, settings, config.seed)
    shown = torch.cat(
        [generation.generate(sampler, part).images for part in generation.split(request, config.batch_size)]
    )
    if shown.shape[1:] != bench.extractor.shape:
        raise SamplerError(
            f"makes images of shape {tuple(shown.shape[1:])}; {paths.TEST_IMAGES} has {bench.extractor.shape}"
        )
    features: list[Features] = []
    labels: list[Tensor] = []
    timings: list[tuple[int, float]] = []
    for request in generation.requests(sampler, settings, config.num_samples, config.seed, config.batch_size):
        piece = generation.generate(sampler, request)
        features.append(bench.extractor.embed(piece.images))
        timings.append((len(piece.images), piece.seconds))
        if piece.labels is not None:
            labels.append(piece.labels)
    found, asked = joined(features), torch.cat(labels) if labels else None
    figures = {
        "settings": settings.model_dump(mode="json"),
        **quality(found.vectors, bench.reference, config, asked),
        "label_agreement": None if asked is None else label_agreement(found.logits, asked),
        "ms_per_image": generation.ms_per_image(timings),
        "ms_single": generation.ms_single(sampler, settings, config.seed),
        "network_evaluations": generation.network_evaluations(sampler, settings),
    }
    return figures, shown, generation.GRID_COLUMNS


def evaluate(params: Params, key: str, device: str) -> dict:
    """Measures all candidates of a block; writes the grids, then the figures, each whole or not at all."""
    block = params.samplers[name_of(key)]
    bench = make_bench(params, device)
    sampler = load_sampler(key, block, bench, device)
    candidates = []
    with whole_folder(paths.SAMPLES / name_of(key)) as folder:
        for number, candidate in enumerate(block.candidates):
            settings = parse(sampler.Settings, candidate, f"{key}.candidates.{number}")
            figures, shown, columns = measure(sampler, settings, bench)
            candidates.append(figures)
            scale = max(1, _GRID_SIDE // shown.shape[-1])
            (folder / f"{number}.png").write_bytes(encode_png(grid(shown, columns), scale))
            print(f"{key} candidate {number}: {row(figures)}", flush=True)
    distances = [figures["frechet_distance"] for figures in candidates]
    result = {
        "sampler": name_of(key),
        "family": block.family,
        "conditional": sampler.conditional,
        "protocol": bench.protocol.model_dump(mode="json"),
        "device": device_name(device),
        "judge_accuracy": bench.judge_accuracy,
        "floor": floor(bench),
        "noise": noise(bench),
        "candidates": candidates,
        "best": distances.index(min(distances)),
    }
    write_json(paths.METRICS / f"{name_of(key)}.json", result)
    return result


def device_name(device: str) -> str:
    """What the milliseconds were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"


def row(figures: dict) -> str:
    """Figures in one line, for the terminal."""
    return "  ".join(f"{name} {figures[name]:.4g}" for name in FIGURES if figures.get(name) is not None)


def table(result: dict) -> str:
    """All rows, one below the other, for the terminal."""
    named = [("floor: real training images", result["floor"])]
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
    lines.append(
        f"judge accuracy on the held-out images: {result['judge_accuracy']:.2%}; measured on {result['device']}"
    )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    key = cli.one_argument(argv, "python -m pipelines.evaluate samplers.NAME")
    params = load()
    if not key.startswith("samplers.") or name_of(key) not in params.samplers:
        known = ", ".join(f"samplers.{name}" for name in params.samplers)
        raise ConfigError(f"no sampler {key!r} in params.yaml; expected one of {known}")
    print(table(evaluate(params, key, "cuda" if torch.cuda.is_available() else "cpu")))


if __name__ == "__main__":
    cli.run(main)
