"""What of CUDA graphs a CPU can show; `python -m tests.gpu` compares every family with and without them."""

import weakref
from typing import NamedTuple

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from components.cuda_graphs import Replayed, ReplayedKeeper, Trained, _ByPlace, signature
from components.training.loop import TrainingConfig


class Answer(NamedTuple):
    images: Tensor
    kept: Tensor | None
    parts: dict


class Net(nn.Module):
    """Gives tensors among other things."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, shift: Tensor, times: int = 1) -> Answer:
        return Answer(self.scale * x * times + shift, None, {"x": x, "name": "x"})


def test_a_recording_is_for_shapes_types_gradients_and_other_values():
    x = torch.zeros(2, 3)
    same = signature({"x": x, "times": 2})
    assert same == signature({"x": torch.ones(2, 3), "times": 2})
    for other in ({"x": x[:1], "times": 2}, {"x": x.double(), "times": 2}, {"x": x, "times": 3}, {"x": x}):
        assert signature(other) != same
    assert signature({"x": x.clone().requires_grad_(), "times": 2}) != same


def test_a_net_by_place_gives_the_tensors_alone_and_its_answer_is_put_together_again():
    x, shift = torch.arange(3.0), torch.ones(3)
    module = _ByPlace(Net(), (0, "shift"), {"times": 3})
    images, kept = tensors = module(x, shift)
    assert torch.equal(images, 6 * x + 1) and torch.equal(kept, x)
    whole = module.whole(tuple(10 * tensor for tensor in tensors))
    assert torch.equal(whole.images, 10 * images)
    assert whole.kept is None and whole.parts["name"] == "x" and torch.equal(whole.parts["x"], 10 * x)


def test_in_training_what_is_on_no_gpu_is_launched_as_ever():
    net = Net()
    trained = Trained(net, "phase")
    answer = trained(torch.ones(2), shift=torch.zeros(2))
    answer.images.sum().backward()
    assert net.scale.grad == 2 and trained.scale is net.scale


def test_a_net_that_takes_what_is_on_the_host_is_launched_as_ever():
    calls = []

    def net(**inputs: Tensor) -> Tensor:
        calls.append(inputs)
        return inputs["x"] + 1

    replayed = Replayed(net, pool=None)
    for number in range(3):
        assert torch.equal(replayed(x=torch.full((2,), float(number))), torch.full((2,), number + 1.0))
    assert replayed.why_launched == "x is on the host"
    assert len(calls) == 3, "each call is answered by one of the net"


def test_one_call_that_fails_leaves_other_shapes_recorded(monkeypatch):
    def net(x, bad=False):
        if bad:
            raise RuntimeError("a bad input")
        return "launched"

    def record(self, inputs, kept):
        if inputs.get("bad"):
            raise RuntimeError("a bad input")
        if len(inputs["x"]) > 1:
            raise torch.OutOfMemoryError("no room for a recording of so many rows")
        return lambda inputs: "replayed"

    monkeypatch.setattr(Replayed, "_record", record)
    graphs, one, two = Replayed(net, pool=None), torch.zeros(1), torch.zeros(2)
    with pytest.raises(RuntimeError, match="a bad input"):
        graphs(x=one, bad=True)
    assert [graphs(x=x) for x in (one, two, two, one)] == ["replayed", "launched", "launched", "replayed"]
    assert graphs.why_launched is None


def test_recordings_are_of_the_cache_that_is_given_and_of_none_that_is_gone(monkeypatch):
    made = []

    def record(self, inputs, kept):
        made.append(kept.get("cache"))
        return lambda inputs: (inputs["x"], kept.get("cache"))

    monkeypatch.setattr(Replayed, "_record", record)
    net = Replayed(lambda **inputs: inputs, pool=None)
    first, second, x = [torch.zeros(2)], [torch.ones(2)], torch.zeros(1)
    for cache in (first, None, first, second, None, second):
        assert net(cache=cache, x=x)[1] is cache
    assert [cache for cache in made if cache is not None] == [first, second] and made.count(None) == 1
    gone = weakref.ref(second[0])
    made.clear()
    del second, cache
    assert net(cache=first, x=x)[1] is first
    assert gone() is None


def test_only_nets_that_keep_rows_are_told_to_keep_some():
    assert not hasattr(Replayed(Net(), None), "allocate")

    class Keeper:
        row_bytes = 4

        def allocate(self, rows: int) -> Tensor:
            return torch.zeros(rows)

        def __call__(self, *, cache: Tensor, slot: Tensor) -> Tensor:
            cache[slot] += 1
            return cache[slot]

    keeper = ReplayedKeeper(Keeper(), None)
    cache = keeper.allocate(3)
    assert keeper.row_bytes == 4
    assert torch.equal(keeper(cache=cache, slot=torch.tensor([1])), torch.tensor([1.0]))
    assert torch.equal(cache, torch.tensor([0.0, 1.0, 0.0])), "the net is called once, recorded or not"


@pytest.mark.parametrize("beside", [{"compile": True}, {"recompute": True}, {"accumulate": 2}])
def test_passes_that_are_made_otherwise_are_not_replayed(beside):
    with pytest.raises(ValidationError, match=f"cuda_graphs: .* no {next(iter(beside))}"):
        TrainingConfig(steps=1, batch_size=2, cuda_graphs=True, **beside)
