"""The pictures of the report: real beside generated images, what an autoencoder keeps, how an image comes about."""

from __future__ import annotations

from dataclasses import replace

import torch

from components.config import parse
from components.data.dataset import Dataset
from components.data.media import Medium
from components.errors import InputError
from components.evaluation import generation
from components.evaluation.pictures import (
    data_uri,
    film_strip,
    interpolations,
    rows_by_class,
    walks,
)
from components.families.base import Sampler
from components.sampling.requests import BLEND, Conditions
from pipelines.support import paths, sample_pictures
from pipelines.support.autoencoders import load_autoencoder
from pipelines.support.metrics_files import read_autoencoder

Context = dict
IMAGES = "held-out images"  # what a champion's ways are between, besides what a request can say
_COLUMNS = 10  # images in a row of pictures
_PAIRS = 5  # interpolations shown
_STEPS = 10  # images of one interpolation
_FRAMES = 8  # of a film strip
_FILMED = 5  # images whose way is shown
_PLAYED, _PLAYED_CLASSES = 4, 20  # rows of a class that are played, and classes
_WALKS = 3  # ways between samples, of a kind


def _uri(medium: Medium, rows: torch.Tensor, columns: int) -> str:
    """A preview as a data URI."""
    return data_uri(medium.preview(rows, columns))


def champion_grid() -> bytes:
    """The champion's grid. Raises InputError if it is missing."""
    png = sample_pictures.read_champions("grid")
    if png is None:
        raise InputError(f"{paths.CHAMPION / 'grid.png'}: missing; expected what `python -m pipelines.promote` writes")
    return png


def class_rows(dataset: Dataset, champion: Sampler) -> list[Context]:
    """For each class of a conditional champion: real images and generated ones."""
    if not champion.conditional:
        return []
    medium = dataset.medium
    names, real = dataset.manifest.classes, rows_by_class(dataset, _COLUMNS)
    png = champion_grid()
    num_rows = min(len(names), 20)  # as many classes as components.evaluation.generation puts into a grid
    return [
        {
            "name": name,
            "real": _uri(medium, dataset.rows(rows), _COLUMNS) if len(rows) else None,
            "made": data_uri(strip),
        }
        for name, rows, strip in zip(names, real, medium.strips(png, num_rows, dataset.row_shape), strict=False)
    ]


def played(dataset: Dataset, champion: Sampler, settings: dict) -> list[Context]:
    """For each class, or once where there are none, a few real rows and generated ones as files that the page plays;
    nothing of a medium that stands still."""
    medium = dataset.medium
    if not medium.playable(dataset.rows(torch.zeros(1, dtype=torch.int64))):
        return []
    chosen = parse(champion.Settings, settings, f"{paths.PROMOTED}.settings")
    captions = generation.Captions.of(Dataset(paths.TEST_IMAGES)) if champion.texts else None
    labelled = champion.conditional and len(dataset.manifest.classes) > 1
    names = dataset.manifest.classes[:_PLAYED_CLASSES] if labelled else ("all",)
    step = champion.num_classes if labelled else 1
    made = champion.sample(generation.request(champion, chosen, 0, _PLAYED * step, 0, captions)).cpu()
    real = rows_by_class(dataset, _PLAYED) if labelled else [torch.arange(min(len(dataset), _PLAYED))]
    return [
        {
            "name": name,
            "real": _files(medium, dataset.rows(real[number])) if len(real[number]) else [],
            "made": _files(medium, made[number::step]),
        }
        for number, name in enumerate(names)
    ]


def _files(medium: Medium, rows: torch.Tensor) -> list[Context]:
    return [{"mime": file.mime, "uri": data_uri(file.data, file.mime)} for file in medium.playable(rows)]


