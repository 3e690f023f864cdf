"""All figures of a set of generated images against the real ones, under one extractor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from components.data.dataset import spread_over
from components.errors import DataError
from components.evaluation.extractor import SetFigures, no_figures
from components.evaluation.features import Features
from components.evaluation.protocol import EvaluateConfig
from components.metrics.classes import agreement_figure, classifier_figure, inception_figure
from components.metrics.figures import Definition, Figure, Figures, named
from components.metrics.frechet import Moments, balanced_figure, frechet_figures
from components.metrics.intervals import Resampling
from components.metrics.kernel import KernelReference, kernel_figures
from components.metrics.modes import balancing_weights, class_shares, imbalance_figure, mode_coverage
from components.metrics.neighbours import Inside, Manifold, memorised_figure, neighbour_figures
from components.metrics.principal import PixelReference, pixel_figure

_TESTED = 2000  # real images that a classifier trained on samples is tested on
_PAIRS = 200  # of images of one class whose perceptual distance is averaged
_SPOKEN = 500  # images that are compared with their class' name
CAPTION = "a photo of a {}"  # Radford et al. 2021, section 3.1.4
LPIPS_DIVERSITY = Definition(
    name="lpips_diversity",
    label="LPIPS diversity",
    column="LPIPS",
    group="fidelity and diversity",
    explanation="the mean perceptual distance between generated images of one class",
    kind="distance",
    better="higher",
)
CLIP_SCORE = Definition(
    name="clip_score",
    label="CLIP score",
    group="labels",
    explanation="how well images fit the texts asked for, or their classes' names, by CLIP",
    kind="score",
    better="higher",
)


@dataclass(frozen=True)
class Reference:
    """The real images' side of every figure on features, computed once. `features` (N, D) are all of them, `manifold`
    and `kernel` of at most evaluate.neighbour_images. `labels` (N,) int64: their classes, None where they have none.
    `judged_shares` (num_classes,): how often the judge finds each class among them, None without a judge."""

    moments: Moments
    manifold: Manifold
    kernel: KernelReference
    features: Tensor
    labels: Tensor | None = None
    judged_shares: Tensor | None = None

    @staticmethod
    def of(
        features: Tensor,
        config: EvaluateConfig,
        moments: Moments | None = None,
        labels: Tensor | None = None,
        judged: Tensor | None = None,
    ) -> Reference:
        """The reference of features (N, D), whose moments may be known. `labels`: (N,) classes, `judged`: (N,
        num_classes) the judge's logits. Raises DataError of too few images."""
        _refuse_too_few(features, config, "reference split: ")
        manifold = Manifold.of(some(features, config).double(), config.neighbours)
        shares = None if judged is None else class_shares(judged.argmax(1), judged.shape[1])
        kernel = KernelReference(some(features, config).double(), None if labels is None else some(labels, config))
        return Reference(moments or Moments.of(features), manifold, kernel, features, labels, shares)


@dataclass(frozen=True)
class Real:
    """The real images' side. `images` (M, C, H, W) in [-1, 1] and `labels` (M,) are held-out ones that pixels are
    compared with, `train` (N, D) the features of all training images. `medium_figures`: what their medium adds, of
    generated rows and these; `seen`: its rows as pictures. `pixels`: what the second opinion compares with.
    `judge_figures`: what the judge adds, of generated rows and the classes asked for."""

    reference: Reference
    train: Tensor
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    medium_figures: Callable[[Tensor, Tensor], Figures]
    seen: Callable[[Tensor], Tensor]
    pixels: PixelReference | None = None
    caption: str = CAPTION  # what is said of an image of a class
    judge_figures: SetFigures = no_figures


@dataclass(frozen=True)
class Perception:
    """Optional pretrained measures: LPIPS between two sets of images, and CLIP's fit of images and texts."""

    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    clip_score: Callable[[Tensor, list[str]], Tensor] | None = None


def set_figures(
    features: Features,
    images: Tensor,
    labels: Tensor | None,
    real: Real,
    config: EvaluateConfig,
    perception: Perception,
    prompts: tuple[str, ...] | None = None,
) -> Figures:
    """All figures of a set; a function of its arguments. `images`: (K, C, H, W) in [-1, 1], as many as were kept;
    `labels`: (N,) int64 classes asked for, or None; `prompts`: the texts asked for, if it was texts. Figures that the
    set, the judge or the configuration does not allow are absent."""
    kept_labels = None if labels is None else labels[: len(images)]
    tested = spread_over(len(real.images), min(_TESTED, len(real.images)))
    known = real.labels[tested] if len(real.labels) else real.labels
    found = distribution_figures(features, labels, real, config)
    found |= real.medium_figures(images, real.images) | real.judge_figures(images, kept_labels)
    return found | named(
        memorised_figure(some(features.vectors, config), real.train),
        classifier_figure(real.seen(images), kept_labels, real.seen(real.images[tested]), known),
        diversity_figure(perception.lpips, images, kept_labels),
        clip_figure(perception.clip_score, images, kept_labels, real, prompts),
    )


