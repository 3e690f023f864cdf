"""A discriminator of patches against the reconstructions (Esser et al. 2021, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from components.config import Strict
from components.training.optimizers import OptimizerConfig

LARGEST = 1e4  # adaptive weight, as in the authors' code


class AdversarialConfig(Strict):
    """From `start` steps on. `weight` is of the adversarial term when its gradient at the decoder's last layer has been
    brought to the size of the reconstruction's."""

    weight: float = Field(0.5, gt=0)
    start: int = Field(0, ge=0)
    width: int = Field(32, ge=1)  # channels behind the discriminator's first convolution
    halvings: int = Field(2, ge=1)  # of the image's side, down to the patches that are scored
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=2e-4, betas=(0.5, 0.9))


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss (Lim and Ye 2017)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """The ratio of both losses' gradients at the weights `last` (Esser et al. 2021, equation 7), a constant. With
    several workers each goes by its own rows."""
    sizes = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    return (sizes[0] / (sizes[1] + 1e-4)).clamp(max=LARGEST).detach()
