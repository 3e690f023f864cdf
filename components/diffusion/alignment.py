"""Alignment of a denoiser's tokens to what another net sees in the clean image (Yu et al. 2025, REPA): in training the
tokens after some block, through a small projector, shall point where the features of a frozen judge point."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.data.dataset import Batch
from components.data.info import FLIPPED, MAP, TEACHER, DataInfo, RunInfo
from components.errors import ConfigError
from components.nets.classifier import Classifier
from components.shapes import per_row, shape_text


class AlignConfig(Strict):
    """`weight`: of one minus the cosine, against the denoising loss."""

    layer: int = Field(2, ge=1)  # blocks that the tokens have gone through
    weight: float = Field(0.5, gt=0)
    steps: int | None = Field(None, ge=1)  # of training; after them nothing is aligned


class Projector(nn.Sequential):
    """Tokens (B, N, width) -> (B, N, D), three layers as published."""

    def __init__(self, width: int, features: int):
        hidden = 2 * width
        super().__init__(
            *(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, features))
        )


def projector(
    width: int, counts: Sequence[int], data: DataInfo, classifier_of: Callable[[RunInfo], Classifier]
) -> Projector:
    """For the features, on `counts` tokens a side, of the teacher that the data set's inputs name; `classifier_of`
    builds a judge's net. Raises ConfigError without a teacher, of one that sees other images, and of maps beside the
    rows that are coarser than the tokens."""
    run = data.inputs.get(TEACHER)
    if run is None:
        raise ConfigError(
            f"align: expected the run of a judge in inputs, NAME/{TEACHER}: runs/..., of a family that takes one; "
            "found none"
        )
    if (run.data.medium, run.data.shape) != (data.decoded.medium, data.decoded.shape):
        raise ConfigError(
            f"align: expected a {TEACHER} of {data.decoded.medium} rows {data.decoded.shape}, found one of "
            f"{run.data.medium} rows {run.data.shape}"
        )
    if len(data.shape) != 3 or len(data.decoded.shape) != 3:
        raise ConfigError(f"align: a {TEACHER} sees planes; expected images, found {data.decoded.medium} rows")
    with torch.device("meta"):
        found = maps(classifier_of(run), torch.zeros(1, *data.decoded.shape))
    for stored, own in zip(data.maps, found, strict=bool(data.maps)):
        if any(have < min(want, count) for have, want, count in zip(stored[1:], own.shape[2:], counts, strict=True)):
            raise ConfigError(
                f"align: the {TEACHER}'s maps lie beside the latents at {shape_text(stored[1:])}, coarser than "
                f"{shape_text(tuple(counts))} tokens; expected a smaller finest_patch in the data set's block of encode"
            )
    return Projector(width, sum(one.shape[1] for one in found))


def maps(net: Classifier, rows: Tensor, most: Sequence[int] | None = None) -> list[Tensor]:
    """A judge's maps (B, D, h, w) of rows (B, C, H, W) in [-1, 1] but the first, which is close to the pixels; sides
    longer than `most` are brought down to it."""
    found = [one.float() for one in net.maps(net.seen(rows))[1:]]
    if most is None:
        return found
    return [_resized(one, [min(pair) for pair in zip(one.shape[2:], most, strict=True)]) for one in found]


def on_grid(found: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Maps (B, D, h, w) as features of a grid of tokens: (B, N, the sum of D) in row-major order. Each map has unit
    length at every place, so that they count alike."""
    grids = [F.normalize(_resized(one.float(), counts), dim=1) for one in found]
    return torch.cat(grids, dim=1).flatten(2).transpose(1, 2)


def _resized(one: Tensor, sides: Sequence[int]) -> Tensor:
    return F.interpolate(one, tuple(sides), mode="bilinear", antialias=True)


def columns(net: Classifier, rows: Tensor, most: Sequence[int], ending: str = "") -> dict[str, Tensor]:
    """What a data set of latents keeps of rows (B, C, H, W): a judge's `maps`, float16, by column."""
    found = maps(net, rows, most)
    return {f"{MAP}{number}{ending}": one.half() for number, one in enumerate(found)}


def stored(batch: Batch, flips: bool) -> list[Tensor]:
    """The maps that lie beside a batch's latents, those of the mirrored images for the rows that are seen mirrored;
    none, where none lie there."""
    found, number = [], 0
    while (one := batch.columns.get(f"{MAP}{number}")) is not None:
        mirrored = batch.columns[f"{MAP}{number}{FLIPPED}"] if flips else one
        found.append(torch.where(per_row(batch.mirrored, one), mirrored, one) if flips else one)
        number += 1
    return found


def misalignment(projected: Tensor, wanted: Tensor) -> Tensor:
    """One minus the cosine of each token with its feature, the mean; in float32, since the squares of half precision
    leave its range."""
    return 1 - F.cosine_similarity(projected.float(), wanted.float(), dim=-1).mean()
