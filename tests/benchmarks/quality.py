"""Quality by one protocol, in memory: what the benchmarks of whole models share. A judge is trained on the data itself;
its features and labels measure every model, against the held-out images."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from components import sources
from components.config import Strict
from components.data.crops import BUCKET, is_of_frames
from components.data.dataset import batches
from components.data.info import AutoencoderInfo, DataInfo, RunInfo
from components.data.media.image import MEDIUM
from components.diffusion import alignment
from components.evaluation import generation
from components.evaluation.protocol import EvaluateConfig
from components.evaluation.real_draws import drawn_rows, over_draws
from components.evaluation.set_figures import Reference, feature_figures, label_figures, without_intervals
from components.families import family_class
from components.families.base import Family, Sampler
from components.metrics.codes import code_counts
from components.metrics.figures import Figures
from components.sources import DataConfig
from components.training import ema
from components.training.loop import State, TrainingConfig, fit
from infra.ray_cluster.encoding import CodeCounts, Moments
from tests.benchmarks.rates import Data
from tests.components.helpers import no_wrap

DISTANCES = ("frechet_distance", "frechet_infinity", "frechet_balanced")
TOLD = (*DISTANCES, "precision", "recall", "label_agreement", "classes_hit")


def read(config: DataConfig, seed: int = 0) -> dict[str, Data]:
    """Both splits of a source, of any medium."""
    source = sources.read(config, seed)
    of, shape = config.of(source.medium)
    info = DataInfo(shape=shape, medium=of.name, rate=of.rate, classes=source.classes, speakers=source.speakers)
    found = {}
    for split, stream in source.splits.items():
        rows = list(sources.accepted(stream(), [], config.max_rejected))
        columns = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        if "caption" in columns:
            info = info.model_copy(update={"caption_length": columns["caption"].shape[1]})
        frames = {name: columns.pop(name) for name in [*columns] if is_of_frames(name)}
        columns.pop(BUCKET, None)
        if frames:
            info = info.model_copy(update={"crops": (info.shape[1:],)})
        found[split] = Data(info, columns, frames)
    return found


def made(name: str, model: dict, info: DataInfo, seed: int) -> Family:
    """A family with initial weights that are a function of the seed."""
    torch.manual_seed(seed)
    kind = family_class(name)
    return kind(kind.Config(**model), info)


def trained(
    family: Family,
    data: Data,
    training: TrainingConfig,
    seed: int,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    save: Callable[[State], None] = lambda state: None,
    leave: Callable[[int], bool] = lambda step: False,
) -> tuple[Family, State, float]:
    """The family with the average of its weights, its state, and the seconds that training took: all of its steps, or
    as many as fit into `seconds` of the clock. `save`, `leave`: as of `fit`."""
    family.nets.to(device())
    family.begin(lambda: next(batches(data, training.batch_size, seed=seed, crops=family.crops)).to(device()))
    began = clock()
    state = fit(
        family,
        (batch.to(device()) for batch in batches(data, training.batch_size, seed=seed, crops=family.crops)),
        training,
        start=None,
        wrap=no_wrap,
        report=lambda step, figures: figures,
        save=save,
        leave=lambda step: clock() - began > seconds or leave(step),
    )
    took = clock() - began
    for net in family.kept:
        if net in family.early:
            early = family.early[net]
            weights = ema.earlier(state.snapshots, state.step, early.at, early.sigma_rel)[early.net]
        elif net in family.pretrained:
            continue
        else:
            weights = state.average[net]
        family.nets[net].load_state_dict(weights)
    family.nets.requires_grad_(False).eval()
    return family, state, took


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def encoded(vae: Family, data: Data, teacher: Family | None = None) -> Data:
    """The latents of a data set, with whole-set moments as `encode` stores them, and what a teacher sees of the images
    where there is one."""
    net = vae.nets["autoencoder"]
    images = [MEDIUM.to_floats(part.to(device())) for part in data.columns["image"].split(256)]
    mean, std = (torch.cat(parts).cpu() for parts in zip(*(net.encode(part) for part in images), strict=True))
    m, s = mean.double().numpy(), std.double().numpy()
    places = (0, 2, 3)
    moments = Moments(m.size / m.shape[1], m.sum(places), (m**2).sum(places), (s**2).sum(places))
    of = AutoencoderInfo(config=vae.config.model_dump(mode="json"), data=data.info)
    info = DataInfo(shape=mean.shape[1:], classes=data.info.classes, statistics=moments.statistics(), autoencoder=of)
    columns = {"mean": mean, "std": std, "label": data.columns["label"]}
    if teacher is None:
        return Data(info, columns)
    judge, sides = teacher.nets["classifier"], mean.shape[2:]
    parts = [alignment.columns(judge, part, sides) for part in images]
    maps = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    told = {"maps": tuple(tuple(one.shape[1:]) for one in maps.values())}
    run = RunInfo(family="judge", config=teacher.config.model_dump(mode="json"), data=teacher.data)
    return Data(info.model_copy(update={**told, "inputs": {alignment.TEACHER: run}}), {**columns, **maps})


@torch.inference_mode()
def tokenised(vae: Family, data: Data, shifts: int = 0) -> Data:
    """The tokens of a data set, and of its images moved by `shifts` pixels, as `encode` stores them."""
    net, by = vae.nets["autoencoder"], (0, -shifts, shifts) if shifts else (0,)
    moved = [MEDIUM.shifted(data.columns["image"], (down, right)) for down in by for right in by]
    tokens = torch.stack(
        [
            torch.cat([net.tokens(MEDIUM.to_floats(part.to(device()))) for part in images.split(256)]).cpu()
            for images in moved
        ],
        dim=1,
    )
    counts = CodeCounts(code_counts(tokens, net.codebook.size).double().numpy())
    of = AutoencoderInfo(config=vae.config.model_dump(mode="json"), data=data.info)
    info = DataInfo(
        shape=(1, *tokens.shape[2:]),
        medium="tokens",
        classes=data.info.classes,
        statistics=counts.statistics(),
        autoencoder=of,
    )
    columns = {"tokens": tokens[:, :1], "views": tokens[:, 1:], "label": data.columns["label"]}
    return Data(info, columns if shifts else {name: columns[name] for name in ("tokens", "label")})


def with_autoencoder(sampler: Sampler, vae: Family) -> Sampler:
    """A trained sampler of latents, given the autoencoder that it decodes with."""
    sampler.nets["autoencoder"].load_state_dict(vae.nets["autoencoder"].state_dict())
    return sampler


class Yardstick:
    """What measures: a judge, the held-out images by its features, and how many samples are drawn."""

    def __init__(self, judge: Family, test: Data, protocol: EvaluateConfig):
        self.judge, self.protocol = judge, protocol
        vectors, logits = self.features(test.columns[judge.medium.column])
        self.reference = Reference.of(vectors, protocol, labels=test.columns["label"], judged=logits)

    @torch.inference_mode()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows (N, C, ...), as stored or in [-1, 1]: vectors (N, D) float64 and logits."""
        net, of, found = self.judge.nets["classifier"], self.judge.medium, []
        for part in images.split(500):
            vectors = net.features((part if part.is_floating_point() else of.to_floats(part)).to(device()))
            found.append((vectors.double().cpu(), net.logits(vectors).double().cpu()))
        vectors, logits = zip(*found, strict=True)
        return torch.cat(vectors), torch.cat(logits)

    def of_images(self, images: Tensor, labels: Tensor | None) -> dict:
        """Figures of a set, by name, and the interval of the distance; `labels` are those asked for."""
        vectors, logits = self.features(images)
        found = feature_figures(vectors, self.reference, self.protocol, labels, logits)
        found |= label_figures(logits, None, self.protocol, labels)
        told = {name: found[name].value for name in TOLD if name in found}
        return told | {"frechet_interval": list(found["frechet_distance"].interval)}

    def of_real(self, train: Data, count: int | None = None, balanced: bool = True, draws: int = 40) -> Figures:
        """Figures of `count` training images, by default as many as samples, by the mean and the spread of random
        draws: as many of each class, as samplers are asked for, or the classes by chance."""
        vectors, logits = self.features(train.columns[self.judge.medium.column])
        labels, config = train.columns["label"], without_intervals(self.protocol)
        count = count or config.num_samples
        wanted = torch.arange(count) % len(train.info.classes) if balanced else None
        found = []
        for draw in range(draws):
            rows = drawn_rows(wanted, labels, len(labels), count, draw)
            asked = labels[rows] if balanced else None
            found.append(feature_figures(vectors[rows], self.reference, config, asked, logits[rows]))
        return over_draws(found)

    def of_sampler(self, sampler: Sampler, settings: Strict, picture: Path | None = None) -> dict:
        """Figures of a sampler's set under one setting, its milliseconds an image, and a picture to look at."""
        config = self.protocol
        pieces = [
            generation.generate(sampler, request)
            for request in generation.requests(sampler, settings, config.num_samples, config.seed, config.batch_size)
        ]
        if picture is not None:
            save(picture, sampler.sample(generation.grid_request(sampler, settings, config.seed)))
        labels = sampler.cycled_labels(config.num_samples)
        times = [(len(piece.images), piece.seconds) for piece in pieces]
        told = {"ms_per_image": round(generation.ms_per_image(times), 2)}
        return self.of_images(torch.cat([piece.images for piece in pieces]), labels) | told


def save(path: Path, images: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MEDIUM.preview(images, 10, 3))


def rounded(figures: dict) -> dict:
    def short(value: object) -> object:
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return {
        name: [short(part) for part in value] if isinstance(value, list | tuple) else short(value)
        for name, value in figures.items()
    }


def kept(path: Path, measure: Callable[[], dict]) -> dict:
    """What was measured, from its file if it is there: a table of many runs can be finished later."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rounded(measure())))
    return json.loads(path.read_text())


def spread(runs: list[dict]) -> dict:
    """The mean of each figure over the runs that have it, and the figures run by run for the distance; a run that
    failed has none."""

    def known(name: str) -> list[float]:
        return [run[name] for run in runs if isinstance(run.get(name), int | float)]

    names = dict.fromkeys(name for run in runs for name in run)
    means = {name: sum(known(name)) / len(known(name)) for name in names if known(name)}
    return rounded(means | {"frechet_by_seed": known("frechet_distance")})
