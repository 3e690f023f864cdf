"""State that nets keep between calls: a cache of rows beside a net, whose slots trajectories lease.

A net that keeps rows (keys and values of attention, a queue of a convolution) is asked by calls with `stateful` set.
It gets two inputs more: `cache`, which its `allocate` made, and `slot` (B,) int64, the row of the cache that belongs to
each row of the call. It reads and writes there, so nothing is copied, and rows at different positions share a call;
which position a row is at, the trajectory says by an input of its own.

A slot is not cleared between trajectories: what lies beyond a row's position means nothing. A call may be asked again
after one that failed, so a net writes by position, or after all that can fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from components.sampling.trajectories import Answer


class Stateful(Protocol):
    """A net that keeps rows between calls."""

    row_bytes: int  # of the cache's rows

    def allocate(self, rows: int) -> Any:
        """A cache of `rows` rows on the net's device: tensors, rows first."""

    def __call__(self, *, cache: Any, slot: Tensor, **inputs: Tensor) -> Answer:
        """Reads and writes rows `slot` of `cache`."""


class Cache:
    """The cache of one net and its free slots. One slot more than `rows`, the last, takes what padding writes."""

    def __init__(self, net: Stateful, rows: int):
        self.rows, self.content = rows, net.allocate(rows + 1)
        self._free = list(range(rows - 1, -1, -1))

    @property
    def leased(self) -> int:
        return self.rows - len(self._free)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def lease(self, count: int) -> Tensor:
        """`count` free slots, (count,) int64 on the CPU."""
        return torch.tensor([self._free.pop() for _ in range(count)])

    def free(self, slots: Tensor) -> None:
        self._free += reversed(slots.tolist())

    def inputs(self, slots: Tensor, padding: int, like: Tensor) -> dict[str, Any]:
        """What a call of rows `slots` gets beside its own inputs, with `padding` rows more, on the device of `like`."""
        slots = torch.cat([slots, torch.full((padding,), self.rows)])
        return {"cache": self.content, "slot": slots.to(like.device, non_blocking=True)}


def caches(nets: Mapping[str, Any], rows: int, most_bytes: int | None) -> dict[str, Cache]:
    """A cache for each of the nets that keep rows: of `rows` rows, or as many as `most_bytes` hold.

    Raises ValueError naming a net of whose rows not one fits."""
    found = {}
    for name, net in nets.items():
        if hasattr(net, "allocate"):
            fitting = rows if most_bytes is None else min(rows, most_bytes // net.row_bytes - 1)
            if fitting < 1:
                raise ValueError(f"{name}: two rows of its cache take {2 * net.row_bytes} bytes; found {most_bytes}")
            found[name] = Cache(net, fitting)
    return found


def refuse_more_rows(net: str, rows: int, most: int) -> None:
    """Raises ValueError of a call of more rows to be kept than there is room for."""
    if rows > most:
        raise ValueError(f"{net}: a call of {rows} rows that are kept; expected at most {most}")
