"""How often 95% intervals hold what they are about, by simulation: the share of sets whose interval of a figure holds
the figure's mean over sets against the same real images; of FD-infinity the distance of the distribution itself.

    python -m tests.benchmarks.interval_coverage [SETS]

Ten classes, each a Gaussian in 16 dimensions, 500 samples with 50 of each class against 360 real ones; a sampler that
is perfect, one that is a little off, and one that keeps to the middle of its classes. Told: the least share over
figures and samplers; 200 sets leave an error of 1.5 points on a share of 95.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from components.evaluation.protocol import EvaluateConfig
from components.evaluation.set_figures import Reference, feature_figures, label_figures
from components.metrics.figures import Figures
from components.metrics.frechet import Moments, frechet_distance
from tests.benchmarks.common import emit

CLASSES, DIM, SAMPLES, REAL, SETS = 10, 16, 500, 360, 200
SAMPLERS = {"perfect": (0.0, 1.0), "a little off": (0.15, 1.0), "too narrow": (0.0, 0.7)}  # shift and scale
CONFIG = EvaluateConfig(num_samples=SAMPLES)


class Population:
    """A mixture of Gaussians with means (10, 16) and factors of covariances (10, 16, 16)."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.means = 0.8 * torch.randn(CLASSES, DIM, generator=generator, dtype=torch.float64)
        self.factors = torch.randn(CLASSES, DIM, DIM, generator=generator, dtype=torch.float64) / DIM**0.5

    def draw(self, labels: Tensor, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
        noise = torch.randn(len(labels), DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return self.means[labels] + scale * (self.factors[labels] @ noise[..., None])[..., 0] + shift

    def moments(self, shift: float, scale: float) -> Moments:
        """Of the distribution itself, every class equally often."""
        between = torch.cov(self.means.T, correction=0)
        within = (self.factors @ self.factors.mT).mean(0)
        return Moments(10**9, self.means.mean(0) + shift, between + scale**2 * within)

    def judged(self, features: Tensor) -> Tensor:
        """Logits of a classifier that takes the nearest mean."""
        return -torch.cdist(features, self.means).square()


def covered(found: list[Figures], truths: dict[str, float]) -> dict[str, float]:
    """The share of intervals that hold the figure's mean over sets, or its known truth."""
    shares = {}
    for name in found[0]:
        figures = [one[name] for one in found]
        if any(figure.interval is None for figure in figures):
            continue
        truth = truths.get(name, sum(figure.value for figure in figures) / len(figures))
        # a figure that is always at its bound has an interval of no width there
        hits = [low - 1e-9 <= truth <= high + 1e-9 for low, high in (figure.interval for figure in figures)]
        shares[name] = round(sum(hits) / len(hits), 3)
    return shares


def measure(shift: float, scale: float, sets: int) -> dict[str, float]:
    population = Population()
    real_labels, labels = torch.arange(REAL) % CLASSES, torch.arange(SAMPLES) % CLASSES
    real = population.draw(real_labels, 10**6)
    reference = Reference.of(real, CONFIG, labels=real_labels, judged=population.judged(real))
    found = []
    for seed in range(sets):
        features = population.draw(labels, seed, shift, scale)
        judged = population.judged(features)
        found.append(
            feature_figures(features, reference, CONFIG, labels, judged) | label_figures(judged, None, CONFIG, labels)
        )
    truth = frechet_distance(population.moments(shift, scale), reference.moments)
    return covered(found, {"frechet_infinity": truth})


def main(argv: list[str] | None = None) -> None:
    sets = int(argv[0]) if argv else SETS
    table = {name: measure(shift, scale, sets) for name, (shift, scale) in SAMPLERS.items()}
    least = min(share for shares in table.values() for share in shares.values())
    emit("interval_coverage", least, "least share of 95% intervals that hold the figure", "about 0.95", table=table)


if __name__ == "__main__":
    main(sys.argv[1:])
