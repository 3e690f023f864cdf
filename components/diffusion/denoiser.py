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
    they are the backbone's own. `further` takes those that class or text leave over, its `names`, such as a smaller
    image: (x, condition) -> both as the backbone takes them. With `uncertainty` the net can tell, beside its answer,
    the logarithm (B,) of the error that it expects.

    x (B, C, ...), level (B,) in [0, 1000] -> x's shape.
    """

    def __init__(
        self,
        conditioner: nn.Module | None,
        backbone: nn.Module,
        uncertainty: bool = False,
        further: nn.Module | None = None,
    ):
        super().__init__()
        self.conditioner = conditioner
        self.backbone = backbone
        self.further = further
        self.uncertainty = Uncertainty() if uncertainty else None

    def forward(self, x: Tensor, level: Tensor, uncertain: bool = False, **given: Tensor):
        names = () if self.further is None else self.further.names
        passed = {name: given.pop(name) for name in names if name in given}
        condition = given if self.conditioner is None else self.conditioner(**given)
        answer = self.denoise(x, level, **condition, **passed)
        return (answer, self.uncertainty(level)) if uncertain else answer

    def denoise(self, x: Tensor, level: Tensor, **condition: Tensor) -> Tensor:
        """With the condition made once for all steps."""
        if self.further is not None:
            x, condition = self.further(x, condition)
        return self.backbone(x, level, **condition)
