"""The model families. `FAMILIES` is the one place that lists them: a new family is a file here and a line there."""

from __future__ import annotations

from components.errors import ConfigError
from components.families.base import Family
from components.families.bigbigan import BigBiGAN
from components.families.biggan import BigGAN
from components.families.cgan import CGAN
from components.families.dcgan import DCGAN
from components.families.judge import Judge
from components.families.latent_diffusion import LatentDiffusion
from components.families.r3gan import R3GAN
from components.families.sagan import SAGAN
from components.families.stable_diffusion import StableDiffusion
from components.families.stylegan2 import StyleGAN2
from components.families.vae import VAE
from components.families.wgan import WGAN
from components.families.wgan_gp import WGANGP

FAMILIES: dict[str, type[Family]] = {
    "vae": VAE,
    "judge": Judge,
    "latent_diffusion": LatentDiffusion,
    "stable_diffusion": StableDiffusion,
    "dcgan": DCGAN,
    "wgan": WGAN,
    "wgan_gp": WGANGP,
    "cgan": CGAN,
    "sagan": SAGAN,
    "biggan": BigGAN,
    "bigbigan": BigBiGAN,
    "stylegan2": StyleGAN2,
    "r3gan": R3GAN,
}


def family_class(name: str, where: str = "family") -> type[Family]:
    """Raises ConfigError, naming `where`, if there is no such family."""
    if name not in FAMILIES:
        raise ConfigError(f"{where}: expected one of {', '.join(FAMILIES)}, found {name!r}")
    return FAMILIES[name]
