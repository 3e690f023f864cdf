"""How well drawn embeddings of images fit their texts' own images: a loss says little of it (Ramesh et al. 2022)."""

from __future__ import annotations

from torch import Tensor

from components.metrics.figures import Definition, Figures, named


def _defined(name: str, label: str, explanation: str, better: str | None) -> Definition:
    return Definition(
        name=name, label=label, explanation=explanation, kind="score", better=better, group="embeddings drawn"
    )


COSINE = _defined("prior_cosine", "prior, cosine", "to the embedding of the caption's own held-out image", "higher")
SHUFFLED = _defined("prior_cosine_shuffled", "prior, cosine, shuffled", "to that of another caption's image", None)
MARGIN = _defined("prior_cosine_margin", "prior, cosine margin", "to the own image less to another's", "higher")
SPREAD = _defined("prior_spread", "prior, spread", "of drawn embeddings over that of images: below 1 they agree", None)
NAMES = tuple(one.name for one in (COSINE, SHUFFLED, MARGIN, SPREAD))


def prior_figures(drawn: Tensor, true: Tensor) -> Figures:
    """Figures of embeddings (N, D) of unit length, row i of both of one caption. Others' are those of the next rows,
    around the end, by the mean of all distances, so that neighbours of a sorted set count no more than others."""
    drawn, true = drawn.double().cpu(), true.double().cpu()
    own = (drawn * true).sum(1).mean()
    count = len(drawn)
    other = (drawn.sum(0) @ true.sum(0) - own * count) / max(1, count * (count - 1))
    spread = drawn.var(0, correction=0).sum().sqrt() / true.var(0, correction=0).sum().sqrt()
    return named(COSINE.figure(own), SHUFFLED.figure(other), MARGIN.figure(own - other), SPREAD.figure(spread))
