"""Regularisers of a discriminator or a generator: functions of scores, inputs and weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from components.shapes import per_row


def squared_gradients(scores: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The mean squared norm of each row's gradient, one scalar for each pair of scores and inputs, by one backward
    pass. R1 on reals, R2 on fakes (Mescheder et al. 2018, equations 9 and 10)."""
    gradients = torch.autograd.grad(sum(score.sum() for score in scores), inputs, create_graph=True)
    return [gradient.square().flatten(1).sum(1).mean() for gradient in gradients]


def gradient_penalty(scores: Tensor, inputs: Tensor) -> Tensor:
    """Mean squared distance from 1 of each row's gradient norm (Gulrajani et al. 2017, equation 3)."""
    return (gradient_norms(scores, inputs) - 1).square().mean()


def gradient_norms(scores: Tensor, inputs: Tensor) -> Tensor:
    """(B,) Euclidean norms of each row's gradient, with a graph."""
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    return gradient.flatten(1).norm(dim=1)


def interpolate(real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """A point on the line between each pair of rows; `share` (B,) is the part of the real one."""
    return torch.lerp(fake, real, per_row(share, real))


def lecam(real: Tensor, fake: Tensor, real_anchor: Tensor, fake_anchor: Tensor) -> Tensor:
    """Keeps scores near the running mean of the other side's (Tseng et al. 2021, equation 3), one-sided: scores that
    lie beyond it are left alone."""
    return F.relu(real - fake_anchor).square().mean() + F.relu(real_anchor - fake).square().mean()


def orthogonality(weights: Iterable[Tensor]) -> Tensor:
    """The squared inner products of different rows of each weight, summed (Brock et al. 2019, equation 3): unlike the
    full orthogonal penalty it leaves the rows' lengths free."""
    total = 0.0
    for weight in weights:
        rows = weight.flatten(1)
        # products of columns have the same sum of squares, that of the singular values' fourth powers
        gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
        total = total + gram.square().sum() - rows.square().sum(1).square().sum()
    return total


def path_lengths(images: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """(B,) norms of the pull of `noise`, shaped as the images, back to latents (B, ..., D), root mean square over what
    lies between (Karras et al. 2020, section 3.2). Images differ in size, so noise is divided by the root of pixels."""
    scale = (images.shape[-1] * images.shape[-2]) ** -0.5
    (gradient,) = torch.autograd.grad((images * noise).sum() * scale, latents, create_graph=True)
    return gradient.square().sum(-1).flatten(1).mean(1).sqrt() if gradient.ndim > 2 else gradient.norm(dim=1)
