"""Retrieval: how often the nearest texts of an image, and the nearest images of a text, are its own."""

from __future__ import annotations

import torch
from torch import Tensor

from components.metrics.figures import Definition, Figures, named

RANKS = (1, 5)


def _defined(name: str, label: str, explanation: str, better: str | None = "higher", summary: bool = False):
    return Definition(
        name=name, label=label, explanation=explanation, kind="share", better=better, group="retrieval", summary=summary
    )


TEXTS, IMAGES, BOTH = (
    {
        rank: _defined(
            f"{name}_at_{rank}", f"{label} R@{rank}", f"{told} is among the {rank} nearest", summary=rank == 1
        )
        for rank in RANKS
    }
    for name, label, told in (
        ("image_to_text", "image to text", "how often a text of an image"),
        ("text_to_image", "text to image", "how often an image of a text"),
        ("retrieval", "retrieval", "the mean of both ways: how often what belongs to a held-out image or text"),
    )
)
CHANCE = _defined("retrieval_chance", "retrieval by chance", "R@1 of embeddings that know nothing", better=None)
TRAINING = _defined("retrieval_at_1_train", "retrieval R@1, training rows", "on as many rows that were trained on")
NAMES = (*(one.name for kind in (TEXTS, IMAGES, BOTH) for one in kind.values()), CHANCE.name)


def retrieval_figures(images: Tensor, texts: Tensor, same: Tensor) -> Figures:
    """Recall at each of RANKS, both ways and their mean. `images`, `texts`: (N, D) of unit length, row i of both a
    pair; `same` (N, N) boolean: which rows' texts say the same, so that each is right for the other."""
    scores = images.double() @ texts.double().T
    first = same.double().argmax(1)  # of the rows that say the same
    groups, group = first.unique(return_inverse=True)
    # texts that say the same are one text, else five copies of it would be the five nearest
    of_texts = torch.full((len(scores), len(groups)), -torch.inf, dtype=torch.float64)
    of_texts.scatter_reduce_(1, group.expand_as(scores), scores, "amax")
    to_text = _ranks(of_texts, group[:, None] == torch.arange(len(groups)))
    to_image = _ranks(scores.T, same)
    found = []
    for rank in RANKS:
        hits = [(ranks < rank).double().mean() for ranks in (to_text, to_image)]
        found += [TEXTS[rank].figure(hits[0]), IMAGES[rank].figure(hits[1]), BOTH[rank].figure(sum(hits) / 2)]
    chance = (1 / len(groups) + same.double().mean()) / 2
    return named(*found, CHANCE.figure(chance))


def _ranks(scores: Tensor, right: Tensor) -> Tensor:
    """(N,) how many wrong answers score as high as the best right one or higher, (N, M) each."""
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~right).sum(1)
