"""How a benchmark tells its result: one JSON line, printed and appended to bench.jsonl at the project's root."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parents[2] / "bench.jsonl"


def hardware() -> str:
    """What the figure was measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else cpu}, {os.cpu_count()} cores"


def emit(name: str, value: float, unit: str, target: str, **more: object) -> None:
    """Prints and records one result; `more` holds what the figure was made of."""
    line = json.dumps(
        {"name": name, "value": value, "unit": unit, "target": target, "hardware": hardware(), **more}, default=str
    )
    with RESULTS.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)
