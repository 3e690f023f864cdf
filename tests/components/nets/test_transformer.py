"""The transformer against closed forms and torch's own attention; causality, prefixes, places and precisions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from components.nets.kept import Kept
from components.nets.rotary import grid_places, rotary_angles, rotate
from components.nets.transformer import Attention, Block, RMSNorm, SwiGLU, Transformer
from components.sampling.engine import Engine
from components.sampling.trajectories import Call, drive

WIDTH, HEADS, LENGTH = 16, 2, 9


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def stirred(net: nn.Module) -> nn.Module:
    """With weights that are zero at first set to something."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def causal(depth: int = 3, **options) -> Transformer:
    return stirred(Transformer(WIDTH, depth, HEADS, causal=True, **options))


SEQUENCE = grid_places([LENGTH])


def test_norm_is_torchs_own():
    norm, x = RMSNorm(WIDTH), torch.randn(3, 5, WIDTH)
    nn.init.normal_(norm.weight)
    expected = nn.RMSNorm(WIDTH, eps=1e-6)
    expected.weight = norm.weight
    assert torch.allclose(norm(x), expected(x), atol=1e-6)
    assert torch.allclose(RMSNorm(WIDTH, affine=False)(x).square().mean(-1), torch.ones(3, 5), atol=1e-4)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_swiglu_is_its_formula_and_as_large_as_a_plain_feed_forward():
    feed, x = SwiGLU(WIDTH), torch.randn(2, 3, WIDTH)
    gate, value = x @ feed.gate.weight.T, x @ feed.value.weight.T
    assert torch.allclose(feed(x), (gate * torch.sigmoid(gate) * value) @ feed.out.weight.T, atol=1e-6)
    large = SwiGLU(384)
    assert sum(p.numel() for p in large.parameters()) == pytest.approx(2 * 4 * 384**2, rel=0.01)


