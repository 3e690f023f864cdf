"""Glow: a multi-scale flow of activation norms, 1x1 convolutions and couplings (Kingma and Dhariwal 2018)."""

from __future__ import annotations

from pydantic import Field

from components.families.base import Tiny
from components.flows import base
from components.nets.flows.layers import ActNorm, Coupling, Invertible, InvertibleConv, Squeeze
from components.nets.flows.multiscale import MultiscaleFlow


class Config(base.Config):
    steps: int = Field(8, ge=1)  # of flow, a scale


class Model(base.Flow):
    Config = Config

    def build(self, num_classes: int) -> MultiscaleFlow:
        config, channels, scales = self.config, self.data.shape[0], []
        for _ in range(config.scales):
            channels *= 4
            layers: list[Invertible] = [Squeeze()]
            for _ in range(config.steps):
                layers += [
                    ActNorm(channels),
                    InvertibleConv(channels),
                    Coupling(channels, config.width, num_classes),
                ]
            scales.append(layers)
            channels //= 2
        return MultiscaleFlow(scales, self.data.shape, num_classes)


TINY = Tiny({"width": 8, "steps": 2, "scales": 1})
