"""The diffusion transformer: patches and back, its start, and what it may not know."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.nets.dit import DiT, patches, unpatched

SHAPES = {1: (2, 12), 2: (2, 4, 6), 3: (2, 2, 4, 6)}


def net(rank: int = 2, **changes) -> DiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = DiT(**{"channels": 2, "rank": rank, "patch": 2, "width": 24, "depth": 2, "heads": 2, **changes})
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize("rank", SHAPES)
def test_patches_hold_neighbours_and_go_back(rank):
    x = torch.randn(3, *SHAPES[rank])
    cut = patches(x, 2)
    assert torch.equal(unpatched(cut, 2, x.shape), x)
    first = x[(slice(None), slice(None), *[slice(2)] * rank)]
    assert torch.equal(cut[:, 0], first.flatten(1))


@pytest.mark.parametrize("rank", SHAPES)
def test_level_class_and_every_cell_reach_the_answer(rank):
    model, x = net(rank, num_classes=3), torch.randn(2, *SHAPES[rank], requires_grad=True)
    level, label = torch.tensor([10.0, 600.0]), torch.tensor([0, 2])
    answer = model(x, level, label=label)
    assert answer.shape == x.shape
    (gradient,) = torch.autograd.grad(answer[0, 0].flatten()[0], x)
    assert gradient[0].abs().min() > 0 and not gradient[1].any()
    assert not torch.allclose(model(x, level + 50, label=label), answer)
    assert not torch.allclose(model(x, level, label=label.flip(0)), answer)
    one_hot = nn.functional.one_hot(label, 3).float()
    assert torch.allclose(model(x, level, label=one_hot), answer, atol=1e-5)


def test_what_is_moved_moves_the_answer_with_it():
    """Places are rotations: equal patches are told apart by their distances alone."""
    model, x = net(num_classes=1), torch.zeros(1, 2, 8, 8)
    level, label = torch.tensor([10.0]), torch.tensor([0])
    flat = model(x, level, label=label)
    assert torch.allclose(flat, flat[:, :, :2, :2].repeat(1, 1, 4, 4), atol=1e-5)
    x[..., 2:4, 2:4] = 1.0
    assert not torch.allclose(model(x, level, label=label)[..., :2, :2], flat[..., :2, :2], atol=1e-3)


def test_it_starts_at_nothing_and_every_weight_gets_a_gradient():
    model = DiT(2, 2, 2, 24, 2, 2, context_dim=5)
    x, level, context = torch.randn(2, 2, 4, 4), torch.tensor([10.0, 600.0]), torch.randn(2, 3, 5)
    answer = model(x, level, context)
    assert not answer.any()
    answer.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_rows_alone_are_rows_in_a_batch():
    model, x, level = net(num_classes=3), torch.randn(3, 2, 4, 4), torch.tensor([1.0, 5.0, 900.0])
    label = torch.tensor([0, 1, 2])
    together = model(x, level, label=label)
    for row in range(3):
        part = slice(row, row + 1)
        assert torch.allclose(model(x[part], level[part], label=label[part])[0], together[row], atol=1e-5)
