"""Figures from a classifier's answers to generated images: do they show the class asked for, how surely, could a
classifier learn from them. Which classes come at all: modes.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 16  # pixels: larger images are averaged down for the classifier that is trained on samples
_MOST_TRAINED = 5000  # images that it is trained on


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


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) the classifier's probability of the class that each image was asked for."""
    return logits.double().softmax(1).gather(1, labels[:, None])[:, 0]


def trained_on_samples(images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> Tensor:
    """(M,) bool: which of the real images (M, C, ...) a classifier gets right that was trained on generated images
    (N, C, ...) of labels (N,); the mean is the classification accuracy score (Ravuri and Vinyals 2019, section 3).

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
