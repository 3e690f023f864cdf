"""Rows of several calls as one, and the answer's rows back again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from components.sampling.trajectories import Answer, Call


def num_rows(call: Call) -> int:
    return len(next(iter(call.inputs.values())))


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most`: sizes to pad up to, by less than twice."""
    return (*(2**power for power in range((most - 1).bit_length())), most)


def packed(calls: Sequence[Call], padding: int) -> dict[str, Tensor]:
    """The inputs of calls to one net: rows of all, then the last row `padding` times over."""
    return {name: _pack([call.inputs[name] for call in calls], padding) for name in calls[0].inputs}


def _pack(tensors: list[Tensor], padding: int) -> Tensor:
    if padding:
        tensors = [*tensors, tensors[-1][-1:].expand(padding, *tensors[-1].shape[1:])]
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


def split(net: str, answer: Answer, counts: Sequence[int], padding: int) -> list[Answer]:
    """Each call's rows of an answer, a tensor or a mapping of some, without the padding. Raises ValueError, naming the
    net, of an answer of another number of rows than were asked for."""
    if isinstance(answer, Mapping):
        parts = {name: split(net, values, counts, padding) for name, values in answer.items()}
        return [{name: rows[place] for name, rows in parts.items()} for place in range(len(counts))]
    rows = sum(counts)
    if len(answer) != rows + padding:
        raise ValueError(f"{net}: {rows + padding} rows in, {len(answer)} out; expected as many")
    return list(answer[:rows].split(list(counts)))
