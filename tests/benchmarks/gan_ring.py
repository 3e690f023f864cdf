"""Modes that a GAN keeps, by remedy: a ring of 8 and a grid of 25 Gaussians in the plane, three seeds.

python -m tests.benchmarks.gan_ring [PLACES REMEDY [SEED]]

Naming them measures and keeps those runs; without names all that is not kept yet is measured, and the plot is drawn.
What is kept, and the plot, lie in .cache/gan_ring.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from components.data.dataset import Batch, batches
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.gan import penalties
from components.gan.base import GAN
from components.gan.config import GANConfig
from components.gan.networks import critic_options
from components.nets.gan.critic import Critic, CriticInputs
from components.training.loop import TrainingConfig, fit
from components.training.optimizers import OptimizerConfig
from tests.benchmarks.common import emit

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "gan_ring"
SEEDS = (0, 1, 2)
STEPS, BATCH = 3000, 128
STD = 0.05
SAMPLES = 2500
CENTRES = {
    "ring": torch.tensor([[2 * math.cos(k * math.pi / 4), 2 * math.sin(k * math.pi / 4)] for k in range(8)]),
    "grid": torch.tensor([[float(x), float(y)] for x in range(-4, 5, 2) for y in range(-4, 5, 2)]),
}


def adam(learning_rate: float, first: float) -> OptimizerConfig:
    return OptimizerConfig(name="adam", learning_rate=learning_rate, betas=(first, 0.999))


# vanilla: the rates of Metz et al. 2017, appendix A, whose generator is fast enough to run from mode to mode
VANILLA = {"generator": adam(1e-3, 0.5), "discriminator": adam(1e-4, 0.5)}
EVEN = {"generator": adam(1e-3, 0.0), "discriminator": adam(1e-3, 0.0)}
REMEDIES: dict[str, dict] = {
    "vanilla": VANILLA,
    "unrolled": {**VANILLA, "unroll": {"steps": 5, "learning_rate": 0.1}},
    "minibatch discrimination": {**VANILLA, "minibatch_discrimination": {"kernels": 4, "dim": 4}},
    "wgan_gp": {**EVEN, "loss": "wasserstein", "gradient_penalty": 1.0, "num_critic_steps": 3},
    "r1": {**EVEN, "r1": 0.1},
    "relativistic, r1, r2": {**EVEN, "loss": "relativistic", "r1": 0.1, "r2": 0.1},
}


class Trunk(nn.Module):
    """Points (B, 2, 1, 1) -> features (B, channels, 1, 1)."""

    def __init__(self, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(2, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2)
        )
        self.channels = hidden

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points / 2)[:, :, None, None]


class Flat(nn.Flatten):
    def __init__(self, channels: int):
        super().__init__()
        self.dim = channels


class Plane(GAN):
    """Perceptrons of two layers on points of the plane, in the place of images."""

    def networks(self) -> dict[str, nn.Module]:
        generator = nn.Sequential(
            nn.Linear(self.config.latent_dim, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2),
            nn.Unflatten(1, (2, 1, 1)),
        )  # fmt: skip
        return {"generator": generator, "discriminator": Critic(Trunk(128), Flat, **critic_options(self))}

    def generator_inputs(self, draws: Draws, name: str, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"input": draws.normal(name, (self.config.latent_dim,))}

    def real_inputs(self, batch: Batch) -> CriticInputs:
        return {"images": batch.columns["point"]}


class Mixture:
    """A data set of points around centres, as many around each."""

    def __init__(self, centres: Tensor, count: int = 2**16):
        noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
        self.points = (centres[torch.arange(count) % len(centres)] + STD * noise)[:, :, None, None]

    def __len__(self) -> int:
        return len(self.points)

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        return {"point": self.points[rows]}


def trained(places: str, config: dict, seed: int, steps: int) -> Plane:
    """With its live weights: their average would hide that a generator runs from mode to mode."""
    torch.manual_seed(seed)
    family = Plane(GANConfig(**{"latent_dim": 16, **config}), DataInfo(shape=(2, 1, 1)))
    fit(
        family,
        batches(Mixture(CENTRES[places]), BATCH, seed=seed),
        TrainingConfig(steps=steps, batch_size=BATCH, report_every=steps, save_every=steps),
        start=None,
        wrap=lambda net, optimizer: (net, optimizer),
        report=lambda step, figures: figures,
        save=lambda state: None,
    )
    return family.nets.eval() and family


@torch.no_grad()
def sampled(family: Plane, count: int = SAMPLES) -> Tensor:
    """(count, 2)"""
    draws = Draws.of_seeds(torch.arange(count))
    return family.nets["generator"](**family.generator_inputs(draws, "sample", {})).flatten(1)


def modes_kept(points: Tensor, centres: Tensor) -> tuple[int, float]:
    """How many centres hold a tenth or more of their share of the points, and the share of points that lie at some
    centre: within four standard deviations."""
    distances, nearest = torch.cdist(points, centres).min(1)
    at_centre = distances < 4 * STD
    counts = torch.bincount(nearest[at_centre], minlength=len(centres))
    return int((counts >= 0.1 * len(points) / len(centres)).sum()), float(at_centre.double().mean())


def gradient_norm(family: Plane, places: str) -> float:
    """The mean norm of the critic's gradient on lines between real and generated points."""
    real, fake = Mixture(CENTRES[places]).points[:SAMPLES], sampled(family)[:, :, None, None]
    draws = Draws.of_seeds(torch.arange(SAMPLES))
    between = penalties.interpolate(real, fake, draws.uniform("between")).requires_grad_()
    (scores,) = family.nets["discriminator"].requires_grad_(False)({"images": between}).scores
    return float(penalties.gradient_norms(scores, between).detach().mean())


