"""Muon: its steps are orthogonal, of AdamW's size, and go to the matrices in blocks alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from components.errors import ConfigError
from components.nets.dit import DiT
from components.training import optimizers
from components.training.muon import block_matrices, orthogonalised
from components.training.optimizers import OptimizerConfig

CONFIG = OptimizerConfig(name="muon", learning_rate=0.1)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("shape", [(8, 8), (4, 20), (20, 4), (3, 6, 9)])
def test_singular_values_come_to_about_one_and_directions_stay(shape):
    matrices = torch.randn(shape)
    found = orthogonalised(matrices)
    values = torch.linalg.svdvals(found)
    assert found.shape == shape and values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert nn.functional.cosine_similarity(found.flatten(-2), (u @ v).flatten(-2), dim=-1).min() > 0.97


def test_one_of_a_stack_is_itself_alone():
    matrices = torch.randn(3, 6, 9)
    assert torch.allclose(orthogonalised(matrices)[1], orthogonalised(matrices[1]), atol=1e-6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), nn.Embedding(4, 8)])
        self.kernels = nn.ModuleList([nn.Conv2d(2, 4, 3)])


def test_only_matrices_in_blocks_are_moved_so():
    assert block_matrices(Net()) == {"blocks.0.0.weight", "kernels.0.weight"}
    of_dit = block_matrices(DiT(2, 2, 1, 16, 1, 2, num_classes=3, context_dim=4))
    assert of_dit == {
        f"trunk.blocks.0.{name}.weight"
        for name in (
            *(f"{kind}.to_{which}" for kind in ("attention", "cross") for which in ("q", "k", "v", "out")),
            *(f"feed.{which}" for which in ("gate", "value", "out")),
        )
    }


def test_a_matrix_moves_by_an_orthogonal_step_of_adamws_size_and_the_rest_as_adamw_moves_it():
    net = Net()
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    twin = copy.deepcopy(net)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        theirs.grad = ours.grad.clone()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizers.build(CONFIG, net).step()
    optimizers.build(OptimizerConfig(learning_rate=0.1), twin).step()
    for name, parameter in net.named_parameters():
        step = (parameter - before[name]).detach()
        if name in ("blocks.0.0.weight", "kernels.0.weight"):
            values = torch.linalg.svdvals(step.flatten(1)) / (0.1 * 0.2 * max(step.flatten(1).shape) ** 0.5)
            assert values.min() > 0.6 and values.max() < 1.3, name
        else:
            assert torch.equal(parameter, dict(twin.named_parameters())[name]), name


def test_a_stored_state_goes_on_to_the_same_bits():
    def steps(net, optimizer, first, last):
        for number in range(first, last):
            torch.manual_seed(number)
            for parameter in net.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    net = Net()
    optimizer = optimizers.build(CONFIG, net)
    steps(net, optimizer, 0, 2)
    resumed, state = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
    steps(net, optimizer, 2, 4)
    again = optimizers.build(CONFIG, resumed)
    again.load_state_dict(state)
    steps(resumed, again, 2, 4)
    for ours, theirs in zip(net.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_decay_shrinks_a_matrix_that_has_no_gradient():
    net = Net()
    weight = net.blocks[0][0].weight
    before = weight.detach().clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.build(CONFIG.model_copy(update={"weight_decay": 0.5}), net).step()
    assert torch.allclose(weight, before * (1 - 0.1 * 0.5))


def test_a_net_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="optimizer.name: muon: Linear has no matrices in blocks; expected adamw"):
        optimizers.build(CONFIG, nn.Linear(3, 3))
