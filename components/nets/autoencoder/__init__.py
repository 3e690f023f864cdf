"""The autoencoder of latent diffusion, and what its training may put beside it: a codebook, a discriminator."""

from components.nets.autoencoder.kl import AutoencoderKL

__all__ = ["AutoencoderKL"]
