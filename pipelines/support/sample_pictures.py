"""Pictures of a measured candidate: samples/<sampler>/<number><suffix>.png, and champion/<name>.png of who reigns."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from components.data.media import Medium
from components.errors import InputError
from components.evaluation.generation import GRID_COLUMNS
from components.evaluation.selection import FAILURE_PICTURES, NEIGHBOUR_PICTURES
from pipelines.support import paths
from pipelines.support.measurement import Measured

NAMES = ("grid", "nearest", "failures")
_GRID_SIDE = 48  # pixels: an image is shown at least about this large in a grid


def draw(measured: Measured, medium: Medium) -> dict[str, bytes]:
    """PNG files by name: a grid, a class a row; the images nearest to training images, above those; the images that the
    judge believes least, where it judges."""
    scale = medium.preview_scale(measured.grid.shape[1:], _GRID_SIDE)

    def png(rows: Tensor, columns: int) -> bytes:
        return medium.preview(rows, columns, scale)

    found = {"grid": png(measured.grid, GRID_COLUMNS)}
    found["nearest"] = png(measured.nearest, min(NEIGHBOUR_PICTURES, len(measured.nearest) // 2))
    if measured.failures is not None:
        found["failures"] = png(measured.failures, FAILURE_PICTURES // 2)
    return found


def path_in(folder: Path, number: int, name: str) -> Path:
    """The file of one picture of a candidate in its sampler's folder."""
    return folder / f"{number}-{name}.png"


def read_all(sampler: str, number: int) -> dict[str, bytes]:
    """Those of a candidate's pictures that there are, by name."""
    found = {name: path_in(paths.SAMPLES / sampler, number, name) for name in NAMES}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


def read_grid(sampler: str, number: int) -> bytes:
    """A candidate's grid. Raises InputError if it is missing."""
    path = path_in(paths.SAMPLES / sampler, number, "grid")
    if not path.is_file():
        raise InputError(f"{path}: missing; expected what `python -m pipelines.evaluate samplers.{sampler}` writes")
    return path.read_bytes()


def read_champions(name: str) -> bytes | None:
    """One of the champion's pictures, if it has it."""
    path = paths.CHAMPION / f"{name}.png"
    return path.read_bytes() if path.is_file() else None
