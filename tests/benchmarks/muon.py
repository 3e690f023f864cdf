"""Muon against AdamW at equal CPU seconds, for both backbones of the demo's latent diffusion: held-out denoising loss,
three seeds.

    python -m tests.benchmarks.muon        # three seeds: some forty minutes of one core
    python -m tests.benchmarks.muon 0      # one

It shares what is measured with tests.benchmarks.dit_vs_unet.
"""

from __future__ import annotations

import sys

from tests.benchmarks import digits
from tests.benchmarks.common import emit
from tests.benchmarks.dit_vs_unet import table

NETS = ("unet", "dit")


def main(argv: list[str] | None = None) -> None:
    variants = [*NETS, *(f"{net}_muon" for net in NETS)]
    _, seeds = digits.asked(argv, variants)
    found = table(variants, seeds)
    ratios = {net: round(found[f"{net}_muon"]["held_out_loss"] / found[net]["held_out_loss"], 3) for net in NETS}
    what = "held-out loss with Muon / with AdamW, transformer, equal CPU seconds"
    emit("muon", ratios["dit"], what, "below 1 on every seed, or said to be no gain", ratios=ratios, table=found)


if __name__ == "__main__":
    main(sys.argv[1:])
