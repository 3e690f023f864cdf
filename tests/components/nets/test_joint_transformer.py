"""Two kinds of rows in one attention, against closed forms; a text that ends, and rows that stay apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from components.nets.byte_transformer import TextEncoder
from components.nets.dit import MMDiT
from components.nets.joint_transformer import JointBlock, JointTransformer, Stream
from components.nets.rotary import grid_places, rotary_angles, rotate
from tests.components.nets.test_transformer import HEADS, WIDTH, stirred

HEAD, CONTEXT, PLACES = WIDTH // HEADS, 5, grid_places([2, 3])


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def asked(rows: int = 2, length: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """An image's tokens, a condition, a text."""
    return torch.randn(rows, 6, WIDTH), torch.randn(rows, WIDTH), torch.randn(rows, length, CONTEXT)


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def heads_of(stream: Stream, x: Tensor, vectors: tuple[Tensor, ...]) -> list[Tensor]:
    """Queries, keys and values from the weights themselves."""
    x = norm(x) * (1 + vectors[1]) + vectors[0]
    of = stream.attention
    q, k, v = (
        (x @ layer.weight.T).unflatten(2, (HEADS, HEAD)).transpose(1, 2) for layer in (of.to_q, of.to_k, of.to_v)
    )
    return [norm(q) * of.norm_q.weight, norm(k) * of.norm_k.weight, v]


def test_a_block_is_torchs_attention_on_concatenated_rows():
    block, (x, condition, _), text = stirred(JointBlock(WIDTH, HEADS)), asked(), torch.randn(2, 4, WIDTH)
    angles, there = rotary_angles(PLACES, HEAD), torch.ones(2, 4, dtype=torch.bool)
    got, got_text = block(x, text, condition, condition, angles, there)

    vectors, text_vectors = (stream.modulation(condition) for stream in (block.image, block.text))
    q, k, v = heads_of(block.image, x, vectors)
    q, k = rotate(q, angles), rotate(k, angles)
    text_q, text_k, text_v = heads_of(block.text, text, text_vectors)
    seen = F.scaled_dot_product_attention(
        torch.cat([q, text_q], 2), torch.cat([k, text_k], 2), torch.cat([v, text_v], 2)
    )
    seen = seen.transpose(1, 2).flatten(2)
    for stream, rows, own, result, of in (
        (block.image, x, seen[:, :6], got, vectors),
        (block.text, text, seen[:, 6:], got_text, text_vectors),
    ):
        rows = rows + of[2] * (own @ stream.attention.to_out.weight.T)
        rows = rows + of[5] * stream.feed(norm(rows) * (1 + of[4]) + of[3])
        assert torch.allclose(result, rows, atol=1e-5)


def test_of_the_last_block_the_text_is_seen_and_moves_no_further():
    last = JointBlock(WIDTH, HEADS, last=True)
    assert {name.split(".")[1] for name, _ in last.text.named_parameters() if name.startswith("attention")} == {
        "to_k",
        "to_v",
        "norm_k",
    }
    text = torch.randn(2, 4, WIDTH)
    x, condition, _ = asked()
    told = (condition, condition, rotary_angles(PLACES, HEAD), torch.ones(2, 4, dtype=torch.bool))
    stirred(last)
    answer, same = last(x, text, *told)
    assert same is text and not torch.allclose(last(x, text + 1, *told)[0], answer, atol=1e-3)


def test_rows_of_zeros_are_no_text():
    net, (x, condition, text) = stirred(JointTransformer(WIDTH, 2, HEADS, CONTEXT)), asked()
    plain = net(x, PLACES, condition, text)
    padded = torch.cat([text, torch.zeros(2, 3, CONTEXT)], dim=1)
    assert torch.allclose(net(x, PLACES, condition, padded), plain, atol=1e-5)
    between = torch.cat([text[:, :2], torch.zeros(2, 3, CONTEXT), text[:, 2:]], dim=1)
    assert torch.allclose(net(x, PLACES, condition, between), plain, atol=1e-5), "the encoder knew the places"
    assert not torch.allclose(net(x, PLACES, condition, text[:, :3]), plain, atol=1e-3)
    empty = net(x, PLACES, condition, torch.zeros_like(text))
    assert empty.isfinite().all() and not torch.allclose(empty, plain, atol=1e-3)
    assert torch.allclose(net(x, PLACES, condition, torch.zeros(2, 1, CONTEXT)), empty, atol=1e-5)


