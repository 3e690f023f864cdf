"""A composite of two samplers: what a trained GAN draws, a diffusion model redraws from. The GAN is an input."""

from __future__ import annotations

import dataclasses

from components.composite.base import Composite, trained_part
from components.config import Strict
from components.data.info import DataInfo
from components.families import dcgan, latent_diffusion
from components.families.base import Role
from components.sampling.requests import Conditions, Request, Source
from components.sampling.trajectories import Trajectory

STRENGTH = 0.7  # how much noise is put on the draft


class Config(Strict):
    # what redraws the draft
    redraw: latent_diffusion.Model.Config = latent_diffusion.Model.Config(
        backbone={"widths": (8, 16), "heads": 2, "context_dim": 8}
    )


class Settings(Strict):
    draft: dcgan.Model.Settings = dcgan.Model.Settings()
    redraw: latent_diffusion.Model.Settings = latent_diffusion.Model.Settings()


class Model(Composite):
    Config = Config
    Settings = Settings
    accepts = frozenset({"label"})

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        self.adopt(draft=trained_part(data.inputs["draft"]), redraw=latent_diffusion.Model(config.redraw, data))
        self.phases = self.phases_of("redraw")

    @classmethod
    def roles(cls, config: Config) -> dict[str, Role]:
        return {"draft": Role(family="dcgan", needed=True, kept=True)}

    def _trajectory(self, request: Request) -> Trajectory:
        images = yield from self.part("draft", request, Conditions(), shows=False)
        source = Source(images.clamp(-1, 1), STRENGTH)
        return (yield from self.part("redraw", request, dataclasses.replace(request.conditions, source=source)))
