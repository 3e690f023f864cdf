"""What a model knows of the data that it is trained on, and of runs that it stands on: enough to build it again."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from components.config import Strict
from components.data.dataset import Manifest
from components.data.media import medium

TEACHER = "teacher"  # the role of the run whose features a denoiser's tokens are aligned to
MAP = "teacher_map_"  # begins the names of columns of what a teacher sees of the images, beside latents
FLIPPED = "_flipped"  # ends those of columns of the mirrored images


class DataInfo(Strict):
    """What a family must know of its data: the shape of a row, the classes, facts about the whole set, and, for latents
    and tokens, the autoencoder that they come from and the text encoder that the captions went through, if one did.
    `medium`, `rate`: of the rows or, for latents, of what they decode to."""

    shape: tuple[int, ...]  # channels first
    medium: str = "image"
    rate: float = 0.0
    classes: tuple[str, ...] = ()
    speakers: tuple[str, ...] = ()  # of rows that have a column of that name, beside their class
    caption_length: int = 0  # bytes a row; 0 for a set without captions
    flips: bool = False  # whether it holds latents of the mirrored images too
    crops: tuple[tuple[int, int], ...] = ()  # sizes that crops of it come in, in its own units; none without crops
    maps: tuple[tuple[int, ...], ...] = ()  # shapes of what a teacher sees of the images, beside latents
    statistics: dict[str, tuple[float, ...]] = {}
    autoencoder: AutoencoderInfo | None = None
    text: dict | None = None  # EncoderLayout of nets/text_encoders.py
    inputs: dict[str, RunInfo] = {}  # trained runs that the model keeps a part of, by role

    @property
    def outline(self) -> DataOutline:
        return DataOutline(self.autoencoder is not None, tuple(self.inputs))

    @property
    def decoded(self) -> DataInfo:
        """Of the rows that these decode to: themselves, without an autoencoder."""
        return self if self.autoencoder is None else self.autoencoder.data


class DataOutline(NamedTuple):
    """What params.yaml alone tells of a model's data, before there are any: whether they are latents, and the roles of
    the runs that the model keeps a part of."""

    latents: bool = False
    inputs: Collection[str] = ()


class AutoencoderInfo(Strict):
    """How to build the autoencoder of a latent data set."""

    family: str = "vae"
    config: dict
    data: DataInfo


class RunInfo(Strict):
    """How to build the model of an input that a run keeps."""

    family: str
    config: dict
    data: DataInfo


def data_info(manifest: Manifest, autoencoder: AutoencoderInfo | None = None, text: dict | None = None) -> DataInfo:
    """Reads off a manifest what its families need. The row is the medium's column, or `mean` for latents."""
    name = medium(manifest.medium).column
    column = manifest.columns[name if name in manifest.columns else "mean"]
    maps = sorted(name for name in manifest.columns if name.startswith(MAP) and not name.endswith(FLIPPED))
    return DataInfo(
        shape=column.shape,
        medium=manifest.medium,
        rate=manifest.rate,
        classes=manifest.classes,
        speakers=manifest.speakers,
        caption_length=manifest.columns["caption"].shape[0] if "caption" in manifest.columns else 0,
        flips=f"mean{FLIPPED}" in manifest.columns,
        crops=tuple(bucket.size for bucket in manifest.buckets),
        maps=tuple(manifest.columns[one].shape for one in maps),
        statistics=manifest.statistics,
        autoencoder=autoencoder,
        text=text,
    )
