"""CUDA graphs: what a net launches on a GPU is recorded once for each shape of its inputs and replayed from then on.

Small nets are bound by launches: a forward of a U-Net makes a thousand kernels, which a GPU finishes faster than a host
asks for them. A graph asks once. Results are those of the recorded kernels, so they have the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from components.errors import TrainingError

log = logging.getLogger(__name__)

WARM = 2  # runs before a recording: libraries choose kernels and take memory then
MOST_SHAPES = 64  # that one net is recorded for; others are launched as ever


def signature(inputs: Mapping[str, Any]) -> Hashable:
    """Inputs by name as a recording sees them: a tensor's shape, type and need of a gradient; any other's value."""
    return tuple(
        (name, (tuple(value.shape), value.dtype, value.requires_grad) if isinstance(value, Tensor) else value)
        for name, value in inputs.items()
    )


def replayed(calls: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """A sampler's nets on a GPU, whose forwards are replayed. One that says what of it can be is asked: `recorded`."""
    pool = torch.cuda.graph_pool_handle()  # one after the other they may use the same memory

    def record(net: Callable[..., Any]) -> Callable[..., Any]:
        if hasattr(net, "recorded"):
            return net.recorded(record)
        return (ReplayedKeeper if hasattr(net, "allocate") else Replayed)(net, pool)

    return {name: record(net) for name, net in calls.items()}


class Replayed:
    """A net without gradients whose forwards are replayed. One that cannot be recorded is launched as ever: a net that
    waits for the GPU, or that takes what is not on one. All calls come from one thread.

    `cache`: what a net keeps between calls (components/sampling/state.py) stays where it is; it is recorded with the
    last row of it, which belongs to nobody, so that recording changes no other. Recordings are of one cache, which they
    write to by its address: with another one they are made anew.
    """

    def __init__(self, net: Callable[..., Any], pool: Any):
        self.net, self._pool = net, pool
        self.why_launched: str | None = None
        self._recorded: dict[Hashable, _Recording] = {}
        self._cache: Any = None

    def __call__(self, cache: Any = None, **inputs: Any) -> Any:
        kept = {} if cache is None else {"cache": cache}
        if self.why_launched is not None:
            return self.net(**inputs, **kept)
        if kept and cache is not self._cache:
            self._recorded, self._cache = {asked: made for asked, made in self._recorded.items() if not asked[1]}, cache
        asked = signature(inputs), bool(kept)
        if asked not in self._recorded:
            if len(self._recorded) == MOST_SHAPES:
                return self.net(**inputs, **kept)
            try:
                self._recorded[asked] = self._record(inputs, kept)
            except torch.OutOfMemoryError:  # of this shape; others stay recorded
                self._recorded[asked] = lambda given: self.net(**given, **kept)
            except RuntimeError as error:
                answer = self.net(**inputs, **kept)  # what fails launched, too, says nothing of recordings
                self.why_launched = _first_line(error)
                log.info("launched without CUDA graphs: %s: %s", self.net, self.why_launched)
                return answer
        return self._recorded[asked](inputs)

    def _record(self, inputs: Mapping[str, Any], kept: Mapping[str, Any]) -> _Recording:
        asked = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        for name, value in asked.items():
            if isinstance(value, Tensor) and not value.is_cuda:
                raise RuntimeError(f"{name} is on the host")
        if kept:
            asked["slot"].fill_(len(pytree.tree_leaves(kept)[0]) - 1)
        return _Recording(lambda: self.net(**asked, **kept), asked, self._pool)


class ReplayedKeeper(Replayed):
    """The same of a net that keeps rows between calls."""

    @property
    def row_bytes(self) -> int:
        return self.net.row_bytes

    def allocate(self, rows: int) -> Any:
        return self.net.allocate(rows)


class _Recording:
    """One shape of a net's inputs, and the answer of its graph."""

    def __init__(self, run: Callable[[], Any], asked: dict[str, Any], pool: Any):
        self._asked, self._graph = asked, torch.cuda.CUDAGraph()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM):
                run()
        torch.cuda.current_stream().wait_stream(beside)
        # other threads of a server copy images from the GPU meanwhile
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._answer = run()

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                self._asked[name].copy_(value)
        self._graph.replay()
        return pytree.tree_map_only(Tensor, Tensor.clone, self._answer)  # the next replay writes there


class Trained:
    """A net in training whose forward and backward passes are replayed, one call a step; what is not recorded, without
    a gradient or in evaluation mode, is launched as ever. Attributes are the net's.

    Raises TrainingError of a net that cannot be recorded."""

    def __init__(self, net: nn.Module, phase: str):
        self.net, self._phase = net, phase
        self._recorded: dict[Hashable, _ByPlace] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def __call__(self, *given: Tensor, **named: Any) -> Any:
        inputs = {**dict(zip(range(len(given)), given, strict=True)), **named}
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        if not (torch.is_grad_enabled() and self.net.training and all(value.is_cuda for value in tensors.values())):
            return self.net(*given, **named)
        found = self._recorded.get(signature(inputs))
        if found is None:
            if len(self._recorded) == MOST_SHAPES:
                return self.net(*given, **named)
            found = self._recorded[signature(inputs)] = self._record(inputs, tensors)
        return found.whole(found(*tensors.values()))

    def _record(self, inputs: Mapping[Any, Any], tensors: Mapping[Any, Tensor]) -> _ByPlace:
        asked = tuple(value.detach().clone().requires_grad_(value.requires_grad) for value in tensors.values())
        fixed = {name: value for name, value in inputs.items() if name not in tensors}
        # running statistics move in the runs before the recording, which are none of the training's
        before = {name: value.clone() for name, value in self.net.named_buffers()}
        casts = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False)
        try:
            with casts:
                module = _ByPlace(self.net, tuple(tensors), fixed)
                found = torch.cuda.make_graphed_callables(module, asked, allow_unused_input=True)
        except RuntimeError as error:
            raise TrainingError(
                f"cuda_graphs: {self._phase}: its net cannot be recorded ({_first_line(error)}); "
                "expected cuda_graphs: false"
            ) from error
        with torch.no_grad():
            for name, value in self.net.named_buffers():
                value.copy_(before[name])
        return found


class _ByPlace(nn.Module):
    """A net that takes and gives nothing but tensors by place, as recordings do; what else it takes stays as it was,
    and what else it gives."""

    def __init__(self, net: nn.Module, names: tuple[str | int, ...], fixed: Mapping[str | int, Any]):
        super().__init__()
        self.net, self._names, self._fixed = net, names, fixed

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = {**dict(zip(self._names, tensors, strict=True)), **self._fixed}
        placed = [inputs.pop(place) for place in sorted(name for name in inputs if isinstance(name, int))]
        leaves, self._spec = pytree.tree_flatten(self.net(*placed, **inputs))
        self._leaves = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    def whole(self, tensors: tuple[Tensor, ...]) -> Any:
        """The net's answer of these tensors."""
        left = iter(tensors)
        leaves = [next(left) if leaf is Tensor else leaf for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self._spec)


def _first_line(error: BaseException) -> str:
    """What went wrong first: the end of a recording that failed raises once more."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return str(error).splitlines()[0]
