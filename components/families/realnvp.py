"""RealNVP: a multi-scale flow of couplings by checkerboards and by channels (Dinh et al. 2017).

Batch normalisation, which makes rows depend on each other, is replaced by activation norms."""

from __future__ import annotations

from pydantic import Field

from components.families.base import Tiny
from components.flows import base
from components.nets.flows.layers import ActNorm, CheckerboardCoupling, Coupling, Invertible, Logit, Squeeze
from components.nets.flows.multiscale import MultiscaleFlow

_COUPLINGS = 3  # of each kind, a scale (section 4.1)


class Config(base.Config):
    blocks: int = Field(2, ge=0)  # residual blocks of a coupling's net
    alpha: float = Field(0.05, gt=0, lt=1)  # how far values stay from the logit's ends


class Model(base.Flow):
    Config = Config

    def build(self, num_classes: int) -> MultiscaleFlow:
        config, channels = self.config, self.data.shape[0]
        scales: list[list[Invertible]] = []
        for number in range(config.scales):
            layers: list[Invertible] = [] if number else [Logit(config.alpha)]
            for parity in range(_COUPLINGS):
                layers += [
                    CheckerboardCoupling(channels, config.width, num_classes, config.blocks, parity % 2),
                    ActNorm(channels),
                ]
            layers.append(Squeeze())
            channels *= 4
            for place in range(_COUPLINGS):
                coupling = Coupling(channels, config.width, num_classes, config.blocks, keeps_first=place % 2 == 0)
                layers += [coupling, ActNorm(channels)]
            scales.append(layers)
            channels //= 2
        return MultiscaleFlow(scales, self.data.shape, num_classes)


TINY = Tiny({"width": 6, "blocks": 1, "scales": 1})