def test_the_encoder_ends_a_text_where_it_ends():
    short, long = (TextEncoder(length, 8, 2, 2, CONTEXT, hides_padding=True) for length in (6, 9))
    stirred(short)
    weights = short.state_dict()
    weights["places"] = torch.cat([weights["places"], torch.randn(3, 8)])
    long.load_state_dict(weights)
    tokens = torch.tensor([[3, 7, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4], [0] * 6])
    found, padded = short(tokens), long(F.pad(tokens, (0, 3)))
    assert torch.allclose(padded[:, :6], found, atol=1e-6)
    assert (found.any(2) == (tokens != 0)).all() and not padded[:, 6:].any()
    plain = TextEncoder(6, 8, 2, 2, CONTEXT)
    plain.load_state_dict(short.state_dict())
    assert not torch.allclose(plain(tokens)[0, :2], found[0, :2], atol=1e-3)


def test_each_kind_has_weights_of_its_own_and_every_weight_learns():
    net, (x, condition, text) = stirred(JointTransformer(WIDTH, 2, HEADS, CONTEXT)), asked()
    net(x, PLACES, condition, text).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    first = net.blocks[0]
    assert {name for name, _ in first.image.named_parameters()} == {name for name, _ in first.text.named_parameters()}


def mmdit(**changes) -> MMDiT:
    sizes = {"channels": 2, "rank": 2, "patch": 2, "width": WIDTH, "depth": 2, "heads": HEADS, "context_dim": CONTEXT}
    return MMDiT(**(sizes | changes))


def test_it_starts_at_nothing_and_every_weight_gets_a_gradient():
    net = mmdit()
    answer = net(torch.randn(2, 2, 4, 4), torch.tensor([10.0, 600.0]), torch.randn(2, 3, CONTEXT))
    assert not answer.any()
    answer.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("each", [(), (4,)], ids=["rows", "runs"])
def test_rows_alone_are_rows_in_a_batch(each):
    """Whatever the others' texts and levels, of whole rows or of each place on the first axis."""
    torch.manual_seed(0)
    level = torch.rand(3, *each) * 900
    net, x = stirred(mmdit(num_classes=3, patch=(1, 2))), torch.randn(3, 2, 4, 4)
    label, text = torch.tensor([0, 1, 2]), torch.randn(3, 4, CONTEXT)
    text[1, 2:], text[2] = 0, 0
    together = net(x, level, text, label)
    for row in range(3):
        part = slice(row, row + 1)
        assert torch.allclose(net(x[part], level[part], text[part], label[part])[0], together[row], atol=1e-4)


def test_image_rows_know_their_places_and_texts_order_is_the_encoders():
    net, (x, condition, text) = stirred(JointTransformer(WIDTH, 2, HEADS, CONTEXT)), asked()
    plain, order = net(x, PLACES, condition, text), torch.randperm(6)
    assert torch.allclose(net(x[:, order], PLACES[order], condition, text), plain[:, order], atol=1e-5)
    assert not torch.allclose(net(x, PLACES[order], condition, text), plain, atol=1e-3)
    assert torch.allclose(net(x, PLACES, condition, text.flip(1)), plain, atol=1e-5)


def test_bfloat16_is_float32_within_its_precision():
    net, (x, condition, text) = stirred(JointTransformer(WIDTH, 2, HEADS, CONTEXT)), asked()
    exact = net(x, PLACES, condition, text)
    with torch.autocast("cpu", torch.bfloat16):
        halved = net(x, PLACES, condition, text)
    assert (halved.float() - exact).square().mean() < 0.02 * exact.square().mean()


@pytest.mark.slow
def test_compiled_is_the_same():
    net, told = stirred(JointTransformer(WIDTH, 2, HEADS, CONTEXT)), asked()
    x, condition, text = told
    assert torch.allclose(torch.compile(net)(x, PLACES, condition, text), net(x, PLACES, condition, text), atol=1e-5)


def test_channels_that_are_in_no_pairs_are_refused():
    with pytest.raises(AssertionError, match="heads of 10 channels"):
        JointTransformer(10, 1, 3, CONTEXT)
