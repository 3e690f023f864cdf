"""The discriminator's frame: a trunk down to 4x4, then what all variants may put behind it: statistics of the
mini-batch, a score, a class. A variant brings the trunk."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.nets.gan.layers import MinibatchStd, PairwiseDistances

CriticInputs = dict[str, Tensor]  # "images" (B, C, H, W) and their conditioning: "label" (B,) int64, "codes" (B, D)
Condition = Literal["none", "concatenate", "project"]


class MinibatchDiscrimination(Strict):
    """Salimans et al. 2016, section 3.2: each row learns how near the others are, by `kernels` measures."""

    kernels: int = Field(16, ge=1)
    dim: int = Field(8, ge=1)  # in which each measures


class CriticOutput(NamedTuple):
    """Of each group of inputs: scores (B,) or (B, S), and features (B, F) before them."""

    scores: tuple[Tensor, ...]
    features: tuple[Tensor, ...]


class GroupedCritic(nn.Module):
    """Groups of inputs, scored together where every row is judged alone, else group by group: statistics over a
    mini-batch (`BatchNorm` and the like) must not mix reals and fakes. Subclasses write `score_group`.

    Groups whose images carry gradients are scored apart from those whose do not: a penalty's backward passes would run
    through all rows of a forward.
    """

    mixes_rows: bool

    def score_group(self, inputs: CriticInputs) -> tuple[Tensor, Tensor]:
        """Scores (B,) or (B, S) and features (B, F)."""
        raise NotImplementedError

    def forward(self, *groups: CriticInputs) -> CriticOutput:
        if self.mixes_rows:
            return _output([self.score_group(group) for group in groups])
        answers: dict[int, tuple[Tensor, Tensor]] = {}
        for carries in (False, True):
            places = [place for place, group in enumerate(groups) if group["images"].requires_grad == carries]
            if places:
                answers |= zip(places, self._together([groups[place] for place in places]), strict=True)
        return _output([answers[place] for place in range(len(groups))])

    def _together(self, groups: list[CriticInputs]) -> list[tuple[Tensor, Tensor]]:
        if len(groups) == 1:
            return [self.score_group(groups[0])]
        sizes = [len(group["images"]) for group in groups]
        scores, features = self.score_group({key: torch.cat([group[key] for group in groups]) for key in groups[0]})
        return list(zip(scores.split(sizes), features.split(sizes), strict=True))


def _channels_last(gradient: Tensor | None) -> Tensor | None:
    """Flattened maps give their gradient channels first, and mixed layouts slow every layer before."""
    return None if gradient is None else gradient.contiguous(memory_format=torch.channels_last)


def _output(answers: list[tuple[Tensor, Tensor]]) -> CriticOutput:
    return CriticOutput(tuple(scores for scores, _ in answers), tuple(features for _, features in answers))


class Critic(GroupedCritic):
    """`trunk` (images -> maps (B, trunk.channels, 4, 4)); `head` (channels -> a module to features (B, head.dim)) may
    get one channel more, the mini-batch's standard deviation.

    `condition`: the class as one-hot planes beside the image's channels (Mirza and Osindero 2014), or as an inner
    product with the features (Miyato and Koyama 2018, equation 3).
    """

    def __init__(
        self,
        trunk: nn.Module,
        head,
        *,
        condition: Condition = "none",
        num_classes: int = 0,
        minibatch_std: bool = False,
        minibatch_discrimination: MinibatchDiscrimination | None = None,
    ):
        super().__init__()
        self.condition = condition if num_classes else "none"
        self.num_classes = num_classes
        self.trunk = trunk
        self.deviation = MinibatchStd() if minibatch_std else nn.Identity()
        self.head = head(trunk.channels + minibatch_std)
        self.dim = self.head.dim
        self.distances = (
            PairwiseDistances(self.dim, minibatch_discrimination.kernels, minibatch_discrimination.dim)
            if minibatch_discrimination
            else None
        )
        self.score = nn.Linear(self.dim + (minibatch_discrimination.kernels if minibatch_discrimination else 0), 1)
        self.embedding = nn.Embedding(num_classes, self.dim) if self.condition == "project" else None
        self.mixes_rows = any(
            isinstance(module, nn.BatchNorm2d | MinibatchStd | PairwiseDistances) for module in self.modules()
        )

    def score_group(self, inputs: CriticInputs) -> tuple[Tensor, Tensor]:
        features = self.features(inputs)
        whole = features if self.distances is None else torch.cat([features, self.distances(features)], dim=1)
        scores = self.score(whole)[:, 0]
        if self.embedding is not None:
            scores = scores + (self.embedding(inputs["label"]) * features).sum(1)
        return scores, features

    def features(self, inputs: CriticInputs) -> Tensor:
        images = inputs["images"]
        if self.condition == "concatenate":
            planes = nn.functional.one_hot(inputs["label"], self.num_classes).to(images)
            images = torch.cat([images, planes[:, :, None, None].expand(-1, -1, *images.shape[2:])], dim=1)
        maps = self.trunk(images)
        if maps.requires_grad and maps.is_contiguous(memory_format=torch.channels_last):
            maps.register_hook(_channels_last)
        return self.head(self.deviation(maps))
