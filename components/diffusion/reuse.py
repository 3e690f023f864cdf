"""Step caching: a net's deep features, which change little from one evaluation to the next, are computed at every few
evaluations and reused at those between (DeepCache: Ma et al. 2024).

A trajectory keeps the features of its own rows and hands them in with its calls, so that it needs no slots of a cache,
guidance may begin and end on the way, and rows of a batch never meet.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from components.sampling.trajectories import Call


class Deep(Protocol):
    """A backbone's block of the config."""

    reuses: bool  # whether its net has a deep part


def why_not(backbone: Deep, every: int) -> str | None:
    """Why a net cannot be asked as a whole at every `every`-th evaluation only, as Sampler.why_not says it."""
    if every == 1 or backbone.reuses:
        return None
    return "reuse: the backbone has no deep part; expected two widths or more of a unet, three blocks or more of a dit"


@dataclass(frozen=True)
class Whole:
    """A net that tells its deep features beside its answer."""

    net: Callable[..., tuple[Tensor, Tensor]]

    def __call__(self, **inputs: Tensor) -> Mapping[str, Tensor]:
        answer, deep = self.net(**inputs, tells_deep=True)
        return {"answer": answer, "deep": deep}


def calls(name: str, net: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """What answers the calls that `Reuse` makes of a net: the net itself, the same with its deep features told, and
    what is around features of before."""
    return {name: net, _whole(name): Whole(net), _shallow(name): net}


def _whole(net: str) -> str:
    return f"{net}_whole"


def _shallow(net: str) -> str:
    return f"{net}_shallow"


class Reuse:
    """Asks nets for the rows of one trajectory, each net as a whole at every `every`-th time. Rows come in one order,
    and further ones after them: where there are more than before, the net is asked as a whole."""

    def __init__(self, every: int):
        self.every = every
        self._kept: dict[str, Tensor] = {}  # deep features by net
        self._asked: dict[str, int] = {}  # since they were computed

    def ask(self, net: str, inputs: dict[str, Tensor]) -> Generator[Call, Any, Tensor]:
        """A net's answer to `inputs`, rows x (B, C, ...) among them."""
        if self.every == 1:
            return (yield Call(net, inputs))
        rows, kept = len(inputs["x"]), self._kept.get(net)
        if kept is None or len(kept) < rows or self._asked[net] == self.every:
            told = yield Call(_whole(net), inputs)
            # a copy: the rows of an answer hold those of all who shared the forward
            self._kept[net], self._asked[net] = told["deep"].clone(), 1
            return told["answer"]
        self._asked[net] += 1
        return (yield Call(_shallow(net), {**inputs, "deep": kept[:rows]}))
