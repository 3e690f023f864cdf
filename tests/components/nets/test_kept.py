"""Keys and values that are kept: wherever a call's slots lie, it attends to the same."""

import pytest
import torch

from components.nets.kept import Kept, new_cache

HEADS, LENGTH, DIM, SLOTS = 2, 9, 4, 40


def kept_cache() -> torch.Tensor:
    cache = new_cache(SLOTS, 3, HEADS, LENGTH, torch.empty(HEADS * DIM, 1))
    return cache.copy_(torch.randn(cache.shape, generator=torch.Generator().manual_seed(0)))


def attended(slots: list[int], count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of rows at different positions in these slots, which begin with the same content."""
    cache, content = kept_cache().to(dtype), kept_cache()[: len(slots)].to(dtype)
    cache[slots] = content
    before, generator = cache.clone(), torch.Generator().manual_seed(1)
    position = torch.arange(len(slots)) % (LENGTH - count)
    told = torch.randn(3, len(slots), count, HEADS, DIM, generator=generator).to(dtype)
    answer = Kept(cache, torch.tensor(slots), position).tokens(count).attended(1, *told)
    for row, slot in enumerate(slots):
        at = slice(int(position[row]), int(position[row]) + count)
        for which in range(2):
            assert torch.equal(cache[slot, 1, which, :, at], told[1 + which, row].transpose(0, 1))
            before[slot, 1, which, :, at] = cache[slot, 1, which, :, at]
    assert torch.equal(cache, before), "all else stays"
    return answer


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("slots", [[7, 8, 9, 10], [3, 2, 0, 1], [11, 5, 9, 6], [39, 0, 20, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slots_in_order_in_disorder_with_others_between_and_far_apart_are_read_alike(slots, count, dtype):
    with torch.inference_mode():
        assert torch.equal(attended(slots, count, dtype), attended([0, 1, 2, 3], count, dtype))


def test_one_token_attends_as_the_last_of_several():
    cache, position, slot = kept_cache(), torch.tensor([4, 2]), torch.tensor([6, 5])
    q, k, v = torch.randn(3, 2, 3, HEADS, DIM, generator=torch.Generator().manual_seed(2))
    together = Kept(cache.clone(), slot, position).tokens(3).attended(0, q, k, v)
    for place in range(3):
        each = (values[:, place : place + 1] for values in (q, k, v))
        answer = Kept(cache, slot, position + place).tokens(1).attended(0, *each)
        assert torch.allclose(answer[:, 0], together[:, place], atol=1e-6)


def test_rows_of_padding_share_a_slot():
    cache, position = kept_cache(), torch.tensor([4, 2, 2])
    told = torch.randn(3, 3, 1, HEADS, DIM, generator=torch.Generator().manual_seed(3))
    told[:, 2] = told[:, 1]
    slots = Kept(cache.clone(), torch.tensor([5, 6, 6]), position).tokens(1)
    alone = Kept(cache, torch.tensor([5, 6]), position[:2]).tokens(1).attended(0, *told[:, :2])
    assert torch.equal(slots.attended(0, *told), alone[[0, 1, 1]])
