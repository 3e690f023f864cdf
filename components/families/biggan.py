"""BigGAN: SAGAN grown up (Brock et al. 2019). A shared class embedding and parts of z condition every norm, rows of
weights are held orthogonal, and variety is traded for quality. Large batches come by training.accumulate."""

from __future__ import annotations

from components.families.base import Tiny
from components.gan.big import Big


class Model(Big):
    conditional = True


TINY = Tiny({"latent_dim": 7, "width": 4, "embedding_dim": 3})
