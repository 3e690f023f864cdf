"""Brings torchvision, and with it torch-fidelity and torchmetrics' LPIPS, into a process whose torch may be of another
build: a CUDA torchvision beside a CPU torch lacks two schemas, which no figure uses."""

import importlib.util
import os
import sys

import pytest
import torch

_DEFINED = []


def need(*names: str) -> None:
    """Skips the test, with the reason, unless the extra `metrics` is there. TEST_METRICS_EXTRA may name a folder that
    holds it apart: a torchvision of another build must not lie where torchmetrics would import it by itself."""
    folder = os.environ.get("TEST_METRICS_EXTRA")
    if folder and folder not in sys.path:
        sys.path.append(folder)
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; it comes with the extra `metrics`")
    if "torchvision" not in sys.modules and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DEFINED.append(library)  # a schema goes with its library
