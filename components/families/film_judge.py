"""The judge of films: a classifier of single frames, as the judge of images is, beside one of motion.

Motion is learned without labels: whether a film runs as it was taken, or its frames are shuffled, stand still or come
by twos. A film's features are both classifiers', so that distances between sets of films see looks and motion.
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
from components.errors import SamplerError
from components.families import base
from components.families.base import Losses, Phase, Tiny
from components.families.judge import augment, turned, unlabelled_answers, unlabelled_losses
from components.metrics.figures import Definition, Figures, named
from components.metrics.trajectories import TRAJECTORY_ERROR, trajectory_errors
from components.motion import ROOM, SPEED
from components.nets.blocks import norm_groups
from components.nets.classifier import Classifier
from components.nets.film_classifier import WINDOW, FilmClassifier
from components.shapes import refuse_smaller, refuse_unless_film
from components.training.optimizers import OptimizerConfig

MOTIONS = ("as taken", "shuffled", "still", "halting")
MOTION_AGREEMENT = Definition(
    name="motion_agreement",
    label="motion agreement",
    group="motion",
    explanation="the share of films that the judge takes to run as real ones do",
    kind="share",
    better="higher",
)
FRAME_AGREEMENT = Definition(
    name="frame_agreement",
    label="frame agreement",
    group="motion",
    explanation="the share of all frames of films that the judge gives the class asked for",
    kind="share",
    better="higher",
    labelled=True,
)


class Config(Strict):
    width: int = Field(16, ge=4)
    feature_dim: int = Field(32, ge=2)
    motion_dim: int = Field(16, ge=2)  # features of motion, beside feature_dim of looks
    norm_groups: int = Field(default_factory=lambda given: norm_groups((given["width"],)), ge=1)
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    shift: float = Field(0.1, ge=0, lt=1)  # of the frame's side: the largest translation in augmentation
    rotate: float = Field(10.0, ge=0, le=180)  # degrees, likewise
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, weight_decay=0.01, schedule="cosine", warmup=20)


class Model(base.Judge):
    Config = Config
    own_figures = (FRAME_AGREEMENT, MOTION_AGREEMENT, TRAJECTORY_ERROR)

    def __init__(self, config: Config, data: DataInfo):
        refuse_unless_film(data.shape, 1, 1, "film_judge")
        if data.shape[1] < WINDOW:
            raise SamplerError(f"film_judge: expected {WINDOW} frames or more, found {data.shape[1]}")
        refuse_smaller((data.shape[0], *data.shape[2:]), Classifier.least, "film_judge")
        self.config, self.data = config, data
        answers = len(data.classes) if self.tells_classes else unlabelled_answers(data.shape[0])
        sizes = config.width, config.feature_dim, config.motion_dim, config.norm_groups
        self.nets = nn.ModuleDict({"classifier": FilmClassifier(data.shape[0], answers, len(MOTIONS), *sizes)})
        self.phases = (Phase("classify", "classifier", self.loss, config.optimizer),)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        films, draws = self.medium.rows(batch.columns), batch.draws
        stills = augment(_one_frame(films, draws), draws, self.config.shift, self.config.rotate)
        changed, motions = played(films, draws)
        if self.tells_classes:
            answers, moved = net(stills, changed)
            looks, told = self._of_labels(answers, batch.columns["label"])
        else:
            stills, turns = turned(stills, draws)
            answers, moved = net(stills, changed)
            found = unlabelled_losses(answers, stills, turns)
            looks, told = found["loss"], found["turns_told"]
        motion = F.cross_entropy(moved, motions)
        right = (moved.detach().argmax(1) == motions).float().mean()
        return {"loss": looks + motion, "accuracy": told, "motion_accuracy": right}

    def _of_labels(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(answers, labels, label_smoothing=self.config.label_smoothing)
        return loss, (answers.detach().argmax(1) == labels).float().mean()

    @torch.inference_mode()
    def figures(self, rows: Tensor, labels: Tensor | None) -> Figures:
        """Class by frame, motion, and the distance from the law of motion where the data obey one."""
        net, device = self.nets["classifier"], next(self.nets.parameters()).device
        parts = [part.to(device) for part in rows.split(256)]
        moved = torch.cat([net.motion_logits(net.features(part)).argmax(1).cpu() for part in parts])
        found = [MOTION_AGREEMENT.figure((moved == 0).double().mean())]
        if labels is not None and self.tells_classes:
            seen = torch.cat([net.frame_logits(part).argmax(2).cpu() for part in parts])
            found.insert(0, FRAME_AGREEMENT.figure((seen == labels[:, None]).double().mean()))
        law = self.data.statistics
        if SPEED in law and ROOM in law:
            errors = trajectory_errors(rows.cpu(), law[SPEED][0], law[ROOM])
            found.append(TRAJECTORY_ERROR.figure(errors.mean()))
        return named(*found)


def _one_frame(films: Tensor, draws: Draws) -> Tensor:
    """A frame of each film, by its own draw, (B, C, H, W)."""
    chosen = draws.integers("frame", films.shape[2])
    return films[torch.arange(len(films), device=films.device), :, chosen]


def played(films: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Films (B, C, T, H, W), each as its own draws have it played, and which of MOTIONS that is, (B,) int64. Half of
    them run as they were taken."""
    count = films.shape[2]
    times = torch.arange(count, device=films.device).expand(len(films), -1)
    ways = torch.stack(
        [
            times,
            draws.uniform("shuffle", (count,)).argsort(1),
            draws.integers("still", count)[:, None].expand(-1, count),
            times // 2 * 2,
        ],
        1,
    )
    drawn = draws.integers("motion", 2 * (len(MOTIONS) - 1))
    motions = (drawn - (len(MOTIONS) - 2)).clamp(min=0)
    rows = torch.arange(len(films), device=films.device)
    order = ways[rows, motions]  # (B, T)
    return films.movedim(2, 1)[rows[:, None], order].movedim(1, 2), motions


TINY = Tiny(
    {"width": 4, "feature_dim": 6, "motion_dim": 4},
    data=DataInfo(shape=(1, 5, 8, 8), medium="video", classes=("nought", "one", "two")),
)
