"""Looking ahead: a discriminator as it would be after some moves, differentiable in the generated images that it moves
by (Metz et al. 2017, equations 7 to 9)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from components.gan.config import Unroll
from components.gan.losses import Loss
from components.nets.gan.critic import CriticInputs, CriticOutput


def unrolled(
    critic: nn.Module, real: CriticInputs, fake: CriticInputs, loss: Loss, config: Unroll
) -> Callable[..., CriticOutput]:
    """`critic` after `config.steps` of gradient descent on its loss; the critic itself stays as it is."""
    weights = {name: value.detach().clone().requires_grad_() for name, value in critic.named_parameters()}
    # buffers that a forward moves are those of the copy
    buffers = {name: value.clone() for name, value in critic.named_buffers()}

    def at(*groups: CriticInputs) -> CriticOutput:
        return functional_call(critic, (weights, buffers), groups)

    for _ in range(config.steps):
        value = loss.discriminator(*at(real, fake).scores, 1.0)
        gradients = torch.autograd.grad(value, list(weights.values()), create_graph=True)
        moved = zip(weights.items(), gradients, strict=True)
        weights = {name: weight - config.learning_rate * gradient for (name, weight), gradient in moved}
    return at
