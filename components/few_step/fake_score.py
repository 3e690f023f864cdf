"""The score of a student's own rows, learned beside it, and a critic on its deep features (Yin et al. 2024b)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from components.diffusion.denoiser import Denoiser


class Head(nn.Module):
    """Scores (B,) of a net's deep features, (B, C, H, W) or (B, N, C): the mean of what each place says. Above 0 means
    real."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, channels)
        self.score = nn.Linear(channels, 1)

    def forward(self, deep: Tensor) -> Tensor:
        tokens = deep if deep.ndim == 3 else deep.flatten(2).transpose(1, 2)
        return self.score(F.silu(self.hidden(self.norm(tokens)))).mean((1, 2))


class FakeScore(nn.Module):
    """A denoiser of the student's rows. `judges`: it also tells whether rows are real.

    Inputs as the denoiser's -> its answer, and scores (B,) or None."""

    def __init__(self, denoiser: Denoiser, judges: bool):
        super().__init__()
        self.denoiser = denoiser
        self.head = Head(denoiser.backbone.deep_channels) if judges else None

    def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.head is None:
            return self.denoiser(**inputs), None
        answer, deep = self.denoiser(**inputs, tells_deep=True)
        return answer, self.head(deep)
