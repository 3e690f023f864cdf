"""The fraction of the device's matrix peak that the demo's U-Net step reaches, forward and backward.

FLOPs by torch's counter, which counts matrix products, convolutions and attention; the peak is that of a large matrix
product at the same precision, measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from components.data.dataset import batches
from tests.benchmarks.common import as_a_worker, demo, emit
from tests.benchmarks.rates import noise

SIZE, REPEATS = 2048, 7
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(work: Callable[[], object], device: str) -> float:
    """The median time of some work, warm."""
    times = []
    for _ in range(REPEATS + 2):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def peak(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a product of two square matrices."""
    left, right = torch.randn(2, SIZE, SIZE, device=device, dtype=dtype)
    return 2 * SIZE**3 / seconds(lambda: left @ right, device)


def main() -> None:
    as_a_worker()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    family, info, batch_size = demo("ldm")
    family.nets.to(device)
    net, (phase,) = family.nets["denoiser"], family.phases
    batch = next(batches(noise(info, batch_size), batch_size)).to(torch.device(device))

    def step(dtype: torch.dtype) -> None:
        net.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = phase.loss(net, batch)["loss"]
        loss.backward()

    with FlopCounterMode(display=False) as counter:
        step(torch.float32)
    flops = counter.get_total_flops()
    parts = {}
    for name, dtype in PRECISIONS.items():
        taken, most = seconds(lambda dtype=dtype: step(dtype), device), peak(dtype, device)
        parts[name] = {
            "fraction": round(flops / taken / most, 3),
            "step_ms": round(1000 * taken, 1),
            "gflops": round(flops / taken / 1e9, 1),
            "peak_gflops": round(most / 1e9, 1),
        }
    gflop = round(flops / batch_size / 1e9, 3)
    threads = torch.get_num_threads()
    emit(
        "mfu",
        parts["float32"]["fraction"],
        "of the matrix peak, float32",
        "told",
        **parts,
        gflop_per_row=gflop,
        threads=threads,
    )


if __name__ == "__main__":
    main()
