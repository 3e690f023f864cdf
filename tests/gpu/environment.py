"""What the run is on: processor, GPU, driver, libraries."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import torch

from tests.gpu.part import Part

LIBRARIES = ("accelerate", "diffusers", "safetensors", "pydantic", "numpy", "triton", "PIL")


def run(part: Part) -> None:
    part.tell("python", platform.python_version())
    part.tell("torch", torch.__version__)
    part.tell("libraries", {name: version(name) for name in LIBRARIES})
    part.tell("cpu", {"count": os.cpu_count(), "threads": torch.get_num_threads(), "machine": platform.machine()})
    part.tell("compilers", {name: shutil.which(name) is not None for name in ("gcc", "g++", "nvcc")})
    if not part.on_gpu:
        return
    found = torch.cuda.get_device_properties(part.device)
    part.tell(
        "gpu",
        {
            "name": found.name,
            "memory_gib": found.total_memory / 2**30,
            "multiprocessors": found.multi_processor_count,
            "capability": f"{found.major}.{found.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        },
    )
    assert torch.ones(2, device=part.device).sum().item() == 2  # fails where CUDA was begun before a fork
    part.measure("driver", driver)


def version(name: str) -> str:
    try:
        module = __import__(name)
    except Exception as error:
        return f"missing ({type(error).__name__})"
    return str(getattr(module, "__version__", "?"))


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
