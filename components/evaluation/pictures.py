"""Pictures for people: real images by class, the ways between images and between samples, how an image comes about."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from components.data.dataset import Dataset
from components.data.images import encode_png, from_uint8, grid
from components.families.base import Sampler
from components.families.vae import VAE
from components.sampling.requests import Blend, Request
from components.sampling.trajectories import drive


def rows_by_class(dataset: Dataset, columns: int) -> list[Tensor]:
    """For each class the numbers of its first `columns` rows."""
    if not dataset.manifest.classes:
        return []
    labels = torch.cat([chunk["label"] for chunk in dataset.chunks(4096)])
    return [torch.nonzero(labels == number).flatten()[:columns] for number in range(len(dataset.manifest.classes))]


def read(dataset: Dataset, rows: Tensor) -> Tensor:
    """Images (N, C, H, W) in [-1, 1]."""
    return from_uint8(dataset.take(rows)["image"])


@torch.inference_mode()
def interpolations(vae: VAE, starts: Tensor, ends: Tensor, steps: int) -> Tensor:
    """Decoded points of the straight lines between the latents of starts (N, C, H, W) and ends: (N * steps, C, H, W),
    line after line; the first and last of each are plain reconstructions."""
    net = vae.nets["autoencoder"]
    first, last = net.encode(starts)[0], net.encode(ends)[0]
    places = torch.linspace(0, 1, steps)[None, :, None, None, None]
    return vae.bounded(net.decode(torch.lerp(first[:, None], last[:, None], places).flatten(0, 1)))


@torch.inference_mode()
def film_strip(sampler: Sampler, request: Request, frames: int) -> tuple[Tensor, list[float]] | None:
    """What the images of a request look like on the way: (F, N, C, H, W) in [-1, 1], the last as they end, and how far
    each lies along the way, in [0, 1]. None where the sampler shows nothing on the way."""
    sampler.nets.eval()
    trajectory, shown = sampler.trajectory(request), []
    try:
        call = next(trajectory)
        while True:
            if call.preview is not None:
                shown.append(call.preview)
            call = trajectory.send(sampler.calls[call.net](**call.inputs))
    except StopIteration as stop:
        last = stop.value
    if not shown:
        return None
    count = min(frames - 1, len(shown))
    chosen = [shown[place * len(shown) // count] for place in range(count)]
    images = [drive(preview.start(), sampler.calls) for preview in chosen]
    return torch.stack([*images, last]), [*(preview.progress for preview in chosen), 1.0]


def walks(sampler: Sampler, first: Request, last: Request, steps: int) -> Tensor:
    """The ways from N samples to N others, (N * steps, C, H, W), way after way. What differs between the requests
    changes along the ways: seeds along arcs, classes and texts along lines."""
    rows = torch.arange(len(first.seeds)).repeat_interleave(steps).tolist()
    share = torch.linspace(0, 1, steps).repeat(len(first.seeds))
    ends = last.take(rows)
    blend = Blend(ends.seeds, share, ends.conditions.label, ends.conditions.prompt)
    ways = replace(first.take(rows), blend=blend)
    return sampler.sample(ways)


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def grid_uri(images: Tensor, columns: int, scale: int = 1) -> str:
    """Images (N, C, H, W) in rows of `columns`, as a data URI."""
    return data_uri(encode_png(grid(images, columns), scale))


def strips(png: bytes, rows: int, side: int) -> list[bytes]:
    """A grid's PNG, as `images.grid` lays out `rows` rows of images `side` pixels high, cut into one PNG a row."""
    sheet = Image.open(io.BytesIO(png))
    scale = sheet.height // (rows * (side + 1) - 1)
    found = []
    for row in range(rows):
        top = row * (side + 1) * scale
        buffer = io.BytesIO()
        sheet.crop((0, top, sheet.width, top + side * scale)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found
