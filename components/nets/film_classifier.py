"""What evaluation sees in films: each frame as a classifier of images sees it, and how the frames follow each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.nets.classifier import Classifier

WINDOW = 3  # frames that motion is looked for in: places, speeds and how these change


class FilmClassifier(nn.Module):
    """Stills (B, C, H, W) and films (B', C, T, H, W), T of WINDOW or more -> the stills' answers (B, num_answers) and
    the films' (B', num_motions). `features` of films are (B', feature_dim + motion_dim): a mean over frames and one
    over windows."""

    def __init__(
        self,
        channels: int,
        num_answers: int,
        num_motions: int,
        width: int,
        feature_dim: int,
        motion_dim: int,
        groups: int | None = None,
    ):
        super().__init__()
        self.feature_dim = feature_dim
        self.frames = Classifier(channels, num_answers, width, feature_dim, groups)
        self.motion = Classifier(WINDOW * channels, num_motions, width, motion_dim, groups)

    def forward(self, stills: Tensor, films: Tensor) -> tuple[Tensor, Tensor]:
        return self.frames(stills), self.motion.logits(self._motion_features(films))

    def features(self, films: Tensor) -> Tensor:
        return torch.cat([self._frame_features(films).mean(1), self._motion_features(films)], dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """Of what is seen on the mean over a film's frames, (B, num_answers)."""
        return self.frames.logits(features[:, : self.feature_dim])

    def motion_logits(self, features: Tensor) -> Tensor:
        return self.motion.logits(features[:, self.feature_dim :])

    def frame_logits(self, films: Tensor) -> Tensor:
        """Of each frame, (B, T, num_answers)."""
        return self.frames.logits(self._frame_features(films))

    def _frame_features(self, films: Tensor) -> Tensor:
        """(B, T, feature_dim)."""
        frames = films.movedim(2, 1)
        return self.frames.features(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _motion_features(self, films: Tensor) -> Tensor:
        windows = films.unfold(2, WINDOW, 1).permute(0, 2, 5, 1, 3, 4)  # (B, T - 2, WINDOW, C, H, W)
        seen = self.motion.features(windows.flatten(2, 3).flatten(0, 1)).unflatten(0, windows.shape[:2])
        return seen.mean(1)
