"""Tokens that bypass blocks: which ones, and what the others make of it."""

from __future__ import annotations

import functools

import pytest
import torch

from components.nets.dit import DiT, MMDiT
from components.nets.joint_transformer import JointTransformer
from components.nets.rotary import grid_places, rotary_angles
from components.nets.routing import Route, returned, taken, those_through
from components.nets.transformer import Transformer
from tests.components.nets.test_transformer import HEADS, WIDTH, stirred

PLACES, THROUGH = grid_places([2, 3]), torch.tensor([[0, 2, 5], [1, 2, 3]])
CONTEXT = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
KINDS = ("plain", "joint")


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def trunk(kind: str, depth: int = 4):
    if kind == "plain":
        return stirred(Transformer(WIDTH, depth, HEADS, condition_dim=WIDTH, context_dim=5))
    return stirred(JointTransformer(WIDTH, depth, HEADS, 5))


def test_the_largest_numbers_go_through_in_order():
    numbers = torch.tensor([[0.3, 0.9, 0.1, 0.7], [0.5, 0.5, 0.5, 0.5]])
    assert those_through(numbers, 0.5).tolist() == [[1, 3], [2, 3]]
    assert those_through(numbers, 0.1).tolist() == [[0, 1, 2, 3]] * 2, "less than a token is none"
    assert those_through(numbers, 0.999).shape == (2, 1), "one is always left"
    assert those_through(numbers[:1], 0.5).tolist() == those_through(numbers, 0.5).tolist()[:1]


def test_what_is_taken_is_returned_to_its_places():
    x = torch.randn(2, 6, 3)
    part = taken(x, THROUGH)
    assert torch.equal(part[1], x[1, [1, 2, 3]]) and torch.equal(taken(x[0], THROUGH)[1], x[0, [1, 2, 3]])
    assert torch.equal(returned(x, part, THROUGH), x)
    back = returned(x, part + 1, THROUGH)
    assert torch.equal((back != x).any(2).nonzero()[:, 1].view(2, 3), THROUGH)


@pytest.mark.parametrize("runs", [0, 2])
def test_a_span_sees_those_that_go_through_alone(runs):
    """By the blocks themselves, called one by one; with conditions of whole rows and of runs of tokens."""
    net, x = trunk("plain"), torch.randn(2, 6, WIDTH)
    condition = torch.randn(2, runs, WIDTH) if runs else torch.randn(2, WIDTH)
    of_each = condition.repeat_interleave(3, 1) if runs else condition
    of_part = taken(of_each, THROUGH) if runs else condition
    angles = rotary_angles(PLACES, WIDTH // HEADS)
    first, *middle, last = net.blocks
    whole = first(x, condition, CONTEXT, angles=angles)
    part = taken(whole, THROUGH)
    for block in middle:
        part = block(part, of_part, CONTEXT, angles=angles[THROUGH])
    wanted = net._ended(last(returned(whole, part, THROUGH), of_each, CONTEXT, angles=angles), condition)
    got, tapped = net.routed(x, PLACES, condition, CONTEXT, Route(1, 3, THROUGH), tap=1)
    assert torch.allclose(got, wanted, atol=1e-5) and torch.equal(tapped, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_those_that_bypass_are_not_seen_and_come_out_as_they_went_in(kind):
    net, x = trunk(kind), torch.randn(2, 6, WIDTH)
    condition, out = torch.randn(2, WIDTH), torch.tensor([[1, 3, 4], [0, 4, 5]])
    ask = functools.partial(net.routed, places=PLACES, condition=condition, context=CONTEXT)
    before, after = (ask(x, route=Route(1, 3, THROUGH), tap=tap)[1] for tap in (1, 3))
    assert torch.equal(taken(after, out), taken(before, out))
    assert not torch.allclose(taken(after, THROUGH), taken(before, THROUGH), atol=1e-3)
    changed = returned(x, taken(x, out) + 1, out)
    first = ask(changed, route=Route(0, 3, THROUGH), tap=3)[1]
    assert torch.equal(taken(first, THROUGH), taken(ask(x, route=Route(0, 3, THROUGH), tap=3)[1], THROUGH))


@pytest.mark.parametrize("kind", KINDS)
def test_a_route_that_all_take_is_none(kind):
    net, x, condition = trunk(kind), torch.randn(2, 6, WIDTH), torch.randn(2, WIDTH)
    every = torch.arange(6).expand(2, 6)
    routed, _ = net.routed(x, PLACES, condition, CONTEXT, Route(1, 3, every))
    assert torch.allclose(routed, net(x, PLACES, condition, CONTEXT), atol=1e-6)


@pytest.mark.parametrize("kind", [DiT, MMDiT])
def test_numbers_of_a_row_decide_its_route_alone(kind):
    net = stirred(kind(2, 2, 2, WIDTH, 4, HEADS, num_classes=3, context_dim=5, route=(0.5, 1, 3)))
    x, level, label = torch.randn(2, 2, 4, 6), torch.tensor([10.0, 600.0]), torch.tensor([0, 2])
    numbers = torch.rand(2, 6)
    together = net(x, level, CONTEXT, label, routed=numbers)
    assert not torch.allclose(together, net(x, level, CONTEXT, label), atol=1e-3)
    for row in range(2):
        part = slice(row, row + 1)
        alone = net(x[part], level[part], CONTEXT[part], label[part], routed=numbers[part])
        assert torch.allclose(alone[0], together[row], atol=1e-5)
    answer, tokens = net(x, level, CONTEXT, label, tap=2)
    assert torch.equal(answer, net(x, level, CONTEXT, label)) and tokens.shape == (2, 6, WIDTH)
