"""Randomness as an argument: streams of numbers that are pure functions of a key.

A key belongs to a row (one training row, one image to be sampled), never to a process, so a row draws the same
numbers alone, in any batch, on any rank and on any device. The generator is SplitMix64 (Steele, Lea and Flood 2014,
"Fast splittable pseudorandom number generators", Figure 14), written in wrapping int64 torch arithmetic.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: the odd increment of SplitMix64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of int64 whose output bits all depend on all input bits."""
    z = _nearly_mixed(z)
    return _shift(z, 31).bitwise_xor_(z)


def _nearly_mixed(z: Tensor) -> Tensor:
    """`mix` but for its last step, which leaves the high 33 bits as they are."""
    z = _shift(z, 30).bitwise_xor_(z).mul_(_MIX1)
    return _shift(z, 27).bitwise_xor_(z).mul_(_MIX2)


def _shift(z: Tensor, bits: int) -> Tensor:
    # torch's >> keeps the sign; the mask makes it the logical shift that SplitMix64 needs
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def hash64(*parts: int | str) -> int:
    """A stable signed 64-bit integer from integers and strings, equal in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass(frozen=True)
class Draws:
    """Independent random streams, one a row. `keys`: (B,) int64, on the device where numbers are wanted."""

    keys: Tensor

    @staticmethod
    def of(seed: int, step: int, rows: Tensor) -> Draws:
        """The draws of training rows: `rows` (B,) int64 are places in the global batch of `step`."""
        return Draws(mix(mix(rows * _GAMMA) + hash64(seed, step)))

    @staticmethod
    def of_seeds(seeds: Tensor) -> Draws:
        """The draws of images to be sampled, one seed an image. `seeds`: (B,) int64."""
        return Draws(mix(mix(seeds * _GAMMA) + hash64("sample")))

    def to(self, device: torch.device) -> Draws:
        device = torch.device(device)
        return Draws(self.keys.to(device, non_blocking=device.type != "cpu"))

    def fold(self, name: int | str) -> Draws:
        """Draws of the same rows that are independent of these, one kind for every name."""
        return Draws(mix(self.keys + hash64(name)))

    def folds(self, names: Sequence[int | str]) -> Tensor:
        """(B, names) int64, the keys of `fold` by each of the names."""
        return mix(self.keys[:, None] + torch.tensor([hash64(name) for name in names], device=self.keys.device))

    def uniform(self, name: int | str, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) float32, uniform in the open interval (0, 1), a function of key and name."""
        return self.fold(name).uniforms(math.prod(shape)).reshape(-1, *shape)

    def uniforms(self, count: int) -> Tensor:
        """(B, count) float32: as `uniform`, of draws that its name was folded into before."""
        return _unit(_shift(_nearly_mixed(self._counted(count)), 41))

    def normal(self, name: int | str, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) float32, standard normal by Box and Muller (1958), a function of key and name."""
        size = math.prod(shape)
        words = self.fold(name)._words((size + 1) // 2)
        # one 64-bit word gives the radius its high 23 bits and the angle the next 23
        radius = torch.sqrt(-2 * torch.log(_unit(_shift(words, 41))))
        angle = 2 * math.pi * _unit((words >> 17) & 0x7FFFFF)
        pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return pairs[:, :size].reshape(-1, *shape)

    def integers(self, name: int | str, high: int) -> Tensor:
        """(B,) int64 in [0, high)."""
        return (self.uniform(name) * high).long().clamp(max=high - 1)

    def _words(self, count: int) -> Tensor:
        return mix(self._counted(count))

    def _counted(self, count: int) -> Tensor:
        return self.keys[:, None] + torch.arange(1, count + 1, device=self.keys.device) * _GAMMA


def _unit(bits23: Tensor) -> Tensor:
    # 23 bits and a half are exact in float32; with 24 the largest would round to 1
    return bits23.float().add_(0.5).mul_(2.0**-23)
