"""Our training loop against a plain one on diffusers' networks, written as its example scripts are.

Both train the demo's U-Net, of the same number of parameters, on the same latents on disk, in the same batches of rows,
with AdamW, clipping, a cosine schedule and an average of weights, in one process on all cores. The figure is images/s
of ours at the precision that pays on this device over images/s of theirs at the precision that pays there, the sides
alternating; the rates and ratios at each precision stand beside it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from components.data.dataset import Dataset
from tests.benchmarks.common import as_a_worker, demo, emit, write_noise
from tests.benchmarks.diffusers_peer import ACCELERATE, Theirs, let_torchvision_import, their_rate
from tests.benchmarks.rates import fit_rate, in_turn

STEPS, WARM, ROUNDS = 6, 2, 3


def sides(dataset: Dataset) -> dict[str, Callable[[], float]]:
    """Each side at each precision, as functions that measure a rate."""

    def ours(precision: str) -> float:
        family, _, batch_size = demo("ldm")
        as_a_worker()
        rate = fit_rate(family, dataset, batch_size, STEPS, WARM, precision=precision, clip_norm=1.0)
        torch.use_deterministic_algorithms(False)
        return rate

    def theirs(precision: str) -> float:
        family, _, batch_size = demo("ldm")
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        return their_rate(family, dataset, batch_size, STEPS, WARM, precision)

    return {
        f"{name} {precision}": lambda run=run, precision=precision: run(precision)
        for precision in ACCELERATE
        for name, run in (("ours", ours), ("theirs", theirs))
    }


def main() -> None:
    let_torchvision_import()
    family, info, _ = demo("ldm")
    counts = [sum(p.numel() for p in net.parameters()) for net in (family.nets["denoiser"], Theirs(family))]
    assert counts[0] == counts[1], "the two sides must train equally many parameters"
    with tempfile.TemporaryDirectory() as temporary:
        rates = in_turn(sides(write_noise(Path(temporary) / "latents", info, 1438)), ROUNDS)
    best = {name: max(rates[f"{name} {precision}"] for precision in ACCELERATE) for name in ("ours", "theirs")}
    emit(
        "train_vs_diffusers",
        round(best["ours"] / best["theirs"], 2),
        "images/s of ours / of a loop on diffusers, each at its faster precision",
        ">= 1.5",
        **{precision: round(rates[f"ours {precision}"] / rates[f"theirs {precision}"], 2) for precision in ACCELERATE},
        ours_best_to_their_default=round(best["ours"] / rates["theirs float32"], 2),
        images_per_second={name: round(rate) for name, rate in rates.items()},
        parameters=counts[0],
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
