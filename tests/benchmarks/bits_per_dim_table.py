"""Every model with a likelihood on the demo's digits: bits per dimension of held-out and of training images beside
distance and agreement: rows of the table of paradigms.

    python -m tests.benchmarks.bits_per_dim_table                  # every model, three seeds
    python -m tests.benchmarks.bits_per_dim_table 0 glow pixelcnn  # one seed of those
"""

from __future__ import annotations

import sys

from tests.benchmarks import paradigms

MODELS = ("realnvp", "glow", "tarflow", "pixelcnn", "vae", "vdvae", "ddpm")


def main(argv: list[str] | None = None) -> None:
    paradigms.main(argv, MODELS, "bits_per_dim_table")


if __name__ == "__main__":
    main(sys.argv[1:])
