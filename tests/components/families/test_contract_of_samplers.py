"""What every sampler promises to evaluation and to serving."""

from __future__ import annotations

import pytest
import torch

from components.artifacts import run_folder
from components.config import parse
from components.errors import ConfigError
from components.families import family_class
from tests.components.families.contract import SAMPLERS, fast, request
from tests.components.helpers import IMAGES

pytestmark = pytest.mark.usefixtures("exact")


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_lie_in_range_and_follow_their_seeds(name, folders):
    sampler = run_folder.load(folders[name][0]).family
    images = sampler.sample(request(sampler, [3, 4, 3, 2**62], **fast(name)))
    assert images.shape == (4, *IMAGES.shape)
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_calls_hold_rows_first(name, folders):
    sampler = run_folder.load(folders[name][0]).family
    with torch.inference_mode():
        trajectory = sampler.trajectory(request(sampler, [1, 2], **fast(name)))
        call = next(trajectory)
        try:
            while True:
                (rows,) = {len(values) for values in call.inputs.values()}
                answer = sampler.calls[call.net](**call.inputs)
                assert len(answer) == rows
                call = trajectory.send(answer)
        except StopIteration as stop:
            assert len(stop.value) == 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_settings_are_strict(name):
    kind = family_class(name).Settings
    assert parse(kind, {}, "settings") == kind()
    with pytest.raises(ConfigError, match=r"settings\.nope: unknown key"):
        parse(kind, {"nope": 1}, "settings")
