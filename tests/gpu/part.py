"""What a part of the run is given: its device, its sizes, its time, and where it writes what it finds."""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

TOGETHER = ("parity", "resume", "graphs", "synchronisation")  # parts that time nothing run side by side
SHOWN = 400  # characters of a message that are kept


@dataclass
class Part:
    """One part, in a process of its own. `earlier`: what the parts before it found, by their names. `limit`: seconds
    after which it is killed; `file` is rewritten with every finding, so what was found by then stays."""

    name: str
    device: torch.device
    toy: bool  # at a size that a CPU computes in seconds
    limit: float
    out: Path  # for pictures
    data: Path | None  # folder of Fashion-MNIST's four files
    file: Path
    earlier: dict = field(default_factory=dict)
    train_seconds: float = 0.0
    found: dict = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds until the part is killed."""
        return self.limit - (time.perf_counter() - self.began)

    def tell(self, name: str, value: object) -> None:
        """Prints a finding and keeps it; dots in `name` nest."""
        *groups, last = name.split(".")
        place = self.found
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value = rounded(value)
        written = self.file.with_suffix(".new")
        written.write_text(json.dumps(self.found))
        written.replace(self.file)
        print(f"[{self.name} {time.perf_counter() - self.began:5.1f} s] {name}: {json.dumps(value)}", flush=True)

    def measure(self, name: str, work: Callable[[], object], needs: float = 0.0) -> object:
        """Tells what `work` returns, or how it failed; left out where fewer than `needs` seconds are left. Returns it,
        or None."""
        if self.left() < needs:
            self.tell(name, f"left out: {self.left():.0f} s were left, {needs:.0f} s are needed")
            return None
        try:
            value = work()
        except Exception as error:
            traceback.print_exc()
            self.tell(name, f"failed: {type(error).__name__}: {str(error)[:SHOWN]}")
            return None
        finally:
            gc.collect()
            if self.on_gpu:
                torch.cuda.empty_cache()
        self.tell(name, value)
        return value


def rounded(value: object) -> object:
    """The same with four digits a number, in types that JSON knows."""
    if isinstance(value, dict):
        return {str(key): rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, int | str) else str(value)


def run_part(name: str, settings: dict) -> None:
    """Runs a part in the process that this is called in. `settings`: Part's other fields, the device by its name."""
    os.setsid()  # so that it can be ended with all that it started
    part = Part(name, torch.device(settings.pop("device")), **settings)
    if part.toy or name in TOGETHER:
        torch.set_num_threads(1)  # the fastest for nets as small as these
    try:
        importlib.import_module(f"tests.gpu.{name}").run(part)
    except Exception as error:
        traceback.print_exc()
        part.tell("failed", f"{type(error).__name__}: {str(error)[:SHOWN]}")
        sys.exit(1)
