"""How much each noise level counts in training, as a weight on the squared error of what the net answers.

The error of the answer F is that of the clean image divided by c_out (objectives.py), so a weight w on |D - x0|^2 is
w * c_out^2 on |F - F*|^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from components.diffusion.objectives import Coefficients


def min_snr(sigma: Tensor, coefficients: Coefficients, gamma: float) -> Tensor:
    """Min-SNR-gamma (Hang et al. 2023): min(SNR, gamma) on the clean image's error, SNR = 1 / sigma^2. Of sigma's
    shape."""
    return (sigma**-2).clamp(max=gamma) * coefficients.c_out**2


def balanced(error: Tensor, u: Tensor) -> Tensor:
    """error / e^u + u, each (B,): a Gaussian's negative log-likelihood (Kendall et al. 2018; Karras et al. 2024). With
    u learned along, best at log(error), every level comes to weigh alike."""
    return error / torch.exp(u) + u
