"""The net of a diffusion model: a backbone and the conditioner that says what to steer by in the backbone's terms."""

from __future__ import annotations

from torch import Tensor, nn

from components.nets.blocks import sinusoidal_embedding


class Uncertainty(nn.Module):
    """u(level): the logarithm of the error to be expected at a noise level, learned along with the net and used by
    training alone (Karras et al. 2024). (B,) levels in [0, 1000] -> (B,)."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, 1)
        # all levels count alike at first
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, level: Tensor) -> Tensor:
        return self.linear(sinusoidal_embedding(level, self.width))[:, 0].float()


class Denoiser(nn.Module):
    """Backbone and conditioner. `conditioner` turns named inputs (a class, tokens) into the backbone's; without one
    they are the backbone's own. With `uncertainty` the net can tell, beside its answer, the logarithm (B,) of the error
    that it expects.

    x (B, C, ...), level (B,) in [0, 1000] or, of films, (B, T) -> x's shape.
    """

    def __init__(self, conditioner: nn.Module | None, backbone: nn.Module, uncertainty: bool = False):
        super().__init__()
        self.conditioner = conditioner
        self.backbone = backbone
        self.uncertainty = Uncertainty() if uncertainty else None

    def forward(self, x: Tensor, level: Tensor, uncertain: bool = False, **given: Tensor):
        answer = self.denoise(x, level, **(given if self.conditioner is None else self.conditioner(**given)))
        return (answer, self.uncertainty(level if level.ndim == 1 else level.amax(1))) if uncertain else answer

    def denoise(self, x: Tensor, level: Tensor, **condition: Tensor) -> Tensor:
        """With the condition made once for all steps."""
        return self.backbone(x, level, **condition)