def run(places: str, remedy: str, seed: int) -> dict:
    """One training's figures and points, kept."""
    path = FOLDER / f"{places} {remedy} {seed}.json"
    if not path.exists():
        family = trained(places, REMEDIES[remedy], seed, STEPS)
        points = sampled(family)
        modes, share = modes_kept(points, CENTRES[places])
        found = {"modes": modes, "share": share, "gradient_norm": gradient_norm(family, places)}
        path.write_text(json.dumps({**found, "points": points.tolist()}))
    return json.loads(path.read_text())


def cell(places: str, remedy: str) -> list[dict]:
    """A remedy's runs, one a seed."""
    return [run(places, remedy, seed) for seed in SEEDS]


def plot(table: dict[str, dict[str, list[dict]]], path: Path) -> None:
    """The first seed's samples of every cell, the centres beneath."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(table),
        len(REMEDIES),
        figsize=(2.2 * len(REMEDIES), 2.6 * len(table)),
        squeeze=False,
        layout="constrained",
    )
    for row, (places, cells) in zip(axes, table.items(), strict=True):
        for axis, (remedy, runs) in zip(row, cells.items(), strict=True):
            points, centres = torch.tensor(runs[0]["points"]), CENTRES[places]
            axis.scatter(*centres.T, s=60, facecolors="none", edgecolors="#999999", linewidths=0.8)
            axis.scatter(*points[:1000].T, s=1, color="#0072b2", rasterized=True)
            axis.set_title(f"{remedy}\n{[run['modes'] for run in runs]} of {len(centres)}", fontsize=7)
            axis.set(xticks=[], yticks=[], xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
    figure.savefig(path)
    plt.close(figure)


def told(table: dict[str, dict[str, list[dict]]]) -> Iterator[tuple[str, dict]]:
    for places, cells in table.items():
        yield (
            places,
            {
                remedy: {
                    "modes": [run["modes"] for run in runs],
                    "share_at_modes": round(statistics.mean(run["share"] for run in runs), 3),
                    "gradient_norm": round(statistics.mean(run["gradient_norm"] for run in runs), 3),
                }
                for remedy, runs in cells.items()
            },
        )


def main(argv: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if argv:
        runs = cell(*argv) if len(argv) == 2 else [run(argv[0], argv[1], int(argv[2]))]
        print(argv, [(run["modes"], round(run["share"], 3), round(run["gradient_norm"], 3)) for run in runs])
        return
    table = {places: {remedy: cell(places, remedy) for remedy in REMEDIES} for places in CENTRES}
    plot(table, FOLDER / "gan_ring.svg")
    kept = {remedy: statistics.mean(run["modes"] for run in runs) for remedy, runs in table["ring"].items()}
    remedies = [kept["unrolled"], kept["minibatch discrimination"]]
    emit(
        "gan_ring",
        round(min(remedies) - kept["vanilla"], 2),
        "modes of 8 that unrolling and mini-batch discrimination keep beyond vanilla (the lesser, mean of 3 seeds)",
        "> 0",
        **dict(told(table)),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
