"""BigGAN: SAGAN grown up (Brock et al. 2019). A shared class embedding and parts of z condition every norm, rows of
weights are held orthogonal, and variety is traded for quality. Large batches come by training.accumulate."""

from __future__ import annotations

from components.gan.big import Big


class BigGAN(Big):
    conditional = True
