"""The judge: a classifier of the data's own classes, the default feature extractor and label checker.

Data without classes, or of one, teach it features without labels: it tells which way round each image is (Gidaris et
al. 2018), and what it looks like from far off, so that colours and layout are not lost on it. Both are asked of a row
alone, so that a batch may be spread over workers as any other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families import base
from components.families.base import Losses, Phase, Tiny
from components.nets.blocks import norm_groups
from components.nets.classifier import Classifier
from components.shapes import refuse_smaller, refuse_unless_planar
from components.training.optimizers import OptimizerConfig

TURNS = 4  # ways round that an image is shown
COARSE = 4  # pixels a side of an image from far off


class Config(Strict):
    width: int = Field(32, ge=4)
    feature_dim: int = Field(64, ge=2)
    norm_groups: int = Field(default_factory=lambda given: norm_groups((given["width"],)), ge=1)
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    shift: float = Field(0.1, ge=0, lt=1)  # of the image's side, or of its spectrum's: the largest translation
    rotate: float = Field(10.0, ge=0, le=180)  # degrees, likewise
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, weight_decay=0.01, schedule="cosine", warmup=20)


class Model(base.Judge):
    Config = Config

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        shape = tuple(self.medium.seen(torch.zeros(1, *data.shape)).shape[1:])
        refuse_unless_planar(shape, 1, "judge")
        is_seen = shape == tuple(data.shape)
        rows = (
            "rows" if is_seen else f"{self.medium.plural} longer than {self.medium.size(data.shape)}, seen as pictures"
        )
        refuse_smaller(shape, Classifier.least, "judge", rows)
        answers = len(data.classes) if self.tells_classes else unlabelled_answers(shape[0])
        # no dropout: its masks would come from the global generator; augmentation and label smoothing regularise
        net = Classifier(shape[0], answers, config.width, config.feature_dim, config.norm_groups, seen=self.medium.seen)
        self.nets = nn.ModuleDict({"classifier": net})
        loss = self.loss if self.tells_classes else self.unlabelled_loss
        self.phases = (Phase("classify", "classifier", loss, config.optimizer),)

    def unlabelled_loss(self, net: nn.Module, batch: Batch) -> Losses:
        images = self._augmented(batch)
        images, turns = turned(images, batch.draws)
        return unlabelled_losses(net(images), images, turns)

    def _augmented(self, batch: Batch) -> Tensor:
        """The batch's rows as pictures (B, C, H, W), moved and turned."""
        pictures = self.medium.seen(self.medium.rows(batch.columns))
        return augment(pictures, batch.draws, self.config.shift, self.config.rotate)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        images = self._augmented(batch)
        labels = batch.columns["label"]
        logits = net(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return {"loss": loss, "accuracy": (logits.detach().argmax(1) == labels).float().mean()}


def unlabelled_answers(channels: int) -> int:
    """How many numbers a net tells of an image without classes: which way round it is shown, and how it looks from far
    off."""
    return TURNS + channels * COARSE**2


def unlabelled_losses(answers: Tensor, images: Tensor, turns: Tensor) -> Losses:
    """Of answers (B, unlabelled_answers) about images (B, C, H, W) shown `turns` (B,) ways round."""
    turn, looks = F.cross_entropy(answers[:, :TURNS], turns), F.adaptive_avg_pool2d(images, COARSE).flatten(1)
    coarse = (answers[:, TURNS:] - looks).square().mean()
    told = (answers.detach()[:, :TURNS].argmax(1) == turns).float().mean()
    return {"loss": turn + coarse, "turns_told": told, "coarse_error": coarse}


def augment(images: Tensor, draws: Draws, shift: float, rotate: float) -> Tensor:
    """Translates and rotates each image by its own draws; new places take the nearest border pixel."""
    aspect = images.shape[-1] / images.shape[-2]  # width over height: a unit of affine_grid is half a side
    angle = (draws.uniform("rotate") * 2 - 1) * (rotate * torch.pi / 180)
    moves = (draws.uniform("shift", (2,)) * 2 - 1) * (2 * shift)  # affine_grid's coordinates span [-1, 1]
    turn = [angle.cos(), -angle.sin() / aspect], [angle.sin() * aspect, angle.cos()]
    matrix = torch.stack([*turn[0], moves[:, 0], *turn[1], moves[:, 1]], dim=1)
    where = F.affine_grid(matrix.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, where, padding_mode="border", align_corners=False)


def turned(images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Each image one of four ways round, by its own draw, and which, (B,) int64: quarter turns of squares; of other
    rectangles, which these would not fit into, the four mirrorings."""
    if images.shape[-2] == images.shape[-1]:
        ways = [images.rot90(quarter, (2, 3)) for quarter in range(TURNS)]
    else:
        ways = [images, images.flip(3), images.flip(2), images.flip((2, 3))]
    turns = (draws.uniform("turn") * TURNS).long().clamp(max=TURNS - 1)
    return torch.stack(ways, 1)[torch.arange(len(images), device=images.device), turns], turns


TINY = Tiny({"width": 4, "feature_dim": 6})
