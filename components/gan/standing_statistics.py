"""The truncation trick of BigGAN and its standing statistics (Brock et al. 2019, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from components.data.randomness import Draws
from components.shapes import all_but_channels

WHOLE = 8.0  # a truncation that leaves the normal distribution whole
_STANDING_BATCHES = 8  # forwards over which standing statistics are taken
_STANDING_ROWS = 64
_PER_UNIT = 20  # truncations that are measured; one between two of them takes the nearer one's statistics
_KEPT = 32  # truncations whose statistics are kept, those asked for last


def truncated_normal(draws: Draws, name: str, dim: int, truncation: Tensor) -> Tensor:
    """(B, dim) standard normal within +-truncation (B,): what redrawing all that falls outside comes to (Brock et al.
    2019, section 3.1), by the inverse of the distribution function."""
    edge = torch.erf(truncation.double() / 2**0.5)[:, None]  # the mass inside
    uniform = (2 * draws.uniform(name, (dim,)).double() - 1) * edge
    return (2**0.5 * torch.erfinv(uniform)).float()


class StandingStatistics:
    """Answers the generator's calls with standing statistics: the norms' means and variances are those of many forwards
    at the truncation that is asked for, to a twentieth, and with the weights that there are (Brock et al. 2019, section
    3.1)."""

    def __init__(self, net: nn.Module, latent_dim: int, num_classes: int):
        self.net, self.latent_dim, self.num_classes = net, latent_dim, num_classes
        self._weights: tuple[int, ...] = ()
        self._found: dict[float, dict[str, Tensor]] = {}  # by truncation, the one asked for last at the end

    def __call__(self, z: Tensor, truncation: Tensor, label: Tensor | None = None) -> Tensor:
        measured = _measured_at(truncation)
        levels = measured.unique()
        rows = [measured == level for level in levels]
        parts = [self._images(z[here], None if label is None else label[here], float(level))
                 for here, level in zip(rows, levels, strict=True)]  # fmt: skip
        images = parts[0].new_empty(len(z), *parts[0].shape[1:])
        for here, part in zip(rows, parts, strict=True):
            images[here] = part
        return images

    def _images(self, z: Tensor, label: Tensor | None, truncation: float) -> Tensor:
        return functional_call(self.net, self.statistics(truncation), (z, label))

    def statistics(self, truncation: float) -> dict[str, Tensor]:
        """The norms' buffers by name; the net's own stay as they are."""
        # torch counts every write to a tensor; loading, training and moving to a device all show
        weights = tuple(number for value in self.net.parameters() for number in (value._version, value.data_ptr()))
        if weights != self._weights:
            self._weights, self._found = weights, {}
        truncation = float(_measured_at(torch.tensor(truncation)))
        found = self._found.pop(truncation, None) or self._measured(truncation)
        self._found[truncation] = found
        if len(self._found) > _KEPT:
            del self._found[next(iter(self._found))]
        return found

    @torch.no_grad()
    def _measured(self, truncation: float) -> dict[str, Tensor]:
        norms = {name: module for name, module in self.net.named_modules() if isinstance(module, nn.BatchNorm2d)}
        sums = {
            name: torch.zeros(2, norm.num_features, device=norm.running_mean.device) for name, norm in norms.items()
        }
        hooks = [norm.register_forward_pre_hook(_adding(sums[name])) for name, norm in norms.items()]
        buffers = {name: value.clone() for name, value in self.net.named_buffers()}
        was_training = self.net.training
        for norm in norms.values():  # they alone: nothing else may move
            norm.train()
        for z, label in self._requests(truncation):
            functional_call(self.net, buffers, (z, label))
        self.net.train(was_training)
        for hook in hooks:
            hook.remove()
        means = {name: total / _STANDING_BATCHES for name, total in sums.items()}
        return {f"{name}.running_mean": mean for name, (mean, _) in means.items()} | {
            f"{name}.running_var": var for name, (_, var) in means.items()
        }

    def _requests(self, truncation: float) -> Iterator[tuple[Tensor, Tensor | None]]:
        device = next(self.net.parameters()).device
        for number in range(_STANDING_BATCHES):
            seeds = torch.arange(_STANDING_ROWS, device=device) + number * _STANDING_ROWS
            level = torch.full((_STANDING_ROWS,), truncation, device=device)
            z = truncated_normal(Draws.of_seeds(seeds), "standing", self.latent_dim, level)
            yield z, seeds % self.num_classes if self.num_classes else None


def _measured_at(truncation: Tensor) -> Tensor:
    """The truncations nearest to these that are measured: a client chooses any number, and each costs 512 rows."""
    return (truncation * _PER_UNIT).round().clamp(min=1) / _PER_UNIT


def _adding(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds the mean and variance of each channel of a norm's input."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], all_but_channels(inputs[0].ndim), unbiased=False)
        total.add_(torch.stack([mean, var]))

    return add
