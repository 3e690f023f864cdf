"""What `training.deterministic` costs on a GPU: images a second with deterministic algorithms and without."""

from __future__ import annotations

import os

import torch

from tests.gpu import models
from tests.gpu.models import DEMO, MIDDLE, Size
from tests.gpu.part import Part
from tests.gpu.resume import deterministic
from tests.gpu.speed import OPTIONS, ours

SIZES = {"demo": DEMO, "middle": MIDDLE, "dit": models.dit(384, 12, 128)}
KINDS = ("bfloat16", "bfloat16 cuda_graphs")


def run(part: Part) -> None:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA begins; what deterministic algorithms ask for
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    for name, size in SIZES.items():
        sized = models.sized(part, size)
        for kind in KINDS:
            part.measure(f"{name}.{kind}", lambda size=sized, kind=kind: rates(part, size, OPTIONS[kind]), needs=4)


def rates(part: Part, size: Size, option: dict) -> dict[str, float]:
    """Images a second of both, and the share of the rate that is left."""
    free = ours(part, size, **option)
    with deterministic():
        fixed = ours(part, size, **option)
    return {"free": free, "deterministic": fixed, "share": fixed / free}
