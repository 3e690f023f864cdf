"""Figures from a classifier's answers to generated images: do they show the class asked for, how surely, could a
classifier learn from them. Which classes come at all: modes.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from components.metrics import intervals
from components.metrics.figures import Definition, Figure

_SIDE = 16  # pixels: larger images are averaged down for the classifier that is trained on samples
_MOST_TRAINED = 5000  # images that it is trained on
INCEPTION_SCORE = Definition(
    name="inception_score",
    label="inception score",
    column="IS",
    group="labels",
    explanation="how surely a classifier sorts each image and how evenly all of them, on the extractor's own classes",
    kind="score",
    better="higher",
)
LABEL_AGREEMENT = Definition(
    name="label_agreement",
    label="label agreement",
    column="Label accuracy",
    group="labels",
    explanation="the share of images that the judge gives the class asked for",
    kind="share",
    better="higher",
    labelled=True,
)
JUDGE_ACCURACY = Definition(
    name="judge_accuracy",
    label="judge's accuracy",
    explanation="the share of held-out real images that the judge gives their class",
    kind="share",
    better="higher",
)
CLASSIFIER_ACCURACY = Definition(
    name="classifier_accuracy",
    label="teaches a classifier",
    column="CAS",
    group="labels",
    explanation="what a small classifier that is trained on the samples gets right of held-out images",
    kind="share",
    better="higher",
    labelled=True,
)


def inception_score(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """exp(E KL(p(class | image) || p(class))) (Salimans et al. 2016, section 4) of logits (N, num_classes), over the
    whole set rather than the mean over splits. With weights (R, N), multiplicities of resampled sets: (R,)."""
    log_p = F.log_softmax(logits.double(), dim=1)
    p = log_p.exp()
    weights = torch.ones(1, len(p), dtype=torch.float64) if weights is None else weights.double()
    weights = weights / weights.sum(1, keepdim=True)
    marginal = weights @ p
    # the mean divergence is the marginal's entropy less the mean entropy; xlogy is 0 where a class never comes
    conditional = weights @ (p * log_p).sum(1)
    return (conditional - torch.xlogy(marginal, marginal).sum(1)).exp().squeeze()


def inception_figure(logits: Tensor, weights: Tensor) -> Figure:
    """The score of logits (N, num_classes) with its bootstrap interval. `weights`: (R, N) multiplicities."""
    score = float(inception_score(logits))
    return INCEPTION_SCORE.figure(score, intervals.around(score, inception_score(logits, weights), 1.0))


def label_agreement(logits: Tensor, labels: Tensor) -> float:
    """The share of images that the classifier gives the label asked for. `logits`: (N, num_classes), `labels`: (N,)."""
    return float((logits.argmax(1) == labels.to(logits.device)).double().mean())


def agreement_figure(logits: Tensor, labels: Tensor | None, weights: Tensor) -> Figure | None:
    """label_agreement, with its interval where `weights` (R, N) has resamples; None if nobody asked for labels."""
    if labels is None:
        return None
    share = label_agreement(logits, labels)
    return LABEL_AGREEMENT.figure(share, intervals.of_share(share, len(labels)) if len(weights) else None)


def classifier_figure(images: Tensor, labels: Tensor | None, real: Tensor, real_labels: Tensor) -> Figure | None:
    """classifier_accuracy as `trained_on_samples` gives it; None of labels that are no two classes."""
    if labels is None or len(labels.unique()) < 2:
        return None
    return CLASSIFIER_ACCURACY.figure(trained_on_samples(images, labels, real, real_labels).double().mean())


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """The classifier's probability (N,) of the class that each image was asked for."""
    return logits.double().softmax(1).gather(1, labels[:, None])[:, 0]


def trained_on_samples(images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> Tensor:
    """Hits (M,) bool on real images (M, C, H, W) of a classifier that was trained on generated images (N, C, H, W) of
    labels (N,); their mean is the classification accuracy score (Ravuri and Vinyals 2019, section 3).

    The classifier is a support vector machine on standardised pixels, averaged down to a side of 16: it takes a second
    where a deep net takes minutes, so figures compare with one another, not with the paper's."""
    from sklearn.pipeline import make_pipeline  # seconds that only this figure pays
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    kept = slice(_MOST_TRAINED)
    machine = make_pipeline(StandardScaler(), SVC())
    machine.fit(_pixels(images[kept]).numpy(), labels[kept].numpy())
    return torch.from_numpy(machine.predict(_pixels(real).numpy())) == real_labels


def _pixels(images: Tensor) -> Tensor:
    sides = tuple(min(_SIDE, side) for side in images.shape[2:])
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(sides)]
    return pool(images, sides).flatten(1)
