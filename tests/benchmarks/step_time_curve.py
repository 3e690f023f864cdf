"""How the time of one U-Net forward grows with its rows: what batching by the step can gain at most.

python -m tests.benchmarks.step_time_curve
"""

from __future__ import annotations

import statistics
import time

import torch

from tests.benchmarks.common import emit
from tests.infra.champion import champion_or_untrained, device

ROWS = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 15


@torch.inference_mode()
def milliseconds(denoiser, shape: tuple[int, ...], rows: int) -> float:
    """The median of one forward of `rows` rows."""
    x = torch.randn(rows, *shape, device=device())
    level = torch.linspace(0, 999, rows, device=device())
    label = torch.arange(rows, device=device()) % 10
    times = []
    for _ in range(REPEATS + 3):
        began = time.perf_counter()
        denoiser(x=x, level=level, label=label)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[3:])


def main() -> None:
    family, which = champion_or_untrained()
    curve = {rows: round(milliseconds(family.calls["denoiser"], family.data.shape, rows), 3) for rows in ROWS}
    gain = (ROWS[-1] / curve[ROWS[-1]]) / (1 / curve[1])
    emit("step_time_curve", round(gain, 2), f"rows/s at {ROWS[-1]} rows against 1", ">= 4", ms=curve, sampler=which)


if __name__ == "__main__":
    main()
