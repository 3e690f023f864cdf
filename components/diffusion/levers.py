"""What a transformer's training may do beside denoising: tokens that bypass blocks, and tokens aligned to what a judge
sees. Both are keys of the config, and off unless they are there."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.info import TEACHER
from components.diffusion import alignment


class Levers:
    """Mixed into a family whose net `denoiser` has a backbone, and which has what its methods read of `self`."""

    def routed(self, batch: Batch, rows: Tensor) -> dict[str, Tensor]:
        """Numbers that decide which tokens of rows (B, C, ...) bypass blocks at this step, if any do."""
        route = getattr(self.config.backbone, "route", None)
        if route is None or (route.steps is not None and batch.step >= route.steps):
            return {}
        count = math.prod(self.nets["denoiser"].backbone.counts(rows.shape[1:]))
        return {"routed": batch.draws.uniform("route", (count,))}

    def answered(
        self, net: nn.Module, inputs: dict[str, Tensor], step: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """A net's answer; the error that it expects, if it tells; its tokens to align, if this step does."""
        uncertain, align = self.config.weighting.name == "learned", self.config.alignment
        tap = align.layer if align is not None and (align.steps is None or step < align.steps) else 0
        asked = ({"uncertain": True} if uncertain else {}) | ({"tap": tap} if tap else {})
        answer, *told = net(**inputs, **asked) if asked else (net(**inputs),)
        return answer, told[0] if uncertain else None, told[-1] if tap else None

    def aligned(
        self, losses: dict[str, Tensor], projected: Tensor | None, rows: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Losses with that of tokens (B, N, D), if there are any, beside the teacher's features of the images: those
        that lie beside the latents, or else of the images that rows (B, C, ...) are or decode to."""
        if projected is None:
            return losses
        with torch.no_grad():
            found = alignment.stored(batch, self.config.flips) or self._seen(rows)
            wanted = alignment.on_grid(found, self.nets["denoiser"].backbone.counts(rows.shape[1:]))
        apart = alignment.misalignment(projected, wanted)
        return {**losses, "loss": losses["loss"] + self.config.alignment.weight * apart, "alignment": apart}

    def _seen(self, rows: Tensor) -> list[Tensor]:
        """The teacher's maps of the images that rows are or decode to."""
        assert TEACHER in self.received, f"the alignment was not handed its {TEACHER}"
        images = rows
        if self.autoencoder is not None:
            images = self.autoencoder.bounded(self.nets["autoencoder"].decode(rows))
        return alignment.maps(self.received[TEACHER].nets["classifier"], images)