def real_grid(dataset: Dataset) -> str:
    """Ten rows of held-out images, a class a row."""
    rows = [found for found in rows_by_class(dataset, _COLUMNS) if len(found) == _COLUMNS]
    shown = torch.cat(rows[:_COLUMNS]) if rows else torch.arange(min(len(dataset), _COLUMNS**2))
    return _uri(dataset.medium, dataset.rows(shown), _COLUMNS)


def autoencoder_pictures(name: str, dataset: Dataset) -> Context:
    """An autoencoder's reconstructions and interpolations of held-out images, and the figures of `reconstruct`."""
    autoencoder = load_autoencoder(paths.RUNS / name)
    measured = read_autoencoder(name)
    shown = _one_of_each(dataset)
    images, medium = dataset.rows(shown), dataset.medium
    return {
        "name": name,
        "reconstructions": _uri(medium, torch.cat([images, autoencoder.reconstruct(images)]), len(images)),
        "interpolations": _between_images(dataset, autoencoder, shown),
        "measured": measured,
    }


def _one_of_each(dataset: Dataset) -> torch.Tensor:
    """The numbers of the first row of each of the first classes; of the first rows where there are no classes."""
    firsts = [rows[0] for rows in rows_by_class(dataset, 1) if len(rows)]
    return torch.stack(firsts)[:_COLUMNS] if firsts else torch.arange(min(len(dataset), _COLUMNS))


def _between_images(dataset: Dataset, sampler: Sampler, shown: torch.Tensor) -> str | None:
    """Ways between pairs of these rows; None of fewer than two, or of a sampler that finds no latents of rows."""
    count = 2 * min(_PAIRS, len(shown) // 2)
    if not count:
        return None
    columns = dataset.take(shown[:count])
    rows, label = dataset.medium.rows(columns), columns.get("label")
    ends = [(rows[place::2], None if label is None else label[place::2]) for place in (0, 1)]
    found = interpolations(sampler, *ends, _STEPS)
    return None if found is None else _uri(dataset.medium, found, _STEPS)


def champion_film(champion: Sampler, settings: dict) -> Context | None:
    """Film strip of a few images as they come about: a row an image, from the first estimate to the last. None of a
    sampler that makes them in one step."""
    chosen = parse(champion.Settings, settings, f"{paths.PROMOTED}.settings")
    captions = generation.Captions.of(Dataset(paths.TEST_IMAGES)) if champion.texts else None
    request = generation.request(champion, chosen, 0, _FILMED, 0, captions)
    frames = film_strip(champion, request, _FRAMES)
    if frames is None:
        return None
    images, progress = frames
    return {
        "picture": _uri(champion.medium, images.transpose(0, 1).flatten(0, 1), images.shape[0]),
        "progress": progress,
    }


def champion_walks(champion: Sampler, settings: dict) -> list[Context]:
    """Walks between a champion's samples of two seeds, two classes, two captions; none of one that cannot blend."""
    if BLEND not in champion.accepts:
        return []
    chosen = parse(champion.Settings, settings, f"{paths.PROMOTED}.settings")
    captions = generation.Captions.of(Dataset(paths.TEST_IMAGES)) if champion.texts else None
    first = generation.request(champion, chosen, 0, _WALKS, 0, captions)
    last = {"seeds": replace(first, seeds=first.seeds + _WALKS)}
    if champion.conditional:
        next_class = (first.conditions.label + 1) % champion.num_classes
        last["classes"] = replace(first, conditions=Conditions(label=next_class))
    if (prompts := first.conditions.prompt) is not None:
        last["captions"] = replace(first, conditions=Conditions(prompt=(*prompts[1:], prompts[0])))
    return [
        {"between": name, "picture": _uri(champion.medium, walks(champion, first, to, _STEPS), _STEPS)}
        for name, to in last.items()
    ]


def champion_ways(champion: Sampler, dataset: Dataset) -> list[Context]:
    """The ways between real, held-out images of a champion that finds their latents."""
    picture = _between_images(dataset, champion, _one_of_each(dataset))
    return [] if picture is None else [{"between": IMAGES, "picture": picture}]
