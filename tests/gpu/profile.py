"""Where a training step's time goes: outside the network, and by kernel."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from components.data.dataset import Batch, batches
from components.training.loop import TrainingConfig, fit
from tests.gpu import models
from tests.gpu.models import Size
from tests.gpu.part import Part

STEPS, WARM = 12, 6
PARTS = ("forward", "backward", "optimizer")


class Marks:
    """Moments on the device's own clock: events on a GPU, the host's clock elsewhere."""

    def __init__(self, on_gpu: bool):
        self.on_gpu, self.open, self.spans = on_gpu, {}, {}

    def now(self) -> torch.cuda.Event | float:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self, name: str) -> None:
        self.open[name] = self.now()

    def end(self, name: str) -> None:
        self.spans.setdefault(name, []).append((self.open.pop(name), self.now()))

    def seconds(self, name: str) -> float:
        """Of all spans together; to be asked when the device has finished."""
        if self.on_gpu:
            return sum(begin.elapsed_time(end) for begin, end in self.spans[name]) / 1000
        return sum(end - begin for begin, end in self.spans[name])


@contextlib.contextmanager
def marked_backward(marks: Marks) -> Iterator[None]:
    """Marks every call of Tensor.backward."""
    backward = Tensor.backward

    def marking(self: Tensor, *arguments: object, **options: object) -> None:
        marks.begin("backward")
        backward(self, *arguments, **options)
        marks.end("backward")

    Tensor.backward = marking
    try:
        yield
    finally:
        Tensor.backward = backward


def outside(part: Part, size: Size, option: dict) -> dict[str, float]:
    """Percent of the loop's time outside forward, backward and optimizer: data, noise, clipping, averages, figures."""
    steps, warm = (2, 1) if part.toy else (STEPS, WARM)
    marks = Marks(part.on_gpu)

    def wrap(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        net.register_forward_pre_hook(lambda *_: marks.begin("forward"))
        net.register_forward_hook(lambda *_: marks.end("forward"))
        optimizer.register_step_pre_hook(lambda *_: marks.begin("optimizer"))
        optimizer.register_step_post_hook(lambda *_: marks.end("optimizer"))
        return net, optimizer

    def timed(stream: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(stream):
            if number == warm:
                marks.spans.clear()
                marks.begin("all")
            yield batch

    def saved(state: object) -> None:
        marks.end("all")

    with marked_backward(marks):
        # marks are no part of a recording
        loop(part, size, {**option, "cuda_graphs": False}, warm + steps, wrap, timed, saved)
    if part.on_gpu:
        torch.cuda.synchronize()
    whole = marks.seconds("all")
    shares = {name: 100 * marks.seconds(name) / whole for name in PARTS}
    return {"percent": 100 - sum(shares.values()), **shares, "step_ms": 1000 * whole / steps}


def loop(part: Part, size: Size, option: dict, steps: int, wrap, through, save) -> None:
    """The training loop, its batches passed `through` a function."""
    family = models.family(size, part.device, option.get("channels_last", False))
    stream = (batch.to(part.device) for batch in batches(models.latents(size), size.batch_size))
    config = TrainingConfig(
        steps=steps,
        batch_size=size.batch_size,
        precision=option["precision"],
        cuda_graphs=option.get("cuda_graphs", False),
        clip_norm=1.0,
        save_every=steps,
    )
    fit(family, through(stream), config, start=None, wrap=wrap, report=lambda step, f: f, save=save)


def kernels(part: Part, size: Size, option: dict) -> dict:
    """By the profiler: how much of the wall time the GPU computes, operators by time on the device, and those that the
    host spends most on."""
    steps, warm = (2, 1) if part.toy else (4, WARM)
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if part.on_gpu else []
    profiler = torch.profiler.profile(activities=activities)
    span: list[float] = []

    def watched(stream: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(stream):
            if number == warm:
                profiler.start()
                span.append(time.perf_counter())
            yield batch

    def saved(state: object) -> None:
        if part.on_gpu:
            torch.cuda.synchronize()
        span.append(time.perf_counter())
        profiler.stop()

    loop(part, size, option, warm + steps, lambda net, optimizer: (net, optimizer), watched, saved)
    events, wall = profiler.key_averages(), span[1] - span[0]
    device_time = {event.key: event.self_device_time_total / 1e6 for event in events}
    host_time = {event.key: event.self_cpu_time_total / 1e6 for event in events}
    told = {"step_ms_profiled": 1000 * wall / steps, "calls_per_step": sum(event.count for event in events) / steps}
    if part.on_gpu:
        kernels_alone = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(event.self_device_time_total for event in kernels_alone) / 1e6
        told |= {
            "gpu_busy_percent": 100 * busy / wall,
            "kernels_per_step": sum(event.count for event in kernels_alone) / steps,
            "by_kernel_percent": shares({event.key: device_time[event.key] for event in kernels_alone}, busy),
        }
    return told | {"by_host_operator_percent": shares(host_time, sum(host_time.values()))}


def shares(times: dict[str, float], whole: float) -> dict[str, float]:
    """The largest, in percent."""
    largest = sorted(times.items(), key=lambda item: -item[1])[:14]
    return {name[:90]: 100 * value / max(whole, 1e-12) for name, value in largest}
