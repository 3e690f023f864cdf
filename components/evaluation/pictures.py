"""Pictures for people: real images by class, the ways between images and between samples, how an image comes about."""

from __future__ import annotations

import base64
from dataclasses import replace

import torch
from torch import Tensor

from components.data.dataset import Dataset
from components.families.base import Sampler, Told
from components.sampling.requests import Blend, Request
from components.sampling.trajectories import Call, drive


def rows_by_class(dataset: Dataset, columns: int) -> list[Tensor]:
    """For each class the numbers of its first `columns` rows."""
    if not dataset.manifest.classes:
        return []
    labels = dataset.labels()
    return [torch.nonzero(labels == number).flatten()[:columns] for number in range(len(dataset.manifest.classes))]


@torch.inference_mode()
def interpolations(sampler: Sampler, starts: Told, ends: Told, steps: int) -> Tensor | None:
    """Ways from N real rows to N others, (N * steps, C, ...), way after way; the first and last of each are what comes
    back of the rows. None of a sampler that finds no latents of rows."""
    sampler.nets.eval()
    many = [
        (rows.repeat_interleave(steps, 0), None if label is None else label.repeat_interleave(steps))
        for rows, label in (starts, ends)
    ]
    return sampler.between(*many, torch.linspace(0, 1, steps).repeat(len(starts[0])))


@torch.inference_mode()
def film_strip(sampler: Sampler, request: Request, frames: int) -> tuple[Tensor, list[float]] | None:
    """What the images of a request look like on the way: (F, N, C, ...) in [-1, 1], the last as they end, and how far
    each lies along the way, in [0, 1]. None where the sampler shows nothing on the way."""
    sampler.nets.eval()
    calls: list[Call] = []
    last = drive(sampler.trajectory(request), sampler.calls, on_call=calls.append)
    shown = [call.preview for call in calls if call.preview is not None]
    if not shown:
        return None
    count = min(frames - 1, len(shown))
    chosen = [shown[place * len(shown) // count] for place in range(count)]
    images = [drive(preview.start(), sampler.calls) for preview in chosen]
    return torch.stack([*images, last]), [*(preview.progress for preview in chosen), 1.0]


def walks(sampler: Sampler, first: Request, last: Request, steps: int) -> Tensor:
    """The ways from N samples to N others, (N * steps, C, ...), way after way. What differs between the requests
    changes along the ways: seeds along arcs, classes and texts along lines."""
    rows = torch.arange(len(first.seeds)).repeat_interleave(steps).tolist()
    share = torch.linspace(0, 1, steps).repeat(len(first.seeds))
    ends = last.take(rows)
    blend = Blend(ends.seeds, share, label=ends.conditions.label, prompt=ends.conditions.prompt)
    ways = replace(first.take(rows), blend=blend)
    return sampler.sample(ways)


def data_uri(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