@pytest.mark.parametrize("context_dim", [None, 6])
def test_attention_is_torchs_own_on_normalised_queries_and_keys(context_dim):
    attention, x = Attention(WIDTH, HEADS, context_dim), torch.randn(2, 5, WIDTH)
    context = x if context_dim is None else torch.randn(2, 7, context_dim)
    head = WIDTH // HEADS

    def split(values):
        return values.unflatten(2, (HEADS, head)).transpose(1, 2)

    q, k, v = split(attention.to_q(x)), split(attention.to_k(context)), split(attention.to_v(context))
    q, k = F.rms_norm(q, (head,), eps=1e-6), F.rms_norm(k, (head,), eps=1e-6)
    weights = torch.softmax(q @ k.transpose(2, 3) / head**0.5, dim=-1)
    expected = attention.to_out((weights @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(attention(x, context=None if context_dim is None else context), expected, atol=1e-5)


def test_large_activations_leave_the_softmax_alone():
    attention, x = Attention(WIDTH, HEADS), torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        plain = attention.to_q.weight.clone()
        first = attention(x)
        attention.to_q.weight.copy_(1000 * plain)
        assert torch.allclose(attention(x), first, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rotated_products_know_only_the_distance_along_each_axis(rank):
    q, k = torch.randn(2, 1, 1, 1, 12)
    here, there = torch.randint(0, 9, (2, 1, rank))
    shift = torch.randint(-5, 6, (1, rank))

    def product(one, other):
        return (rotate(q, rotary_angles(one, 12)) * rotate(k, rotary_angles(other, 12))).sum()

    assert torch.allclose(product(here + shift, there + shift), product(here, there), atol=1e-4)
    assert torch.allclose(rotate(q, rotary_angles(here, 12)).norm(), q.norm())
    for axis in range(rank):
        moved = there.clone()
        moved[0, axis] += 1
        assert not torch.allclose(product(here, moved), product(here, there), atol=1e-3), "every axis counts"


def test_rotation_of_one_pair_is_that_of_the_plane():
    x, turn = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([[3]])
    expected = torch.tensor([torch.tensor(3.0).cos(), torch.tensor(3.0).sin()])
    assert torch.allclose(rotate(x, rotary_angles(turn, 2)).flatten(), expected)


def test_places_of_a_grid_are_row_major():
    assert grid_places([2, 3]).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid_places([4]).tolist() == [[0], [1], [2], [3]]
    assert grid_places([2, 3, 4]).shape == (24, 3)


@pytest.mark.parametrize("condition_dim", [0, 6])
def test_whoever_carries_its_place_along_may_stand_anywhere(condition_dim):
    net = stirred(Transformer(WIDTH, 2, HEADS, condition_dim=condition_dim))
    x, places, order = torch.randn(2, 9, WIDTH), grid_places([3, 3]), torch.randperm(9)
    condition = torch.randn(2, 6) if condition_dim else None
    plain, permuted = net(x, places, condition), net(x[:, order], places[order], condition)
    assert torch.allclose(permuted, plain[:, order], atol=1e-5)
    assert not torch.allclose(net(x, places[order], condition), plain, atol=1e-3)


def test_no_output_of_a_causal_net_depends_on_later_tokens():
    net, x = causal(), torch.randn(1, LENGTH, WIDTH, requires_grad=True)
    answer = net(x, SEQUENCE)
    for place in range(LENGTH):
        (gradient,) = torch.autograd.grad(answer[0, place].sum(), x, retain_graph=True)
        depends = gradient[0].abs().sum(1) > 0
        assert depends.tolist() == [other <= place for other in range(LENGTH)]


def test_a_mask_hides_what_it_says():
    net, x = stirred(Transformer(WIDTH, 2, HEADS)), torch.randn(1, 4, WIDTH, requires_grad=True)
    frames = torch.tensor([0, 0, 1, 1])  # two frames of two tokens: a frame sees itself and those before
    answer = net(x, grid_places([4]), mask=frames[:, None] >= frames)
    (gradient,) = torch.autograd.grad(answer[0, 0].sum(), x)
    assert (gradient[0].abs().sum(1) > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("parts", [[1] * LENGTH, [4, 1, 1, 3], [LENGTH]])
@pytest.mark.parametrize("options", [{}, {"condition_dim": 6, "context_dim": 5}])
def test_token_by_token_with_what_is_kept_equals_the_whole(parts, options):
    net, x = causal(**options), torch.randn(2, LENGTH, WIDTH)
    told = {"condition": torch.randn(2, 6), "context": torch.randn(2, 3, 5)} if options else {}
    cache, answers, at = net.allocate(5, LENGTH).fill_(7.0), [], 0  # what others left
    assert cache[0].nbytes == net.row_bytes(LENGTH)
    with torch.inference_mode():
        for count in parts:
            kept = Kept(cache, torch.tensor([3, 1]), torch.full((2,), at))
            answers.append(net(x[:, at : at + count], SEQUENCE[at : at + count], **told, kept=kept))
            at += count
        assert torch.allclose(torch.cat(answers, 1), net(x, SEQUENCE, **told), atol=1e-5)
    assert (cache[[0, 2, 4]] == 7).all(), "other rows' slots stay theirs"


class Echo(nn.Module):
    """A causal net as the engine knows it: token x (B, WIDTH) at `position` (B,) -> the net's answer to it."""

    def __init__(self):
        super().__init__()
        self.net, self.row_bytes, self.positions = causal(), 0, []
        self.row_bytes = self.net.row_bytes(LENGTH)

    def allocate(self, rows):
        return self.net.allocate(rows, LENGTH)

    def forward(self, x, position, cache, slot):
        self.positions.append(position.tolist())
        return self.net(x[:, None], position[:, None, None], kept=Kept(cache, slot, position))[:, 0]


def test_rows_at_different_positions_share_the_engines_forward_as_alone():
    net = Echo()

    def writing(seed, steps):
        def start():
            x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
            for position in range(steps):
                x = yield Call("net", {"x": x, "position": torch.full((2,), position)}, stateful=True)
            return x

        return start

    asked = [(seed, 2 + seed % 4) for seed in range(5)]
    engine = Engine({"net": net}, buckets=(16,), slots=6)  # a third has to wait for slots that others leave
    futures = [engine.submit(writing(*each), rows=2) for each in asked]
    together = [future.result(60) for future in futures]
    engine.stop(timeout=60)
    assert any(len(set(positions)) > 1 for positions in net.positions)
    for each, answer in zip(asked, together, strict=True):
        assert torch.allclose(answer, drive(writing(*each)(), {"net": net}), atol=1e-5)


def test_adaln_zero_starts_as_the_identity_and_lets_gradients_through():
    block, x = Block(WIDTH, HEADS, condition_dim=6), torch.randn(2, 5, WIDTH)
    condition = torch.randn(2, 6)
    assert torch.equal(block(x, condition), x)
    block(x, condition).square().sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    assert block.modulation.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize("runs", [1, 2, 6])
def test_a_condition_of_a_run_of_tokens_is_that_of_each_of_them(runs):
    block, x, condition = (
        stirred(Block(WIDTH, HEADS, condition_dim=6)),
        torch.randn(2, 6, WIDTH),
        torch.randn(2, runs, 6),
    )
    assert torch.allclose(block(x, condition), block(x, condition.repeat_interleave(6 // runs, dim=1)), atol=1e-6)
    if runs == 1:
        assert torch.allclose(block(x, condition[:, 0]), block(x, condition), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"condition_dim": 6, "context_dim": 5}])
def test_every_weight_learns(options):
    net, x = Transformer(WIDTH, 2, HEADS, **options), torch.randn(2, LENGTH, WIDTH)
    stirred(net)
    told = {"condition": torch.randn(2, 6), "context": torch.randn(2, 3, 5)} if "context_dim" in options else {}
    net(x, SEQUENCE, **told).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_row_alone_is_the_row_in_a_batch():
    net, x = stirred(Transformer(WIDTH, 2, HEADS, condition_dim=6)), torch.randn(4, LENGTH, WIDTH)
    condition = torch.randn(4, 6)
    together = net(x, SEQUENCE, condition)
    for row in range(4):
        assert torch.allclose(net(x[row, None], SEQUENCE, condition[row, None])[0], together[row], atol=1e-5)


def test_bfloat16_is_float32_within_its_precision():
    net, x = causal(), torch.randn(2, LENGTH, WIDTH)
    exact = net(x, SEQUENCE)
    with torch.autocast("cpu", torch.bfloat16):
        halved = net(x, SEQUENCE)
    assert (halved.float() - exact).square().mean() < 0.02 * exact.square().mean()
    halved.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.slow
def test_compiled_is_the_same():
    net, x = causal(2), torch.randn(2, LENGTH, WIDTH)
    assert torch.allclose(torch.compile(net)(x, SEQUENCE), net(x, SEQUENCE), atol=1e-5)


def test_fewer_channels_than_places_are_refused_at_once():
    with pytest.raises(AssertionError, match="heads of 10 channels"):
        Transformer(10, 1, 2 + 1)
    with pytest.raises(AssertionError, match="looks ahead"):
        Transformer(WIDTH, 1, HEADS).allocate(1, 1)
