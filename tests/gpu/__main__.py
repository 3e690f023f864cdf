"""Everything that only a GPU can show, in one command: parity with the CPU, training speed, host synchronisation, the
engine, quality by the clock.

    python -m tests.gpu --data ../shared/data/fashion-mnist          # on one NVIDIA GPU, seven minutes
    python -m tests.gpu --toy                                        # on a CPU at toy size, under a minute

It needs torch, accelerate, safetensors, pydantic, numpy and Pillow; where diffusers can be imported, training is also
compared with it. Each part runs in a process of its own under a time limit: one that fails or overruns is reported, and
what it had found stays. OUT gets results.json, rewritten as findings come, and pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.gpu.part import run_part

SECONDS = {  # of seven minutes; what a part leaves goes to the next ones
    "environment": 40,  # imports on a fresh machine
    "parity": 62,
    "synchronisation": 20,
    "speed": 118,
    "engine": 55,
    "quality": 125,
}
MINUTES = 7.0
TOY_SECONDS = 240.0  # for any part: its size, not the clock, ends it
PRELOADED = ["torch", "torch._dynamo", "tests.gpu.part", *(f"tests.gpu.{name}" for name in SECONDS)]


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the four files of Fashion-MNIST; noise without it")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for results.json and pictures")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything together")
    parser.add_argument("--train-seconds", type=float, default=150.0, help="at most, of the training by the clock")
    parser.add_argument("--only", nargs="+", choices=list(SECONDS), default=list(SECONDS), help="some parts")
    parser.add_argument("--toy", action="store_true", help="on the CPU, at toy size")
    return parser.parse_args(argv)


def supervised(context: multiprocessing.context.BaseContext, name: str, settings: dict, results: Results) -> dict:
    """Runs one part under its limit; returns what it found and how it ended."""
    began, file = time.perf_counter(), settings["file"]
    process = context.Process(target=run_part, args=(name, settings), name=name)
    process.start()
    while process.is_alive() and time.perf_counter() - began < settings["limit"]:
        process.join(0.5)
        results.write(name, read(file))
    ended = "done" if process.exitcode == 0 else f"failed (exit {process.exitcode})"
    if process.is_alive():
        ended = f"stopped after {settings['limit']:.0f} s"
        with contextlib.suppress(ProcessLookupError):  # not yet, or no longer, a group of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    seconds = round(time.perf_counter() - began, 1)
    print(f"[{name}] {ended}, {seconds} s", flush=True)
    return {"ended": ended, "seconds": seconds, **read(file)}


def read(file: Path) -> dict:
    return json.loads(file.read_text()) if file.exists() else {}


class Results:
    """The one JSON file: what every part has found so far."""

    def __init__(self, path: Path, facts: dict):
        self.path, self.parts, self.facts = path, {}, facts

    def write(self, name: str, found: dict) -> None:
        if self.parts.get(name) != found:
            self.parts[name] = found
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps({**self.facts, **self.parts}, indent=1))
            new.replace(self.path)


def main(argv: list[str]) -> int:
    asked = arguments(argv)
    import torch

    if not asked.toy and not torch.cuda.is_available():
        print("tests.gpu: no CUDA device here; --toy runs the same on a CPU at toy size", file=sys.stderr)
        return 2
    began = time.perf_counter()
    asked.out.mkdir(parents=True, exist_ok=True)
    results = Results(asked.out / "results.json", {"toy": asked.toy, "minutes": asked.minutes})
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # who asks whether there is CUDA must not begin it before a fork
    context = multiprocessing.get_context("forkserver")  # torch is imported once
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as scratch:
        for place, name in enumerate(asked.only):
            later = sum(SECONDS[other] for other in asked.only[place + 1 :]) * asked.minutes / MINUTES
            left = asked.minutes * 60 - (time.perf_counter() - began)
            settings = {
                "device": "cpu" if asked.toy else "cuda",
                "toy": asked.toy,
                "limit": TOY_SECONDS if asked.toy else max(5.0, left - later),
                "out": asked.out,
                "data": asked.data,
                "file": Path(scratch) / f"{name}.json",
                "earlier": dict(results.parts),
                "train_seconds": asked.train_seconds,
            }
            found = supervised(context, name, settings, results)
            if found["ended"] != "done" and name == "environment":
                context = multiprocessing.get_context("spawn")  # slower to start, and nothing is inherited
                found = supervised(context, name, settings, results)
            results.write(name, found)
    print(f"results in {asked.out}, {time.perf_counter() - began:.0f} s", flush=True)
    return 0 if all(found.get("ended") == "done" for found in results.parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
