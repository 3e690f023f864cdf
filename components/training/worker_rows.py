"""Rows of all workers together, for losses that compare the rows of a batch: what one worker's rows are compared with
must not depend on how the batch was shared out."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class _AllRows(torch.autograd.Function):
    """Padded parts (M, ...) of every worker -> (world, M, ...). A gradient goes back to the worker whose row it is of,
    summed over the workers that used the row."""

    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, part.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        whole = gradient.contiguous()
        distributed.all_reduce(whole)
        return whole[distributed.get_rank()]


def of_all_workers(*values: Tensor) -> tuple[list[Tensor], int]:
    """Each of some tensors with as many rows, (B, ...) -> that of all workers one below the other, and the place of
    this worker's first row. All workers must call it together; outside a group of workers nothing changes."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return list(values), 0
    rows, rank = len(values[0]), distributed.get_rank()
    sizes = [torch.empty(1, dtype=torch.int64, device=values[0].device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([rows], device=values[0].device))
    counts = [int(size) for size in sizes]
    gathered = []
    for value in values:
        padding = value.new_zeros(max(counts) - rows, *value.shape[1:])
        parts = _AllRows.apply(torch.cat([value, padding]))
        gathered.append(torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]))
    return gathered, sum(counts[:rank])
