"""Progress of work on a cluster, shown where the command was typed: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from ray.util.queue import Empty, Queue
from tqdm import tqdm

LINE_EVERY = 10.0  # seconds, where the output is no terminal


class Progress:
    """While its block runs, shows the reports that workers put into `queue`: mappings with `step`,
    `images_per_second` and figures."""

    def __init__(self, name: str, total: int):
        self.queue = Queue(actor_options={"num_cpus": 0})
        self._name, self._total = name, total
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._done.set()
        self._thread.join()
        self.queue.shutdown(force=True)

    def _show(self) -> None:
        terminal = sys.stderr.isatty()
        show = _Bar(self._name, self._total) if terminal else _Lines(self._name, self._total)
        while True:
            finished = self._done.is_set()  # read before the queue, so that nothing put earlier is missed
            try:
                show.update(self.queue.get(timeout=0.2))
            except Empty:
                if finished:
                    break
        show.close()


def _describe(report: dict[str, float]) -> str:
    shown = [
        f"{value:.0f} images/s" if name == "images_per_second" else f"{name} {value:.4g}"
        for name, value in report.items()
        if name != "step"
    ]
    return "  ".join(shown)


class _Bar:
    def __init__(self, name: str, total: int):
        layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}] {postfix}"
        self._bar = tqdm(total=total, desc=name, bar_format=layout, dynamic_ncols=True)

    def update(self, report: dict[str, float]) -> None:
        self._bar.set_postfix_str(_describe(report), refresh=False)
        self._bar.update(report["step"] - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _Lines:
    def __init__(self, name: str, total: int):
        self._name, self._total = name, total
        self._first: tuple[float, float] | None = None
        self._last = 0.0

    def update(self, report: dict[str, float]) -> None:
        now, step = time.monotonic(), report["step"]
        self._first = self._first or (now, step)
        if now - self._last < LINE_EVERY and step < self._total:
            return
        self._last = now
        elapsed, steps = now - self._first[0], step - self._first[1]
        left = f"  {elapsed / steps * (self._total - step):.0f} s left" if steps and step < self._total else ""
        print(f"{self._name}: step {step:.0f}/{self._total}  {_describe(report)}{left}", flush=True)

    def close(self) -> None:
        pass
