"""Everything that only a GPU can show, in one command: parity with the CPU, exact resuming, CUDA graphs, host
synchronisation, training speed and what determinism costs, the engine, tokens, quality by the clock.

    python -m tests.gpu --data ../shared/data/fashion-mnist          # on one NVIDIA GPU, eight minutes
    python -m tests.gpu --toy                                        # on a CPU at toy size, three minutes

It needs torch, accelerate, safetensors, pydantic, numpy, Pillow and, for sound and films, PyAV; where diffusers and
transformers can be imported, training and tokens are also compared with them. Each part runs in a process of its own
under a time limit: one that fails or overruns is reported, and what it had found stays. OUT gets results.json,
rewritten as findings come, and pictures.
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
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.part import TOGETHER, run_part

SECONDS = {  # of eight minutes; what a part leaves goes to the next ones
    "environment": 30,  # imports on a fresh machine
    "parity": 80,
    "resume": 80,
    "graphs": 80,
    "synchronisation": 80,
    "speed": 70,
    "share": 60,
    "determinism": 25,
    "engine": 55,
    "tokens": 60,
    "quality": 100,
    "compiled": 0,  # where time is left
}
MINUTES = 8.0
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


def supervised(
    context: multiprocessing.context.BaseContext, names: Sequence[str], settings: dict, results: Results
) -> bool:
    """Runs parts side by side under their limit, and writes what they found and how they ended; whether all did as they
    should."""
    began, running, good = time.perf_counter(), {}, True
    for name in names:
        given = {**settings, "file": settings["scratch"] / f"{name}.json"}
        del given["scratch"]
        running[name] = context.Process(target=run_part, args=(name, given), name=name)
        running[name].start()
    while running:
        time.sleep(0.3)
        for name, process in list(running.items()):
            found, seconds = read(settings["scratch"] / f"{name}.json"), round(time.perf_counter() - began, 1)
            results.write(name, found)
            if ended := how_it_ended(process, late=seconds > settings["limit"]):
                del running[name]
                good = good and ended == "done"
                print(f"[{name}] {ended}, {seconds} s", flush=True)
                results.write(name, {"ended": ended, "seconds": seconds, **found})
    return good


def how_it_ended(process: multiprocessing.Process, late: bool) -> str | None:
    """In words, None while it runs; one that is late is stopped."""
    if process.is_alive() and late:
        with contextlib.suppress(ProcessLookupError):  # not yet, or no longer, a group of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        return "stopped at its limit"
    if process.is_alive():
        return None
    return "done" if process.exitcode == 0 else f"failed (exit {process.exitcode})"


def groups(asked: Sequence[str]) -> list[tuple[str, ...]]:
    """The parts that were asked for, in order, those that can run side by side together."""
    together = tuple(name for name in asked if name in TOGETHER)
    return [together if name in together else (name,) for name in asked if name not in together[1:]]


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
        steps = groups(asked.only)
        for place, names in enumerate(steps):
            later = sum(SECONDS[others[0]] for others in steps[place + 1 :]) * asked.minutes / MINUTES
            left = asked.minutes * 60 - (time.perf_counter() - began)
            settings = {
                "device": "cpu" if asked.toy else "cuda",
                "toy": asked.toy,
                "limit": TOY_SECONDS if asked.toy else max(5.0, left - later),
                "out": asked.out,
                "data": asked.data,
                "scratch": Path(scratch),
                "earlier": dict(results.parts),
                "train_seconds": asked.train_seconds,
            }
            if not supervised(context, names, settings, results) and "environment" in names:
                context = multiprocessing.get_context("spawn")  # slower to start, and nothing is inherited
                supervised(context, names, settings, results)
    print(f"results in {asked.out}, {time.perf_counter() - began:.0f} s", flush=True)
    return 0 if all(found.get("ended") == "done" for found in results.parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
