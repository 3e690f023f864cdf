"""The spaces that diffusion works in: an autoencoder's latents, or the rows of a medium themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.media import medium
from components.families import family_class
from components.sampling.trajectories import Call, Trajectory
from components.shapes import per_row


class Latents:
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
        """Rows (B, C, ...) in [-1, 1] into the space."""
        return (yield Call("encoder", {"images": images}))

    def decode(self, latents: Tensor) -> Trajectory:
        """Back into images, bounded."""
        return self.autoencoder.decode(latents)


class Pixels:
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
        return images

    def decode(self, images: Tensor) -> Trajectory:
        yield from ()
        return images.clamp(-1, 1)
