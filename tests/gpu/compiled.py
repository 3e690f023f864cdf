"""Training speed under torch.compile, which takes a minute before the first step."""

from __future__ import annotations

import functools
import time

import torch
from torch import nn

from tests.gpu import models
from tests.gpu.models import DEMO, MIDDLE, Size
from tests.gpu.part import Part
from tests.gpu.speed import OPTIONS, ours, steps

NEEDS = 45.0  # seconds
RUNS = {  # by mode of torch.compile
    "dit.default": (models.dit(384, 12, 256), "bfloat16"),
    "middle.default": (MIDDLE, "bfloat16 channels_last"),
    "demo.reduce-overhead": (DEMO, "bfloat16 channels_last"),
}


def run(part: Part) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    for name, (size, option) in list(RUNS.items())[: 1 if part.toy else len(RUNS)]:
        mode = name.partition(".")[2]
        work = functools.partial(compiled, part, models.sized(part, size), OPTIONS[option], mode)
        part.measure(name, work, needs=0 if part.toy else NEEDS)


def compiled(part: Part, size: Size, option: dict, mode: str) -> dict:
    """Images a second with torch.compile, and the seconds before the first timed step."""
    how = {"backend": "aot_eager"} if part.toy else {"mode": mode}

    def wrap(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        return torch.compile(net, **how), optimizer

    torch._dynamo.reset()
    began = time.perf_counter()
    rate = ours(part, size, **option, wrap=wrap)
    spent = time.perf_counter() - began - steps(part)[0] * size.batch_size / rate
    return {"images_per_second": rate, "seconds_before": spent}
