"""The net of a diffusion model: a backbone and the conditioner that says what to steer by in the backbone's terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.nets.blocks import TimestepEmbedding, sinusoidal_embedding, with_zero_gradient

# of a number's sinusoidal embedding: its width, the largest angle, and the longest period. Small angles, since mean
# velocities are learned from derivatives in them (Lu and Song 2025)
NUMBER_WIDTH, NUMBER_ANGLE, NUMBER_PERIOD = 64, 10.0, 100.0


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


class NumberEmbedding(TimestepEmbedding):
    """A number (B,) in [0, 1] -> (B, width), zero at first: a net that goes on from another's weights begins as that
    one."""

    def __init__(self, width: int):
        super().__init__(NUMBER_WIDTH, width)
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, number: Tensor) -> Tensor:
        return super().forward(sinusoidal_embedding(NUMBER_ANGLE * number, NUMBER_WIDTH, NUMBER_PERIOD))


class Denoiser(nn.Module):
    """Backbone and conditioner. `conditioner` turns named inputs (a class, tokens) into the backbone's; without one
    they are the backbone's own. `further` takes those that class or text leave over, its `names`, such as a smaller
    image: (x, condition) -> both as the backbone takes them. With `uncertainty` the net can tell, beside its answer,
    the logarithm (B,) of the error that it expects. `numbers`: inputs (B,) in [0, 1] by which the net is told more than
    the noise level. `deep`, `tells_deep`: see the backbones.

    x (B, C, ...), level (B,) in [0, 1000] or, of films, (B, T) -> x's shape. In training alone `uncertain` asks for the
    error besides, `tap` for what `projector` makes of the tokens after so many blocks, the last that is answered then;
    `routed` numbers of tokens are the backbone's.
    """

    def __init__(
        self,
        conditioner: nn.Module | None,
        backbone: nn.Module,
        uncertainty: bool = False,
        numbers: Sequence[str] = (),
        further: nn.Module | None = None,
    ):
        super().__init__()
        self.conditioner = conditioner
        self.backbone = backbone
        self.further = further
        self.uncertainty = Uncertainty() if uncertainty else None
        self.numbers = nn.ModuleDict({name: NumberEmbedding(backbone.embedding_dim) for name in numbers})
        self.projector: nn.Module | None = None

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        uncertain: bool = False,
        tap: int = 0,
        routed: Tensor | None = None,
        deep: Tensor | None = None,
        tells_deep: bool = False,
        **given: Tensor,
    ) -> Tensor | tuple[Tensor, ...]:
        names = (*self.numbers.keys(), *(() if self.further is None else self.further.names))
        passed = {name: given.pop(name) for name in names}
        condition = given if self.conditioner is None else self.conditioner(**given)
        training = ({"tap": tap} if tap else {}) | ({} if routed is None else {"routed": routed})
        found = self.denoise(x, level, deep, tells_deep, **condition, **passed, **training)
        answer, tokens = found if tap else (found, None)
        if self.projector is not None and not tap:
            answer = with_zero_gradient(answer, *self.projector.parameters())
        if not uncertain and not tap:
            return answer
        told = (self.uncertainty(level if level.ndim == 1 else level.amax(1)),) if uncertain else ()
        return (answer, *told, *((self.projector(tokens),) if tap else ()))

    def denoise(
        self, x: Tensor, level: Tensor, deep: Tensor | None = None, tells_deep: bool = False, **condition: Tensor | int
    ) -> Tensor | tuple[Tensor, Tensor]:
        """With the condition made once for all steps."""
        told = [embedding(condition.pop(name)) for name, embedding in self.numbers.items()]
        if told:
            condition["added"] = torch.stack(told).sum(0)
        if self.further is not None:
            x, condition = self.further(x, condition)
        if tells_deep or deep is not None:
            return self.backbone(x, level, **condition, deep=deep, tells_deep=tells_deep)
        return self.backbone(x, level, **condition)
