"""The networks of StyleGAN2 (Karras et al. 2020): a mapping network, modulated convolutions, a generator of skips and
a residual discriminator; and growing as in StyleGAN (Karras et al. 2018, 2019), as an option."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import embedded
from components.nets.gan.layers import doublings

_SLOPE = 0.2


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the second moment of normal input, roughly."""
    return F.leaky_relu(x, _SLOPE) * math.sqrt(2)


class Linear(nn.Module):
    """Equalised learning rate: weights are N(0, 1) and scaled at run time (Karras et al. 2018, section 4.1). `slowed`
    multiplies the learning rate."""

    def __init__(self, before: int, after: int, bias: float = 0.0, slowed: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before) / slowed)
        self.bias = nn.Parameter(torch.full((after,), bias / slowed))
        self.scale, self.slowed = slowed / math.sqrt(before), slowed

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.slowed)


class Conv(nn.Module):
    """A convolution with equalised learning rate that keeps the side."""

    def __init__(self, before: int, after: int, kernel: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None
        self.scale, self.padding = 1 / math.sqrt(before * kernel**2), kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style, row by row, and whose output channels are scaled back
    to unit variance (Karras et al. 2020, equations 1 to 3). Activations are scaled in the place of weights, which
    comes to the same and keeps all rows in one convolution."""

    def __init__(self, before: int, after: int, kernel: int, style_dim: int, demodulate: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after))
        self.style = Linear(style_dim, before, bias=1.0)
        self.scale, self.padding, self.demodulate = 1 / math.sqrt(before * kernel**2), kernel // 2, demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        weight, style = self.weight * self.scale, self.style(w)
        x = F.conv2d(x * style[:, :, None, None], weight, padding=self.padding)
        if self.demodulate:
            x = x * demodulation(weight, style)[:, :, None, None]
        return x + self.bias[:, None, None]


def demodulation(weight: Tensor, style: Tensor) -> Tensor:
    """(B, O): by what each row's modulated weights are scaled to unit norm. `weight`: (O, I, k, k), `style`: (B, I)."""
    return torch.rsqrt(style.square() @ weight.square().sum((2, 3)).T + 1e-8)


def enlarge(x: Tensor) -> Tensor:
    """Twice the side. Bilinear: away from the border the filter [1, 3, 3, 1] of Karras et al. 2020."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def reduce(x: Tensor) -> Tensor:
    """Half the side, by the filter [1, 3, 3, 1] in both directions."""
    taps = torch.full((4,), 3 / 8, device=x.device, dtype=x.dtype)
    taps[::3] = 1 / 8  # filled on the device: numbers from the host would be waited for
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, stride=2, groups=x.shape[1])


class Mapping(nn.Module):
    """z (B, latent_dim) and the class -> w (B, style_dim); `mean` follows the average w of the training."""

    def __init__(self, latent_dim: int, style_dim: int, layers: int, num_classes: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        before = [latent_dim * (2 if num_classes else 1)] + [style_dim] * (layers - 1)
        self.layers = nn.ModuleList([Linear(size, style_dim, slowed=0.01) for size in before])
        self.register_buffer("mean", torch.zeros(style_dim))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = unit_moment(z)
        if self.embedding is not None:
            x = torch.cat([x, unit_moment(embedded(self.embedding, label))], dim=1)
        for layer in self.layers:
            x = activate(layer(x))
        if self.training and self.layers[0].weight.requires_grad:  # it follows the weights, so it rests while they do
            with torch.no_grad():
                self.mean.lerp_(x.mean(0), 0.005)
        return x


def unit_moment(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class Layer(nn.Module):
    """A modulated convolution, noise of a learnt strength, an activation."""

    def __init__(self, before: int, after: int, style_dim: int):
        super().__init__()
        self.conv = ModulatedConv(before, after, 3, style_dim)
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        return activate(self.conv(x, w) + self.strength * noise)


class Growth(nn.Module):
    """How many resolutions above 4x4 have come in, the last by its fraction; all of them until it is told otherwise. It
    goes with the weights, as an integer, which their averages copy: an average draws what the net draws by then."""

    ONE = 2**16  # resolution, in units
    ALL = 64 * ONE

    def __init__(self):
        super().__init__()
        self.register_buffer("units", torch.tensor(self.ALL))

    def reach(self, resolutions: float) -> None:
        self.units.fill_(round(resolutions * self.ONE))

    def share(self, resolution: int) -> Tensor:
        """() of what a resolution, counted from 1, adds: it comes in on the way from the one before to itself."""
        return (self.units / self.ONE - resolution + 1).clamp(0, 1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest) -> None:
        state_dict.setdefault(f"{prefix}units", torch.full_like(self.units, self.ALL))  # weights of older versions
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Generator(nn.Module):
    """z and the class -> images (B, C, size, size) in about [-1, 1], clamped in evaluation.

    `noise` (B, noise_size) is cut into a map for each layer. In training `z2` and `cross` (B,) give every layer from
    `cross` on another style (style mixing). `psi` (B,) draws w towards its mean (the truncation trick). `with_styles`
    returns w (B, layers, D) too. `growing`: resolutions come in as `growth` says.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        latent_dim: int,
        width: int,
        style_dim: int,
        layers: int,
        num_classes: int,
        growing: bool = False,
    ):
        super().__init__()
        self.growth = Growth() if growing else None
        stages = doublings(size) + 1
        widths = [width * min(8, 2**stage) for stage in reversed(range(stages))]
        self.sides = [4 * 2**stage for stage in range(stages)]
        self.mapping = Mapping(latent_dim, style_dim, layers, num_classes)
        self.constant = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.first = Layer(widths[0], widths[0], style_dim)
        self.ups = nn.ModuleList([Layer(widths[k - 1], widths[k], style_dim) for k in range(1, stages)])
        self.seconds = nn.ModuleList([Layer(widths[k], widths[k], style_dim) for k in range(1, stages)])
        self.to_image = nn.ModuleList(
            [ModulatedConv(size, channels, 1, style_dim, demodulate=False) for size in widths]
        )
        self.num_layers = 2 * stages - 1
        self.noise_sizes = [side**2 for side in [4, *[side for side in self.sides[1:] for _ in range(2)]]]
        self.noise_size = sum(self.noise_sizes)

    def forward(
        self,
        z: Tensor,
        noise: Tensor,
        label: Tensor | None = None,
        z2: Tensor | None = None,
        cross: Tensor | None = None,
        psi: Tensor | None = None,
        with_styles: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        w = self.styles(z, label, z2, cross, psi)
        images = self.synthesise(w, noise)
        if not self.training:
            images = images.clamp(-1, 1)
        return (images, w) if with_styles else images

    def styles(
        self, z: Tensor, label: Tensor | None, z2: Tensor | None, cross: Tensor | None, psi: Tensor | None
    ) -> Tensor:
        """w (B, num_layers, D)."""
        if z2 is None:
            w = self.mapping(z, label)[:, None].expand(-1, self.num_layers, -1)
        else:
            both = self.mapping(torch.cat([z, z2]), None if label is None else torch.cat([label, label]))
            first, second = both.chunk(2)
            is_second = torch.arange(self.num_layers, device=z.device) >= cross[:, None]
            w = torch.where(is_second[:, :, None], second[:, None], first[:, None])
        return w if psi is None else torch.lerp(self.mapping.mean.expand_as(w), w, psi[:, None, None])

    def synthesise(self, w: Tensor, noise: Tensor) -> Tensor:
        maps = [part.unflatten(1, (1, math.isqrt(part.shape[1]), -1)) for part in noise.split(self.noise_sizes, dim=1)]
        x = self.first(self.constant.expand(len(w), -1, -1, -1), w[:, 0], maps[0])
        images = self.to_image[0](x, w[:, 1])
        for k in range(1, len(self.sides)):
            x = self.ups[k - 1](enlarge(x), w[:, 2 * k - 1], maps[2 * k - 1])
            x = self.seconds[k - 1](x, w[:, 2 * k], maps[2 * k])
            more = self.to_image[k](x, w[:, min(2 * k + 1, self.num_layers - 1)])
            images = enlarge(images) + (more if self.growth is None else self.growth.share(k) * more)
        return images


class DownBlock(nn.Module):
    """Half the side, residual (Karras et al. 2020, figure 7c)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv1, self.conv2 = Conv(before, before, 3), Conv(before, after, 3)
        self.skip = Conv(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        skipped = self.skip(reduce(x))
        return (skipped + reduce(activate(self.conv2(activate(self.conv1(x)))))) / math.sqrt(2)


class Trunk(nn.Module):
    """Images (B, C, size, size) -> maps (B, channels, 4, 4). `growing` adds a way in at every resolution; what lies
    above the way is blended in as `growth` says (Karras et al. 2018, section 2)."""

    def __init__(self, channels: int, size: int, width: int, growing: bool = False):
        super().__init__()
        widths = [width * min(8, 2**stage) for stage in range(doublings(size) + 1)]
        self.blocks = nn.ModuleList([DownBlock(*pair) for pair in itertools.pairwise(widths)])
        self.from_image = nn.ModuleList([Conv(channels, size, 1) for size in (widths if growing else widths[:1])])
        self.growth = Growth() if growing else None
        self.channels = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        x = activate(self.from_image[0](images))
        for k, block in enumerate(self.blocks):
            x = block(x)
            if self.growth is not None:
                images = F.avg_pool2d(images, 2)
                share = self.growth.share(len(self.blocks) - k)
                x = torch.lerp(activate(self.from_image[k + 1](images)), x, share)
        return x


class Head(nn.Module):
    """Maps at 4x4 -> features (B, dim)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.conv, self.linear, self.dim = Conv(channels, dim, 3), Linear(dim * 16, dim), dim

    def forward(self, maps: Tensor) -> Tensor:
        return activate(self.linear(activate(self.conv(maps)).flatten(1)))
