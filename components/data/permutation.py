"""The order in which training rows are drawn: a function of the seed that is never held in memory.

Every epoch is a pseudo-random permutation of the rows, computed index by index with a Feistel network (Luby and
Rackoff 1988, "How to construct pseudorandom permutations") and cycle walking (Black and Rogaway 2002, "Ciphers with
arbitrary finite domains"), so that a billion rows cost no more than a thousand.
"""

import bisect
import functools
import itertools

import torch
from torch import Tensor

from components.data.randomness import hash64, mix

_AT_ONCE = 4096  # rows; fewer cost as much
_ROUNDS = 4  # Luby and Rackoff: four rounds resist adaptive distinguishers


def permute(index: Tensor, count: int, key: int) -> Tensor:
    """Where a permutation of range(count) sends `index`. Both (N,) int64 in [0, count); `key` chooses it."""
    half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
    places = _feistel(index, half_bits, key)
    outside = places >= count
    while outside.any():  # the network permutes a power of four below 4 * count: walk on until back inside
        places[outside] = _feistel(places[outside], half_bits, key)
        outside = places >= count
    return places


def _feistel(index: Tensor, half_bits: int, key: int) -> Tensor:
    mask = (1 << half_bits) - 1
    left, right = index >> half_bits, index & mask
    for round_number in range(_ROUNDS):
        left, right = right, left ^ (mix(right + hash64(key, round_number)) & mask)
    return (left << half_bits) | right


def global_batch(step: int, batch_size: int, count: int, seed: int, part: slice = slice(None)) -> Tensor:
    """Rows of global batch `step`: (batch_size,) int64, or those of its `part`, at the cost of that part alone.
    Batches run on across the end of an epoch, so every batch is full and every epoch visits each row exactly once."""
    first, last, _ = part.indices(batch_size)
    steps = max(1, min(_AT_ONCE, count) // max(1, last - first))
    return _rows(step // steps, steps, batch_size, count, seed, first, last)[step % steps].clone()


def bucketed_batch(
    step: int, batch_size: int, counts: tuple[int, ...], seed: int, part: slice = slice(None)
) -> tuple[int, Tensor]:
    """Global batch `step` of rows that lie in buckets of `counts` rows, no batch in two: its bucket, and its rows'
    numbers within that as `global_batch` gives them. In an epoch a bucket has as many batches as end in it; which one
    comes when is the epoch's own permutation."""
    epoch = _epoch_of(step, batch_size, counts)
    before, ends = _turns(epoch, batch_size, counts)
    turn, key = step - sum(before), hash64("buckets", seed, epoch)
    place = _places(turn // _AT_ONCE, ends[-1], key)[turn % _AT_ONCE]
    bucket = bisect.bisect_right(ends, place)
    number = before[bucket] + place - (ends[bucket - 1] if bucket else 0)
    return bucket, global_batch(number, batch_size, counts[bucket], hash64("bucket", seed, bucket), part)


@functools.lru_cache(maxsize=64)
def _places(block: int, count: int, key: int) -> list[int]:
    """Where a permutation of range(count) sends _AT_ONCE numbers, or as many as there are."""
    first = block * _AT_ONCE
    return permute(torch.arange(first, min(first + _AT_ONCE, count)), count, key).tolist()


@functools.lru_cache(maxsize=64)
def _turns(epoch: int, batch_size: int, counts: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """How many batches of each bucket there are before an epoch, and where those of each end among the epoch's own."""
    before, after = (_batches_before(one, batch_size, counts) for one in (epoch, epoch + 1))
    return before, list(itertools.accumulate(last - first for first, last in zip(before, after, strict=True)))


def _batches_before(epoch: int, batch_size: int, counts: tuple[int, ...]) -> list[int]:
    """How many batches of each bucket there are before an epoch."""
    return [epoch * count // batch_size for count in counts]


def _epoch_of(step: int, batch_size: int, counts: tuple[int, ...]) -> int:
    """The epoch that a step is in: the last one before which there are no more batches than steps."""
    total = sum(counts)
    first = step * batch_size // total  # there are at most epoch * total / batch_size before one
    last = (step + len(counts) + 1) * batch_size // total + 1  # and at most one a bucket less than that

    def begin(epoch: int) -> int:
        return sum(_batches_before(epoch, batch_size, counts))

    return first - 1 + bisect.bisect_right(range(first, last + 1), step, key=begin)


@functools.lru_cache(maxsize=64)  # of several buckets at once
def _rows(block: int, steps: int, batch_size: int, count: int, seed: int, first: int, last: int) -> Tensor:
    """The places `first` to `last` of as many batches as make up a block, (steps, last - first) int64."""
    size = steps * batch_size
    places = torch.arange(block * size, (block + 1) * size).view(steps, batch_size)[:, first:last]
    epochs = places // count
    rows = torch.empty_like(places)
    for epoch in epochs.unique().tolist():
        inside = epochs == epoch
        rows[inside] = permute(places[inside] % count, count, hash64("order", seed, epoch))
    return rows


def share(batch_size: int, rank: int, world: int) -> slice:
    """The part of every global batch that `rank` of `world` trains on: contiguous, and at most one row longer than
    any other rank's."""
    return slice(batch_size * rank // world, batch_size * (rank + 1) // world)
