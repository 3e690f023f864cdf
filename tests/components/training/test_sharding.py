"""Two processes over gloo: a net that both hold, and one spread over them by FSDP2, train to the weights that a single
process comes to; what was spread is stored and continued whole."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import torch

from components.training import sharding
from components.training.loop import TrainingConfig, fit
from tests.components.helpers import assert_same

ROOT = Path(__file__).resolve().parents[3]
STEPS = 4
MOMENTS = {"adam": "exp_avg", "muon": "momentum"}  # what each optimizer keeps of the gradient


def pair_of(rank: int, world: int, start, spread: bool, optimizer: str, wrapped=lambda net: net):
    """Trains the toy family of test_training_options on this rank's rows of each batch. `wrapped`: puts a net that is
    not spread behind data parallelism."""
    from tests.components.training.test_options import ADAM, Mean, stream

    family, config = Mean(), ADAM.model_copy(update={"name": optimizer})
    family.phases = tuple(dataclasses.replace(phase, optimizer=config) for phase in family.phases)

    def part():
        for batch in stream(start.step if start else 0):
            share = slice(rank * 10 // world, (rank + 1) * 10 // world)
            yield type(batch)(
                {name: values[share] for name, values in batch.columns.items()},
                type(batch.draws)(batch.draws.keys[share]),
            )

    def wrap(net, optimizer):
        if spread:
            from torch.distributed.device_mesh import init_device_mesh

            sharding.shard(net, optimizer, init_device_mesh("cpu", (world,)))
        return net if spread else wrapped(net), optimizer

    saved = []
    config = TrainingConfig(
        steps=STEPS, batch_size=10, save_every=2, clip_norm=0.5, ema_snapshots=1, precision="float32"
    )
    state = fit(
        family,
        part(),
        config,
        start=start,
        wrap=wrap,
        report=lambda step, f: f,
        save=lambda s: saved.append(copy.deepcopy(s)),
    )
    return family, state, saved


def on_one_of_two(rank: int, folder: str) -> None:
    import torch.distributed as distributed
    from torch.nn.parallel import DistributedDataParallel

    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        for optimizer in MOMENTS:
            family, state, saved = pair_of(rank, 2, None, True, optimizer)
            weight = family.nets["net"][0].weight
            assert sharding.is_spread(weight)
            assert weight.to_local().numel() < weight.numel(), "each holds a part"
            _, continued, _ = pair_of(rank, 2, saved[0], True, optimizer)
            _, shared, _ = pair_of(rank, 2, None, False, optimizer, DistributedDataParallel)
            (own,) = shared.nets.values()
            every: list = [None, None]
            distributed.all_gather_object(every, {key: value.clone() for key, value in own.items()})
            assert_same(*every)  # each worker moves its own copy, to the same bits
            if rank == 0:
                torch.save([vars(state), vars(continued), vars(shared)], Path(folder) / f"{optimizer}.pt")
    finally:
        distributed.destroy_process_group()


def test_two_workers_train_a_net_as_one_does_whether_each_holds_it_or_a_part(tmp_path):
    here = "tests.components.training.test_sharding"
    script = f"import sys; from {here} import *; on_one_of_two(int(sys.argv[1]), sys.argv[2])"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), tmp_path], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors[-3000:]
    for optimizer, moments in MOMENTS.items():
        spread, continued, shared = torch.load(tmp_path / f"{optimizer}.pt", weights_only=True)
        _, whole, _ = pair_of(0, 1, None, False, optimizer)
        for state in (spread, continued, shared):
            assert state["step"] == STEPS
            for key, value in whole.nets["net"].items():
                assert torch.allclose(state["nets"]["net"][key], value, atol=1e-6), key
                assert torch.allclose(state["average"]["net"][key], whole.average["net"][key], atol=1e-6), key
            kept = {
                number: one[moments] for number, one in whole.optimizers["learn"]["state"].items() if moments in one
            }
            assert kept
            for number, value in kept.items():
                found = state["optimizers"]["learn"]["state"][number][moments]
                assert torch.allclose(found, value, atol=1e-6)
            assert state["snapshots"][-1]["step"] == STEPS
