"""BigGAN: SAGAN grown up (Brock et al. 2019). A shared class embedding and parts of z condition every norm, rows of
weights are held orthogonal, and variety is traded for quality. Large batches come by training.accumulate."""

from __future__ import annotations

from torch import Tensor, nn

from components.data.info import DataInfo
from components.families.base import Tiny
from components.gan import big
from components.gan.base import GAN
from components.gan.networks import projection_residual
from components.sampling.requests import Request


class Model(GAN):
    Config = big.BigConfig
    Settings = big.BigSettings
    conditional = True

    def __init__(self, config: big.BigConfig, data: DataInfo):
        super().__init__(config, data)
        self.calls = {"generator": big.standing_statistics(self)}

    def networks(self) -> dict[str, nn.Module]:
        return projection_residual(self, **big.generator_options(self.config))

    def sampling_inputs(self, request: Request) -> dict[str, Tensor]:
        return big.truncated_inputs(self, request)


TINY = Tiny({"latent_dim": 7, "width": 4, "embedding_dim": 3})
