"""BigGAN: SAGAN grown up (Brock et al. 2019). A shared class embedding and parts of z condition every norm, rows of
weights are held orthogonal, and narrow samples are traded for good ones. Large batches come by training.accumulate."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from components.config import Strict
from components.families import sagan
from components.families.base import DataInfo
from components.nets.gan.residual import Generator
from components.optimizers import OptimizerConfig
from components.randomness import Draws
from components.sampling import Call, Request, Trajectory

WHOLE = 8.0  # a truncation that leaves the normal distribution whole
_STANDING_BATCHES = 8  # forwards over which standing statistics are taken
_STANDING_ROWS = 64


class Config(sagan.Config):
    latent_dim: int = Field(120, ge=1)
    embedding_dim: int = Field(128, ge=1)  # of the class, shared by all norms
    orthogonal: float = Field(1e-4, ge=0)  # Brock et al. 2019, section 3.1
    num_critic_steps: int = Field(2, ge=1)
    # Brock et al. 2019, appendix C
    generator: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=5e-5, betas=(0.0, 0.999))
    discriminator: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=2e-4, betas=(0.0, 0.999))


class Settings(Strict):
    truncation: float = Field(WHOLE, gt=0, le=WHOLE)  # z is drawn within this many standard deviations


class BigGAN(sagan.SAGAN):
    Config = Config
    Settings = Settings

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.standing = Standing(self.nets["generator"], config.latent_dim, self.num_classes if self.conditional else 0)
        self.calls = {"generator": self.standing}

    def made_by(self, channels: int, size: int) -> nn.Module:
        config = self.config
        return Generator(
            channels,
            size,
            config.latent_dim,
            config.width,
            self.num_classes if self.conditional else 0,
            attention_at=config.attention_at,
            embedding_dim=config.embedding_dim,
            split_latent=True,
        )

    def trajectory(self, request: Request) -> Trajectory:
        truncation = torch.full((len(request.seeds),), request.settings.truncation, device=request.seeds.device)
        z = truncated_normal(Draws.of_seeds(request.seeds), "sample", self.config.latent_dim, truncation)
        label = {"label": request.labels} if self.conditional else {}
        return (yield Call("generator", {"z": z, "truncation": truncation, **label}))


def truncated_normal(draws: Draws, name: str, dim: int, truncation: Tensor) -> Tensor:
    """(B, dim) standard normal within +-truncation (B,): what redrawing all that falls outside comes to (Brock et al.
    2019, section 3.1), by the inverse of the distribution function."""
    edge = torch.erf(truncation.double() / 2**0.5)[:, None]  # the mass inside
    uniform = (2 * draws.uniform(name, (dim,)).double() - 1) * edge
    return (2**0.5 * torch.erfinv(uniform)).float()


class Standing:
    """Answers the generator's calls with standing statistics: the norms' means and variances are those of many forwards
    at the truncation that is asked for and with the weights that there are (Brock et al. 2019, section 3.1)."""

    def __init__(self, net: nn.Module, latent_dim: int, num_classes: int):
        self.net, self.latent_dim, self.num_classes = net, latent_dim, num_classes
        self._weights: tuple[int, ...] = ()
        self._found: dict[float, dict[str, Tensor]] = {}  # by truncation

    def __call__(self, z: Tensor, truncation: Tensor, label: Tensor | None = None) -> Tensor:
        levels = truncation.unique()
        rows = [truncation == level for level in levels]
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
        weights = tuple(value._version for value in self.net.parameters()) + (next(self.net.parameters()).data_ptr(),)
        if weights != self._weights:
            self._weights, self._found = weights, {}
        if truncation not in self._found:
            self._found[truncation] = self._measured(truncation)
        return self._found[truncation]

    @torch.no_grad()
    def _measured(self, truncation: float) -> dict[str, Tensor]:
        norms = {name: module for name, module in self.net.named_modules() if isinstance(module, nn.BatchNorm2d)}
        sums = {name: torch.zeros(2, norm.num_features, device=norm.running_mean.device) for name, norm in norms.items()}
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


def _adding(total: Tensor):
    """A hook that adds the mean and variance of each channel of a norm's input."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], (0, 2, 3), unbiased=False)
        total.add_(torch.stack([mean, var]))

    return add
