"""The spaces that diffusion works in: an autoencoder's latents, or the rows of a medium themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from components.constants import constant
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.media import medium
from components.data.randomness import Draws
from components.families import family_class
from components.likelihood.contract import Likelihood
from components.likelihood.dequantise import dequantised, levels, log_bin_volume
from components.sampling.trajectories import Call, Trajectory
from components.shapes import per_channel, per_row

MOST_ROWS = 100  # of a likelihood: an estimate takes dozens of evaluations a row

LogDensity = Callable[[Tensor, Tensor | None, Draws], Tensor]  # of normalised rows and labels: (B,) in nats


class Space:
    """Base of the spaces."""

    moments: tuple[Sequence[float], Sequence[float]]  # means and spreads of the whole data set, by channel

    def normalise(self, rows: Tensor) -> Tensor:
        """To zero mean and unit spread per channel over the whole data set."""
        mean, std = self.moments_as(rows)
        return (rows - mean) / std

    def denormalise(self, rows: Tensor) -> Tensor:
        mean, std = self.moments_as(rows)
        return rows * std + mean

    def moments_as(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread, to be broadcast over rows `like` (B, C, ...)."""
        mean, std = (constant(tuple(values), like) for values in self.moments)
        return per_channel(mean, like), per_channel(std, like)


class Latents(Space):
    """The space of an autoencoder's latents, with their mean and spread by channel: the data set's, unless told."""

    def __init__(self, data: DataInfo, moments: tuple[Sequence[float], Sequence[float]] | None = None):
        self.shape, kind = data.shape, family_class(data.autoencoder.family)
        self.autoencoder = kind(kind.Config(**data.autoencoder.config), data.autoencoder.data)
        self.nets = {"autoencoder": self.autoencoder.nets["autoencoder"]}
        self.calls = {"encoder": self._posterior_mean, **self.autoencoder.calls}
        self.moments = moments or tuple(data.statistics[name] for name in ("channel_mean", "channel_std"))

    def _posterior_mean(self, images: Tensor) -> Tensor:
        return self.nets["autoencoder"].encode(images)[0]

    def clean(self, batch: Batch, flips: bool) -> Tensor:
        """What training makes noisy: a draw from each row's posterior, with `flips` that of its mirrored image for half
        of them."""
        mean, std = batch.columns["mean"], batch.columns["std"]
        if flips:
            mirrored = per_row(batch.mirrored, mean)
            mean = torch.where(mirrored, batch.columns["mean_flipped"], mean)
            std = torch.where(mirrored, batch.columns["std_flipped"], std)
        return mean + std * batch.draws.normal("posterior", mean.shape[1:])

    def columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Columns of the medium's rows as a latent data set has them."""
        mean, std = self.nets["autoencoder"].encode(self.autoencoder.medium.rows(columns))
        return {**columns, "mean": mean, "std": std}

    def drawn(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Sides of what latents of these decode to."""
        whole, stored = self.autoencoder.data.shape[1:], self.shape[1:]
        return tuple(side * pixels // cells for side, pixels, cells in zip(sides, whole, stored, strict=True))

    def encode(self, images: Tensor) -> Trajectory:
        """Rows (B, C, ...) in [-1, 1] into the space, normalised."""
        return self.normalise((yield Call("encoder", {"images": images})))

    def decode(self, latents: Tensor) -> Trajectory:
        """Back into images, bounded."""
        return self.autoencoder.decode(self.denormalise(latents))

    def likelihood(self, log_density: LogDensity) -> Likelihood:
        """Of draws from the posteriors of rows, as training sees them, by a density of this space."""

        def log_probability(rows: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
            mean, std = self.nets["autoencoder"].encode(rows)
            return log_density(self.normalise(mean + std * draws.normal("posterior", self.shape)), label, draws)

        return Likelihood("estimate", "none", log_probability, latents=math.prod(self.shape), most_rows=MOST_ROWS)


class Pixels(Space):
    """The space of the images themselves, as if by an autoencoder that changes nothing."""

    autoencoder = None
    nets: Mapping[str, nn.Module] = {}
    calls: Mapping[str, nn.Module] = {}

    def __init__(self, data: DataInfo):
        channels, self.medium = data.shape[0], medium(data.medium, rate=data.rate)
        self.moments = (0.0,) * channels, (0.5,) * channels  # sigma_data of Karras et al. 2022, Table 1

    def clean(self, batch: Batch, flips: bool) -> Tensor:
        rows = self.medium.rows(batch.columns)
        return torch.where(per_row(batch.mirrored, rows), self.medium.mirrored(rows), rows) if flips else rows

    def columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(columns)

    def drawn(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        return sides

    def encode(self, images: Tensor) -> Trajectory:
        yield from ()
        return self.normalise(images)

    def decode(self, images: Tensor) -> Trajectory:
        yield from ()
        return self.denormalise(images).clamp(-1, 1)

    def likelihood(self, log_density: LogDensity) -> Likelihood:
        """Of stored rows, by a density of this space."""

        def log_probability(rows: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
            count = levels(self.medium)
            clean = self.normalise(dequantised(rows, draws, count))
            found = log_density(clean, label, draws)
            _, std = self.moments_as(clean)
            scaled = -std.double().log().expand_as(clean[:1]).sum()  # from normalised values to those of the rows
            return found + scaled + log_bin_volume(clean[0].numel(), count)

        return Likelihood("estimate", "uniform", log_probability, most_rows=MOST_ROWS)
