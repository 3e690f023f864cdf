"""Low-rank adapters: what they add, and many of them in one forward, a row each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.nets.blocks import Attention
from components.nets.low_rank import Adapted, Adapter, AdapterConfig


class Net(nn.Module):
    """Two attentions after one another."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Attention(6, 2), Attention(6, 2)

    def forward(self, x):
        return self.two(self.one(x))


def adapter(net: nn.Module, seed: int, **config) -> Adapter:
    made = Adapter(net, AdapterConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return made


def merged(net: nn.Module, of: Adapter) -> Net:
    """The net with what the adapter adds in its weights."""
    other = Net()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        for name in of.layers:
            down, up = of.matrices(name)
            other.get_submodule(name).weight.add_(up @ down)
    return other


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def test_it_adds_a_low_rank_to_weights(net):
    x, one = torch.randn(4, 5, 6), adapter(net, 1, rank=2, alpha=6.0)
    assert torch.allclose(one(x=x), merged(net, one)(x), atol=1e-5)
    down, up = one.down["one/to_q"], one.up["one/to_q"]
    assert torch.allclose(one.matrices("one.to_q")[1] @ one.matrices("one.to_q")[0], 3 * up @ down)
    assert torch.equal(net(x), Net.forward(net, x)) and not net.one.to_q._forward_hooks, "the net is left as it was"


def test_it_begins_as_the_net_and_learns_alone(net):
    x, fresh = torch.randn(3, 5, 6), Adapter(net, AdapterConfig(rank=2))
    assert torch.equal(fresh(x=x), net(x))
    fresh(x=x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in fresh.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert {name.partition(".")[0] for name in fresh.state_dict()} == {"down", "up"}, "no weight of the net"


def test_each_row_has_its_own(net):
    adapters = {"a": adapter(net, 1, rank=2), "b": adapter(net, 2, rank=3, targets=("one.to_v", "to_out.0"))}
    adapted, x = Adapted(net, adapters), torch.randn(5, 4, 6)
    number, strength = torch.tensor([1, 0, 2, 1, 2]), torch.tensor([1.0, 1.0, 0.5, -2.0, 1.0])
    together = adapted(number, strength, x=x)
    for row in range(5):
        part = slice(row, row + 1)
        assert torch.equal(adapted(number[part], strength[part], x=x[part])[0], together[row]), "alone as in company"
    assert torch.equal(together[1], net(x[1:2])[0]), "no adapter adds nothing"
    for row, of in ((0, "a"), (4, "b")):
        assert torch.allclose(together[row], merged(net, adapters[of])(x[row : row + 1])[0], atol=1e-5)
    assert not torch.allclose(together[2], adapted(number[2:3], torch.ones(1), x=x[2:3])[0])
    adapters["a"].load_state_dict(adapter(net, 3, rank=2).state_dict())
    assert not torch.allclose(adapted(number, strength, x=x)[0], together[0]), "new weights count at once"


def test_what_no_layer_is_called_is_refused(net):
    with pytest.raises(ValueError, match="targets: no linear layer is called ff"):
        Adapter(net, AdapterConfig(targets=("to_q", "ff")))
