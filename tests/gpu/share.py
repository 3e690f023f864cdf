"""Where a GPU's time goes in training: the share of its matrix peak, the share of a step outside forward, backward and
optimizer, and kernels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from components.data.dataset import batches
from tests.benchmarks.rates import timed
from tests.gpu import models, profile
from tests.gpu.models import DEMO, MIDDLE, Size
from tests.gpu.part import Part
from tests.gpu.speed import BEST, OPTIONS, ours

PEAK_SIZE = 8192
BATCH_SIZES = (32, 64, 256)
WIDTHS = {128: 256, 192: 192, 320: 96}  # and the rows of a batch, which is halved until it fits
DITS = {(384, 12): 256, (768, 12): 256}  # likewise by width and depth: DiT-S and DiT-B (Peebles and Xie 2023, Table 1)


def run(part: Part) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    part.measure("peak_tflops", lambda: peaks(part))
    sizes = {"demo": models.sized(part, DEMO), "middle": models.sized(part, MIDDLE)}
    best = part.earlier.get("speed", {}).get("best", {}).get("option", BEST)
    part.tell("option", best)
    middle = sizes["middle"]
    for name, size in sizes.items():
        part.measure(f"outside.{name}", lambda size=size: profile.outside(part, size, OPTIONS[best]))
    for width, rows in WIDTHS.items():
        size = models.sized(part, models.of_width(width, rows))
        part.measure(f"peak_share.{width}", lambda size=size: peak_share(part, size, OPTIONS[best]), needs=8)
    for (width, depth), rows in DITS.items():
        size = models.sized(part, models.dit(width, depth, rows))
        part.measure(f"peak_share.dit_{width}", lambda size=size: peak_share(part, size, OPTIONS[best]), needs=8)
    for rows in BATCH_SIZES:
        size = middle if part.toy else replace(middle, batch_size=rows)
        part.measure(f"batch_sizes.{rows}", lambda size=size: ours(part, size, **OPTIONS[best]), needs=5)
    sizes["dit"] = models.sized(part, models.dit(384, 12, 256))
    for name, size in sizes.items():
        part.measure(f"profile.{name}", lambda size=size: profile.kernels(part, size, OPTIONS[best]), needs=5)


def peaks(part: Part) -> dict[str, float]:
    """TFLOP/s of a product of two square matrices of random numbers."""
    size, found = 256 if part.toy else PEAK_SIZE, {}
    for dtype in (torch.bfloat16, torch.float32):
        left, right = torch.randn(2, size, size, device=part.device, dtype=dtype)
        times = [timed(lambda left=left, right=right: left @ right) for _ in range(3 if part.toy else 13)]
        found[str(dtype).removeprefix("torch.")] = 2 * size**3 / sorted(times[2:])[len(times[2:]) // 2] / 1e12
    return found


def peak_share(part: Part, size: Size, option: dict) -> dict:
    """Of the matrix peak at bfloat16: forward and backward alone, and the whole loop."""
    while True:
        try:
            return _peak_share(part, size, option)
        except torch.OutOfMemoryError:
            if size.batch_size < 8:
                raise
            torch.cuda.empty_cache()
            size = replace(size, batch_size=size.batch_size // 2)


def _peak_share(part: Part, size: Size, option: dict) -> dict:
    flops, taken, parameters = forward_backward(part, size, option)
    peak = 1e12 * part.found["peak_tflops"]["bfloat16"]
    rate = ours(part, size, **{**option, "precision": "bfloat16"})
    return {
        "forward_backward": flops / taken / peak,
        "loop": flops / size.batch_size * rate / peak,
        "tflops": flops / taken / 1e12,
        "gflop_per_row": flops / size.batch_size / 1e9,
        "batch_size": size.batch_size,
        "images_per_second": rate,
        "parameters": parameters,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if part.on_gpu else 0.0,
    }


def forward_backward(part: Part, size: Size, option: dict) -> tuple[int, float, int]:
    """FLOPs and seconds of one forward and backward pass in bfloat16, and how many parameters there are."""
    family = models.family(size, part.device, option.get("channels_last", False))
    net, (phase,) = family.nets[models.net_name(family)], family.phases
    batch = next(batches(models.latents(size), size.batch_size)).to(part.device)

    def step() -> None:
        net.zero_grad()
        with torch.autocast(part.device.type, torch.bfloat16):
            loss = phase.loss(net, batch)["loss"]
        loss.backward()

    with FlopCounterMode(display=False) as counter:
        step()
    times = sorted(timed(step) for _ in range(3 if part.toy else 8))
    return counter.get_total_flops(), times[len(times) // 2], sum(weight.numel() for weight in net.parameters())