def distribution_figures(features: Features, labels: Tensor | None, real: Real, config: EvaluateConfig) -> Figures:
    """All figures that the features of a set give; `labels`: (N,) int64 classes asked for, or None."""
    found = feature_figures(features.vectors.double(), real.reference, config, labels, features.judged)
    if features.pixels is not None and real.pixels is not None:
        found |= named(pixel_figure(features.pixels, real.pixels, resampling(len(features.pixels), config, labels)))
    return found | label_figures(features.judged, features.logits, config, labels, real.reference.judged_shares)


def feature_figures(
    features: Tensor,
    reference: Reference,
    config: EvaluateConfig,
    labels: Tensor | None = None,
    judged: Tensor | None = None,
) -> Figures:
    """Fréchet and kernel distances, precision, recall, density and coverage of features (N, D), with 95% intervals.
    `labels`: (N,) int64 classes that the images were asked for, None if nobody asked; `judged`: (N, num_classes) the
    judge's logits."""
    _refuse_too_few(features, config)
    near, near_labels = some(features, config), None if labels is None else some(labels, config)
    inside = Inside.of(near, reference.manifold, config.neighbours)
    whole = resampling(len(features), config, labels)
    found = frechet_figures(features, reference.moments, whole)
    if judged is not None and reference.judged_shares is not None:
        weights = balancing_weights(judged.argmax(1), reference.judged_shares)
        found |= named(balanced_figure(features, reference.moments, weights, whole))
    return {
        **found,
        **kernel_figures(near, reference.kernel, near_labels),
        **neighbour_figures(inside, resampling(len(near), config, near_labels)),
    }


def label_figures(
    judged: Tensor | None,
    logits: Tensor | None,
    config: EvaluateConfig,
    labels: Tensor | None = None,
    real_shares: Tensor | None = None,
) -> Figures:
    """Figures from classifiers' logits (N, num_classes): inception_score on `logits`, the extractor's own classes,
    where it knows some, and on the judge's otherwise; the rest on `judged`, which is None without a judge.
    `real_shares`: (num_classes,) how often the judge finds each class among real images."""
    scored = judged if logits is None else logits
    if scored is None:
        return {}
    weights = resampling(len(scored), config, labels).weights
    found = named(inception_figure(scored, weights))
    if judged is not None:
        classes = judged.argmax(1)
        found |= mode_coverage(classes, judged.shape[1]) | named(agreement_figure(judged, labels, weights))
        found |= named(None if real_shares is None else imbalance_figure(classes, real_shares))
    return found


def diversity_figure(
    lpips: Callable[[Tensor, Tensor], Tensor] | None, images: Tensor, labels: Tensor | None
) -> Figure | None:
    """The mean perceptual distance between images of one class, each to the next of its class; None where nothing
    measures it or no class has two images."""
    if lpips is None:
        return None
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    order = torch.argsort(labels, stable=True)
    pairs = torch.stack([order[:-1], order[1:]])[:, labels[order[:-1]] == labels[order[1:]]]
    pairs = pairs[:, spread_over(pairs.shape[1], min(_PAIRS, pairs.shape[1]))]
    return LPIPS_DIVERSITY.figure(lpips(images[pairs[0]], images[pairs[1]]).mean()) if pairs.shape[1] else None


def clip_figure(
    clip_score: Callable[[Tensor, list[str]], Tensor] | None,
    images: Tensor,
    labels: Tensor | None,
    real: Real,
    prompts: tuple[str, ...] | None,
) -> Figure | None:
    """The mean fit of images and the texts or classes asked for; None where nothing measures it or nobody asked."""
    count = min(_SPOKEN, len(images))
    texts = None if labels is None else [real.caption.format(real.classes[label]) for label in labels[:count].tolist()]
    texts = texts if prompts is None else list(prompts[:count])
    if clip_score is None or texts is None:
        return None
    return CLIP_SCORE.figure(clip_score(images[: len(texts)], texts).mean())


def some(values: Tensor, config: EvaluateConfig) -> Tensor:
    """The rows that figures of quadratic cost are computed on: all, or evaluate.neighbour_images by chance, since of
    classes that are asked for in turn a regular stride meets few."""
    if len(values) <= config.neighbour_images:
        return values
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(config.seed))
    return values[order[: config.neighbour_images].sort().values]


def _refuse_too_few(features: Tensor, config: EvaluateConfig, what: str = "") -> None:
    if len(features) <= config.neighbours:
        raise DataError(f"{what}{len(features)} images; expected more than evaluate.neighbours ({config.neighbours})")


def resampling(count: int, config: EvaluateConfig, labels: Tensor | None) -> Resampling:
    """How a set of `count` images is taken apart for its intervals, with as many of each class asked for."""
    return Resampling.of(count, config.resamples, config.seed, labels)


def without_intervals(config: EvaluateConfig) -> EvaluateConfig:
    """The same protocol for a set of which many are drawn, whose spread is told by the draws."""
    return config.model_copy(update={"resamples": 0})
