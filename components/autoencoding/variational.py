"""The variational autoencoder as a model of its data: a decoder with a density, a density of latents, and bounds of the
likelihood (Kingma and Welling 2014; Burda et al. 2016)."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.training.optimizers import OptimizerConfig

LOG_2PI = math.log(2 * math.pi)
IMPORTANCE_SAMPLES = 16  # latents of a row behind its likelihood's bound


class DensityConfig(Strict):
    """Of a mixture of Gaussians with full covariances that is fitted to the latents of the training rows, beside the
    autoencoder, and takes the prior's place (Ghosh et al. 2020, section 4; Dai and Wipf 2019)."""

    components: int = Field(1, ge=1)  # of each class, where there are classes
    classes: bool = True  # whether each class has components of its own, where the data have some
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=1e-2, schedule="cosine")


class LatentDensity(nn.Module):
    """A mixture of Gaussians of flat latents (B, D), `components` of each of `num_classes` (0: of none).

    A component holds the lower Cholesky factor L of its precision, so that a density needs no inverse: log N is
    log det L - |L^T (z - mean)|^2 / 2 - D log(2 pi) / 2. It begins as the standard Gaussian."""

    def __init__(self, dim: int, components: int, num_classes: int):
        super().__init__()
        self.dim, rows = dim, max(1, num_classes)
        self.logits = nn.Parameter(torch.zeros(rows, components))
        self.mean = nn.Parameter(0.01 * torch.randn(rows, components, dim))  # equal components would stay equal
        self.lower = nn.Parameter(torch.zeros(rows, components, dim, dim))  # its diagonal holds logarithms

    def factors(self) -> Tensor:
        """(rows, K, D, D)."""
        return self.lower.tril(-1) + torch.diag_embed(self.lower.diagonal(dim1=-2, dim2=-1).exp())

    def forward(self, latents: Tensor, label: Tensor | None = None) -> Tensor:
        """(B,) log-densities in nats of (B, D)."""
        factors = self.factors()
        each = torch.stack([self._log_densities(latents, row, factors[row]) for row in range(len(factors))], 1)
        weighted = torch.logsumexp(each + self.logits.log_softmax(1), 2)  # (B, rows)
        return weighted[:, 0] if label is None else weighted.gather(1, label[:, None])[:, 0]

    def _log_densities(self, latents: Tensor, row: int, factors: Tensor) -> Tensor:
        """(B, K) of one class's components."""
        away = latents[:, None] - self.mean[row]  # (B, K, D)
        white = torch.einsum("bki,kij->bkj", away, factors)
        logdet = self.lower[row].diagonal(dim1=-2, dim2=-1).sum(-1)
        return logdet - 0.5 * white.square().sum(-1) - 0.5 * self.dim * LOG_2PI

    def draw(self, noise: Tensor, uniform: Tensor, label: Tensor | None = None) -> Tensor:
        """Latents (B, D) of standard Gaussian noise (B, D), by uniform numbers (B, 1) that choose components."""
        row = torch.zeros(len(noise), dtype=torch.int64, device=noise.device) if label is None else label
        shares = self.logits.softmax(1).cumsum(1)[row]
        chosen = (uniform > shares[:, :-1]).sum(1)
        factors = self.factors()[row, chosen]
        away = torch.linalg.solve_triangular(factors.transpose(1, 2), noise[:, :, None], upper=True)[:, :, 0]
        return self.mean[row, chosen] + away


def standard_log_density(latents: Tensor) -> Tensor:
    """(..., D) -> (...) in nats, of the standard Gaussian."""
    return -0.5 * (latents.square() + LOG_2PI).sum(-1)


def posterior_log_density(noise: Tensor, std: Tensor) -> Tensor:
    """The log-density of mean + std * noise under the posterior, summed over all but the first axis."""
    return -(0.5 * (noise.square() + LOG_2PI) + std.log()).flatten(1).sum(1)


def importance_bound(log_weights: Tensor) -> Tensor:
    """The bound of log p(x) by K weights p(x, z) / q(z | x) a row, (B, K) logarithms -> (B,) float64: the evidence
    lower bound at K = 1, tighter with every one more (Burda et al. 2016, theorem 1)."""
    return torch.logsumexp(log_weights.double(), 1) - math.log(log_weights.shape[1])


def free_bits_kl(mean: Tensor, std: Tensor, least: float) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) summed over a latent and averaged over rows, each channel of a row counted as
    `least` nats at least, so that none is given up (Kingma et al. 2016, appendix C.8, a row by itself)."""
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).flatten(2).sum(2)
    return kl.clamp(min=least).sum(1).mean()
