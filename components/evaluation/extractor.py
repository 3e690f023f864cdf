"""Feature extractors: what turns images into the vectors that distances between sets of images are measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from components.artifacts.run_folder import Run
from components.errors import SamplerError
from components.families.base import Judge
from components.files import sha256, sha256_folder
from components.metrics.figures import Figures

SetFigures = Callable[[Tensor, Tensor | None], Figures]


def no_figures(rows: Tensor, labels: Tensor | None) -> Figures:
    return {}


class Embedding(NamedTuple):
    """An extractor's answer to N images. `vectors`: (N, D) float64. `logits`: (N, num_classes) float64, or None from an
    extractor that knows no classes."""

    vectors: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Extractor:
    """`embed` takes rows (N, C, ...) in [-1, 1], of `shape` or, where that is None, of any; `weights_hash` is the
    sha256 of its weights; `resize` says how images come to the size that the network takes."""

    name: str
    weights_hash: str
    shape: tuple[int, ...] | None
    embed: Callable[[Tensor], Embedding]
    resize: str = "none"
    libraries: tuple[str, ...] = ()  # beyond torch, whose versions figures depend on
    medium: str = ""  # of the rows that it takes; empty where `shape` says all
    figures: SetFigures = no_figures  # that a judge adds, of rows and the classes asked for


def judge_extractor(run: Run, name: str) -> Extractor:
    """The trained classifier of a run folder, on the device it was loaded to. Raises SamplerError if it is no judge."""
    if not isinstance(run.family, Judge):
        raise SamplerError(f"{run.folder}: expected a trained judge, found family {run.config.family!r}")
    net = run.family.nets["classifier"]
    device = next(net.parameters()).device

    @torch.inference_mode()
    def embed(images: Tensor) -> Embedding:
        vectors = net.features(images.to(device))
        # float64 on the CPU: the covariances of float32 features lose the digits that small distances live in
        logits = net.logits(vectors).double().cpu() if run.family.tells_classes else None
        return Embedding(vectors.double().cpu(), logits)

    weights_hash = sha256(run.folder / "classifier.safetensors")
    return Extractor(name, weights_hash, run.config.data.shape, embed, figures=run.family.figures)


def clip_extractor(run: Run, name: str) -> Extractor:
    """The image embeddings of a CLIP trained on the data's captions, on the device it was loaded to. Raises
    SamplerError if the run is none."""
    net = _clip_of(run)

    @torch.inference_mode()
    def embed(images: Tensor) -> Embedding:
        return Embedding(net.images(images.to(net.log_scale.device)).double().cpu(), None)

    return Extractor(name, weights_hash(run), run.config.data.shape, embed)


def clip_scorer(run: Run) -> Callable[[Tensor, list[str]], Tensor]:
    """How images fit texts by a CLIP trained on the data's captions: its `score`. Raises SamplerError if the run is
    none."""
    _clip_of(run)
    return run.family.score


def weights_hash(run: Run) -> str:
    """Of all weights of a run, those of its best checkpoint among them."""
    return sha256_folder(run.folder, "*.safetensors")


def _clip_of(run: Run) -> torch.nn.Module:
    if run.config.family != "clip":
        raise SamplerError(f"{run.folder}: expected a trained clip, found family {run.config.family!r}")
    return run.family.nets["clip"]


def extract(extractor: Extractor, batches: Iterable[Tensor]) -> Embedding:
    """The embedding of all images of an iterable of batches, in order."""
    return joined([extractor.embed(images) for images in batches])


def joined(parts: list[Embedding]) -> Embedding:
    """All parts as one, in order."""
    logits = None if parts[0].logits is None else torch.cat([part.logits for part in parts])
    return Embedding(torch.cat([part.vectors for part in parts]), logits)
