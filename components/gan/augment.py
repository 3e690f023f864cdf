"""Augmentations that gradients pass through, for discriminators of few images: real and generated ones are seen only
augmented. Every image draws its own; all randomness is that of `draws`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from components.data.randomness import Draws

Augment = Callable[[Tensor, Draws], Tensor]


def colour(images: Tensor, draws: Draws) -> Tensor:
    """Brightness, saturation and contrast (Zhao et al. 2020, section 3.3 and appendix A)."""
    brightness, saturation, contrast = draws.uniform("colour", (3,)).T[:, :, None, None, None]
    images = images + brightness - 0.5
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, 2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, contrast + 0.5)


def translation(images: Tensor, draws: Draws) -> Tensor:
    """Shifts by up to an eighth of each side; what comes in is 0 (Zhao et al. 2020, appendix A)."""
    height, width = images.shape[2:]
    shifts = [side // 8 for side in (height, width)]
    down, right = ((draws.uniform(f"shift{axis}") * (2 * most + 1)).long() for axis, most in enumerate(shifts))
    padded = F.pad(images, (shifts[1], shifts[1], shifts[0], shifts[0]))
    rows = down[:, None] + torch.arange(height, device=images.device)
    columns = right[:, None] + torch.arange(width, device=images.device)
    padded = padded.gather(2, rows[:, None, :, None].expand(-1, images.shape[1], -1, padded.shape[3]))
    return padded.gather(3, columns[:, None, None, :].expand(-1, images.shape[1], height, -1))


def cutout(images: Tensor, draws: Draws) -> Tensor:
    """A square of half the side, around a random pixel, becomes 0 (Zhao et al. 2020, appendix A)."""
    keep = torch.zeros(len(images), 1, *images.shape[2:], device=images.device)
    inside = torch.ones_like(keep)
    for axis, side in enumerate(images.shape[2:]):
        centre = (draws.uniform(f"cut{axis}") * side).long()
        away = torch.arange(side, device=images.device) - centre[:, None]
        within = (away >= -(side // 4)) & (away < side // 2 - side // 4)
        inside = inside * (within[:, None, :, None] if axis == 0 else within[:, None, None, :])
    return images * (1 - inside)


DIFFERENTIABLE: dict[str, Augment] = {"colour": colour, "translation": translation, "cutout": cutout}


def diffaugment(images: Tensor, draws: Draws, names: Sequence[str]) -> Tensor:
    for name in names:
        images = DIFFERENTIABLE[name](images, draws.fold(name))
    return images


def adaptive(images: Tensor, draws: Draws, p: Tensor, names: Sequence[str]) -> Tensor:
    """Each transformation of each image takes place with probability `p`, a scalar tensor (Karras et al. 2020a,
    appendix B, without its wavelet-domain filters and corruptions).

    All of geometry is one affine map and one bilinear look-up, mirrored at the borders.
    """
    size = len(images)
    inverse = torch.eye(3, device=images.device).expand(size, 3, 3)
    for name in names:
        if name in GEOMETRIC:
            chosen = (draws.uniform(f"take {name}") < p)[:, None, None]
            step = GEOMETRIC[name](draws.fold(name), images.shape[-1])
            inverse = torch.where(chosen, inverse @ step, inverse)
    if set(names) & GEOMETRIC.keys():
        where = F.affine_grid(inverse[:, :2], list(images.shape), align_corners=False)
        images = F.grid_sample(images, where, padding_mode="reflection", align_corners=False)
    for name in names:
        if name in COLOUR:
            chosen = (draws.uniform(f"take {name}") < p)[:, None, None, None]
            images = torch.where(chosen, COLOUR[name](images, draws.fold(name)), images)
    return images


def _matrix(rows: int, device: torch.device, **entries: Tensor) -> Tensor:
    """(rows, 3, 3): the identity but for entries named by place, as m01."""
    matrix = torch.eye(3, device=device).repeat(rows, 1, 1)
    for place, value in entries.items():
        matrix[:, int(place[1]), int(place[2])] = value
    return matrix


def _affine(draws: Draws, **entries: Tensor) -> Tensor:
    return _matrix(len(draws.keys), draws.keys.device, **entries)


def _flip(draws: Draws, side: int) -> Tensor:
    return _affine(draws, m00=1 - 2 * draws.integers("side", 2).float())


def _rotation(draws: Draws, angle: Tensor) -> Tensor:
    return _affine(draws, m00=angle.cos(), m01=-angle.sin(), m10=angle.sin(), m11=angle.cos())


def _shift(draws: Draws, by: Tensor) -> Tensor:
    """`by` (B, 2) in sides; the grid's coordinates span [-1, 1]."""
    return _affine(draws, m02=2 * by[:, 0], m12=2 * by[:, 1])


def _scale(draws: Draws, across: Tensor, down: Tensor) -> Tensor:
    return _affine(draws, m00=across, m11=down)


def _log_scale(draws: Draws) -> Tensor:
    return torch.exp2(0.2 * draws.normal("scale", (1,))[:, 0])  # lognormal of ln 2 * 0.2


GEOMETRIC: dict[str, Callable[[Draws, int], Tensor]] = {
    "flip": _flip,
    "rotate90": lambda draws, side: _rotation(draws, draws.integers("turns", 4) * (math.pi / 2)),
    "translate": lambda draws, side: _shift(draws, ((draws.uniform("by", (2,)) * 2 - 1) * 0.125 * side).round() / side),
    "scale": lambda draws, side: _scale(draws, *[_log_scale(draws)] * 2),
    "rotate": lambda draws, side: _rotation(draws, (draws.uniform("angle") * 2 - 1) * math.pi),
    "stretch": lambda draws, side: _scale(draws, _log_scale(draws), 1 / _log_scale(draws)),
    "drift": lambda draws, side: _shift(draws, 0.125 * draws.normal("by", (2,))),
}
COLOUR: dict[str, Augment] = {
    "brightness": lambda images, draws: images + 0.2 * draws.normal("by", (1, 1, 1)),
    "contrast": lambda images, draws: images * torch.exp2(0.5 * draws.normal("by", (1, 1, 1))),
}


def next_probability(p: Tensor, realness: Tensor, target: float, ramp_steps: int) -> Tensor:
    """`p` a step later: up while the discriminator takes more than its share of real images for real, else down.

    `realness`: (B,), above 0 means real. r = E[sign] is held at `target` (Karras et al. 2020a, equation 1)."""
    direction = (realness.sign().mean() - target).sign()
    return (p + direction / ramp_steps).clamp(0, 1)
