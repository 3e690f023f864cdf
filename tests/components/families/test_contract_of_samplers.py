"""What every sampler promises to evaluation and to serving."""

from __future__ import annotations

import pytest
import torch

from components.artifacts import run_folder
from components.config import parse
from components.errors import ConfigError
from components.evaluation import generation
from components.evaluation.pictures import walks
from components.families import family_class
from components.sampling.requests import BLEND
from components.sampling.trajectories import drive
from tests.components.families.contract import SAMPLERS, fast, request
from tests.components.helpers import build

pytestmark = pytest.mark.usefixtures("exact")


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_lie_in_range_and_follow_their_seeds(name, folders):
    sampler = run_folder.load(folders[name][0]).family
    images = sampler.sample(request(sampler, [3, 4, 3, 2**62], **fast(name)))
    assert images.shape == (4, *sampler.row_shape)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1
    assert torch.allclose(images[0], images[2], atol=1e-6)
    assert (images[0] - images[1]).abs().max() > 1e-5
    assert (images[0] - images[3]).abs().max() > 1e-5
    torch.manual_seed(99)
    assert torch.equal(sampler.sample(request(sampler, [3, 4, 3, 2**62], **fast(name))), images)


@pytest.mark.parametrize("name", SAMPLERS)
def test_co_batched_equals_alone(name, folders):
    sampler = run_folder.load(folders[name][0]).family
    together = sampler.sample(request(sampler, [5, 6, 7], **fast(name)))
    for place, seed in enumerate([5, 6, 7]):
        alone = sampler.sample(request(sampler, [seed], **fast(name)))
        assert torch.allclose(alone[0], together[place], atol=1e-4)


BLENDING = [name for name in SAMPLERS if BLEND in build(name).accepts]


@pytest.mark.parametrize("name", BLENDING)
def test_a_blend_goes_from_one_row_to_the_other(name, folders):
    """Of another seed, and class where there are classes."""
    sampler = run_folder.load(folders[name][0]).family
    first, last = (request(sampler, seeds, **fast(name)) for seeds in ([3, 4], [7, 8]))
    found = walks(sampler, first, last, 3).unflatten(0, (2, 3))
    assert torch.allclose(found[:, 0], sampler.sample(first), atol=1e-4)
    assert torch.allclose(found[:, -1], sampler.sample(last), atol=1e-4)
    assert (found[:, 1] - found[:, 0]).abs().max() > 1e-5
    assert (found[:, 1] - found[:, 2]).abs().max() > 1e-5


TOLD = [name for name in SAMPLERS if build(name).texts]


@pytest.mark.parametrize("name", TOLD)
def test_evaluation_asks_for_captions_of_any_length(name, folders):
    """Training cuts what is too long for a net; a request with a longer prompt is refused."""
    sampler = run_folder.load(folders[name][0]).family
    settings = sampler.Settings(**fast(name))
    asked = generation.request(sampler, settings, 0, 2, 0, generation.Captions(("é" * 300,)))
    assert sampler.sample(asked).shape == (2, *sampler.row_shape)


class RowsFirst:
    """A net whose calls and answers are checked on their way."""

    def __init__(self, net):
        self.net = net

    def __getattr__(self, name):
        return getattr(self.net, name)

    def __call__(self, **inputs):
        (rows,) = {len(values) for name, values in inputs.items() if name != "cache"}
        answer = self.net(**inputs)
        parts = answer.values() if isinstance(answer, dict) else [answer]
        assert {len(part) for part in parts} == {rows}
        return answer


@pytest.mark.parametrize("name", SAMPLERS)
def test_calls_hold_rows_first(name, folders):
    sampler = run_folder.load(folders[name][0]).family
    calls = {net: RowsFirst(call) for net, call in sampler.calls.items()}
    assert len(drive(sampler.trajectory(request(sampler, [1, 2], **fast(name))), calls)) == 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_settings_are_strict(name):
    kind = family_class(name).Settings
    assert parse(kind, {}, "settings") == kind()
    with pytest.raises(ConfigError, match=r"settings\.nope: unknown key"):
        parse(kind, {"nope": 1}, "settings")
