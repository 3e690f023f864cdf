"""What the blocks do beside their parity with diffusers: shortcuts that must not change a result."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.nets.blocks import Attention, BasicTransformerBlock, dot_product_attention


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def gradients(net: nn.Module, answer: torch.Tensor) -> dict[str, torch.Tensor]:
    answer.square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.zero_grad()
    return found


def test_attention_to_one_token_is_the_token():
    attention = Attention(8, heads=2, context_dim=5)
    x, token = torch.randn(3, 6, 8), torch.randn(3, 1, 5)
    by_softmax, by_token = attention(x, token), attention.of_one(token).expand(3, 6, 8)
    assert torch.allclose(by_token, by_softmax, atol=1e-6)
    expected, found = gradients(attention, by_softmax), gradients(attention, by_token)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name
    assert not found["to_q.weight"].any() and not found["to_k.weight"].any()
    assert found["to_v.weight"].any() and found["to_out.0.weight"].any()


def test_a_transformer_block_gives_every_parameter_a_gradient_whatever_the_context():
    block = BasicTransformerBlock(8, heads=2, context_dim=5)
    x, token = torch.randn(3, 6, 8), torch.randn(3, 1, 5)
    one = block(x, token)
    two = block(x, token.expand(3, 2, 5))  # twice the same token is that token
    assert torch.allclose(one, two, atol=1e-6)
    expected, found = gradients(block, two), gradients(block, one)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-4), name


def test_attention_in_bfloat16_is_that_in_float32():
    q, k, v = torch.randn(3, 2, 4, 9, 16, requires_grad=True)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert halved.dtype == torch.bfloat16
    assert torch.allclose(halved.float(), exact, atol=0.03)
