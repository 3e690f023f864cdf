"""Low-rank adapters of a net's linear layers (LoRA: Hu et al. 2022): W x + scale * B A x, with A (rank, in) and B (out,
rank) for each layer that is adapted. The net itself stays as it is, so that many adapters can share it, one a row.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # what Hu et al. 2022, section 4.2, adapt


class AdapterConfig(Strict):
    """`targets`: the linear layers that are adapted, by the ends of their names."""

    rank: int = Field(8, ge=1)  # rows of A and columns of B, which a layer has two of
    alpha: float | None = Field(None, gt=0)  # the addition is scaled by alpha / rank; None: rank, no scaling
    targets: tuple[str, ...] = Field(ATTENTION, min_length=1)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


def layers_of(net: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers of a net whose names end as told, part by part. Raises ValueError of an end that none has."""
    found = {}
    for target in targets:
        own = {
            name: layer
            for name, layer in net.named_modules()
            if isinstance(layer, nn.Linear) and f".{name}".endswith(f".{target}")
        }
        if not own:
            raise ValueError(f"targets: no linear layer is called {target}")
        found |= own
    return found


class Adapter(nn.Module):
    """One adapter of a net, which stands for the net adapted by it: the same inputs and answers. The net's own weights
    are none of its parameters. B is zero at first, so that training begins with the net as it is."""

    def __init__(self, net: nn.Module, config: AdapterConfig):
        super().__init__()
        self._adapted = layers_of(net, config.targets)
        self.scale, self._net = config.scale, (net,)  # in a tuple, so that it is no part of this module
        layers = {_key(name): layer for name, layer in self._adapted.items()}
        self.down = nn.ParameterDict({key: torch.empty(config.rank, of.in_features) for key, of in layers.items()})
        self.up = nn.ParameterDict({key: torch.zeros(of.out_features, config.rank) for key, of in layers.items()})
        for matrix in self.down.values():
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))  # as a linear layer's

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that it adapts."""
        return tuple(key.replace("/", ".") for key in self.down)

    def matrices(self, layer: str) -> tuple[Tensor, Tensor]:
        """A (rank, in) and scale * B (out, rank) of a layer."""
        return self.down[_key(layer)], self.scale * self.up[_key(layer)]

    def forward(self, **inputs: Tensor) -> Tensor:
        (net,) = self._net
        with _adding({layer: partial(self._addition, name) for name, layer in self._adapted.items()}):
            return net(**inputs)

    def _addition(self, layer: str, x: Tensor) -> Tensor:
        down, up = self.matrices(layer)
        return F.linear(F.linear(x, down), up)


class Adapted:
    """A net with any of several adapters, row by row, in one forward: what an engine calls in the net's place.

    Beside the net's inputs it takes `adapter` (B,) int64, 0 for none and from 1 on in the order of `adapters`, and
    `strength` (B,), by which a row's addition is multiplied. A row's answer depends on its own adapter alone."""

    def __init__(self, net: nn.Module, adapters: Mapping[str, Adapter]):
        self.net, self.adapters, self._layers = net, adapters, dict(net.named_modules())
        self._known: tuple = ()
        self._stacked: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, adapter: Tensor, strength: Tensor, **inputs: Tensor) -> Tensor:
        if not adapter.any():
            return self.net(**inputs)
        additions = {
            self._layers[name]: partial(_of_rows, down[adapter], up[adapter], strength)
            for name, (down, up) in self._stacks().items()
        }
        with _adding(additions):
            return self.net(**inputs)

    def _stacks(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By layer, all adapters' A (1 + N, rank, in) and B (1 + N, out, rank), the first ones zero; made anew where
        weights have changed."""
        known = tuple(_version(adapter) for adapter in self.adapters.values())
        if known != self._known:
            layers = dict.fromkeys(layer for adapter in self.adapters.values() for layer in adapter.layers)
            self._stacked = {layer: self._stack(layer) for layer in layers}
            self._known = known
        return self._stacked

    @torch.no_grad()
    def _stack(self, layer: str) -> tuple[Tensor, Tensor]:
        found = [one.matrices(layer) if layer in one.layers else None for one in self.adapters.values()]
        down, up = next(pair for pair in found if pair is not None)
        rank = max(len(pair[0]) for pair in found if pair is not None)
        downs = down.new_zeros(1 + len(found), rank, down.shape[1])
        ups = up.new_zeros(1 + len(found), len(up), rank)
        for number, pair in enumerate(found, 1):
            if pair is not None:  # a smaller rank is filled up with zeros, which add nothing
                downs[number, : len(pair[0])], ups[number, :, : len(pair[0])] = pair
        return downs, ups


def _of_rows(down: Tensor, up: Tensor, strength: Tensor, x: Tensor) -> Tensor:
    """What each row's adapter adds to a layer's answer to x (B, N, in): (B, N, out)."""
    added = torch.bmm(torch.bmm(x, down.mT.to(x.dtype)), up.mT.to(x.dtype))
    return strength[:, None, None].to(added.dtype) * added


@contextlib.contextmanager
def _adding(additions: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While it lasts, what layers of a net answer has something added that is made of their input."""

    def added(addition: Callable[[Tensor], Tensor], layer: nn.Module, given: tuple, answer: Tensor) -> Tensor:
        return answer + addition(given[0])

    hooks = [layer.register_forward_hook(partial(added, addition)) for layer, addition in additions.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _key(layer: str) -> str:
    """A layer's name as that of a parameter, in which no dot may be."""
    return layer.replace(".", "/")


def _version(adapter: Adapter) -> tuple[int, int]:
    """Changes with the weights: all of an adapter's are written together."""
    last = list(adapter.up.values())[-1]
    return last.data_ptr(), last._version
