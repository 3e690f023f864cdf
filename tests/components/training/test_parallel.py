"""Behind torch's data parallelism: every gradient goes through its reducer, also of a net that was called ahead."""

from __future__ import annotations

import pytest
import torch
from torch import distributed
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from components.training.loop import TrainingConfig, fit
from tests.components.helpers import assert_same, build, copied, no_wrap, one_exact_thread, stream

CONFIG = TrainingConfig(steps=3, batch_size=6)
EVERY_STEP = {"dcgan": {"num_critic_steps": 1}, "bigbigan": {"num_critic_steps": 1}, "dmd2": {"num_score_steps": 1}}


@pytest.fixture
def group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    with one_exact_thread():
        yield
    distributed.destroy_process_group()


def trained(name: str, wrap) -> dict[str, dict[str, torch.Tensor]]:
    family = build(name, **EVERY_STEP.get(name, {}))
    fit(family, stream(name), CONFIG, start=None, wrap=wrap, report=lambda step, found: found, save=lambda state: None)
    return {net: copied(module) for net, module in family.nets.items()}


@pytest.mark.parametrize("name", ["dcgan", "bigbigan", "meanflow", "dmd2"])
def test_every_gradient_of_every_move_is_shared(name, group):
    shared: list[tuple[int, int]] = []  # of each net: its numbers, and how many gradients the reducer has seen

    def wrap(net, optimizer):
        wrapped, place = DistributedDataParallel(net), len(shared)
        shared.append((sum(p.numel() for p in net.parameters()), 0))

        def hook(state, bucket):
            numbers, seen = shared[place]
            shared[place] = (numbers, seen + bucket.buffer().numel())
            done = Future()
            done.set_result(bucket.buffer())
            return done

        wrapped.register_comm_hook(None, hook)
        return wrapped, optimizer

    assert_same(trained(name, wrap), trained(name, no_wrap))
    assert len(shared) == len(build(name).phases)
    assert [seen for _, seen in shared] == [CONFIG.steps * numbers for numbers, _ in shared]
