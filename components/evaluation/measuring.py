"""A whole set of images against the real ones: every figure, and which images a person should look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from components.evaluation.protocol import EvaluateConfig
from components.evaluation.quality import CLASS_FIGURES, Figures, Reference, class_quality, quality, some
from components.evaluation.tasks import Seen
from components.metrics import classes
from components.metrics.modes import collapsed
from components.metrics.neighbours import memorised, nearest

_TESTED = 2000  # real images that a classifier trained on samples is tested on
_PAIRS = 200  # of images of one class whose perceptual distance is averaged
_SPOKEN = 500  # images that are compared with their class' name
CAPTION = "a photo of a {}"  # Radford et al. 2021, section 3.1.4
NEIGHBOUR_PICTURES, FAILURE_PICTURES = 10, 20


@dataclass(frozen=True)
class Real:
    """The real images' side. `images` (M, C, H, W) in [-1, 1] and `labels` (M,) are held-out ones that pixels are
    compared with, `train` (N, D) the features of all training images."""

    reference: Reference
    train: Tensor
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Perception:
    """Optional pretrained measures: LPIPS between two sets of images, and CLIP's fit of images and texts."""

    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    clip_score: Callable[[Tensor, list[str]], Tensor] | None = None


def figures(
    seen: Seen,
    images: Tensor,
    labels: Tensor | None,
    real: Real,
    config: EvaluateConfig,
    perception: Perception,
    prompts: tuple[str, ...] | None = None,
) -> Figures:
    """All figures of a set. `images`: (K, C, H, W) in [-1, 1], as many as were kept; `labels`: (N,) int64 classes asked
    for, or None; `prompts`: the texts asked for, if it was texts. Figures that the set, the judge or the configuration
    does not allow are None."""
    found = quality(seen.vectors.double(), real.reference, config, labels)
    found |= dict.fromkeys(CLASS_FIGURES) if seen.judged is None else class_quality(seen.judged, config, labels)
    if seen.logits is not None:  # the published score is on the extractor's own classes
        scored = class_quality(seen.logits, config, labels)
        found |= {name: scored[name] for name in ("inception_score", "inception_score_interval")}
    found["collapsed"] = collapsed(found, len(real.classes)) if real.classes else None
    found["memorised"] = copied_share(seen.vectors, real.train, config)
    found["classifier_accuracy"] = None
    if labels is not None and len(labels[: len(images)].unique()) > 1:
        right = classes.trained_on_samples(images, labels[: len(images)], real.images[:_TESTED], real.labels[:_TESTED])
        found["classifier_accuracy"] = float(right.double().mean())
    found["lpips_diversity"] = None if perception.lpips is None else diversity(perception.lpips, images, labels)
    found["clip_score"] = None
    count = min(_SPOKEN, len(images))
    texts = None if labels is None else [CAPTION.format(real.classes[label]) for label in labels[:count].tolist()]
    texts = texts if prompts is None else list(prompts[:count])
    if perception.clip_score is not None and texts is not None:
        found["clip_score"] = float(perception.clip_score(images[: len(texts)], texts).mean())
    return found


def copied_share(vectors: Tensor, train: Tensor, config: EvaluateConfig) -> float | None:
    """The share of images that are copies of a training image; None of a single training image."""
    if len(train) < 2:
        return None
    return float(memorised(nearest(some(vectors, config), train, 2)[1]).double().mean())


def diversity(lpips: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor | None) -> float | None:
    """The mean perceptual distance between images of one class, each to the next of its class."""
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels[: len(images)]
    order = torch.argsort(labels, stable=True)
    pairs = torch.stack([order[:-1], order[1:]])[:, labels[order[:-1]] == labels[order[1:]]]
    pairs = pairs[:, torch.arange(min(_PAIRS, pairs.shape[1])) * pairs.shape[1] // max(1, min(_PAIRS, pairs.shape[1]))]
    return float(lpips(images[pairs[0]], images[pairs[1]]).mean()) if pairs.shape[1] else None


def closest_to_training(seen: Seen, kept: int, real: Real) -> tuple[Tensor, Tensor]:
    """The samples that come closest to a training image, closest first, and those training images: both rows."""
    rows, distances = nearest(seen.vectors[:kept], real.train)
    closest = distances[:, 0].argsort(stable=True)[:NEIGHBOUR_PICTURES]
    return closest, rows[closest, 0]


def least_convincing(seen: Seen, kept: int, labels: Tensor) -> Tensor:
    """Rows of the samples that the judge believes least to show their class, worst first."""
    return classes.confidence(seen.judged[:kept], labels[:kept]).argsort(stable=True)[:FAILURE_PICTURES]
