"""The toy composite (tests/toys) by itself: parts, settings blocks, run folder, engine. From its training to HTTP:
tests/pipelines/test_composite.py."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from components import families
from components.artifacts import pyfunc, run_folder
from components.data.info import RunInfo
from components.data.media.image import MEDIUM
from components.errors import SamplerError
from components.evaluation import generation
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request, Source
from components.sampling.trajectories import drive
from components.training import ema
from components.training.loop import State
from tests import toys
from tests.components.gate import TIMEOUT
from tests.components.helpers import IMAGES, assert_same, copied, tiny

DRAFT = RunInfo(family="dcgan", config=dict(tiny("dcgan").config), data=IMAGES)
SETTINGS = {"redraw": {"num_inference_steps": 3, "guidance_scale": 1.0}}


@pytest.fixture(autouse=True)
def installed():
    with toys.installed():
        yield


@pytest.fixture
def sampler():
    kind = families.family_class("toy_composite")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = kind(kind.Config(), IMAGES.model_copy(update={"inputs": {"draft": DRAFT}}))
        for parameter in made.nets.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    made.nets.requires_grad_(False).eval()
    return made


@pytest.fixture
def folder(sampler, tmp_path):
    average = ema.copy_of({name: sampler.nets[name] for name in sampler.kept if name not in sampler.pretrained})
    provenance = run_folder.Provenance(data="d", code="c", job="j", seed=0, step=1)
    run_folder.write(tmp_path / "sampler", "toy_composite", sampler, State(1, {}, {}, average), provenance)
    return tmp_path


def asked(sampler, seeds, labels):
    settings = sampler.Settings(**SETTINGS)
    return Request(torch.tensor(seeds), settings, Conditions(label=torch.tensor(labels)))


def test_nets_and_phases_have_the_parts_names(sampler):
    assert set(sampler.kept) == {"draft_generator", "redraw_denoiser"} < set(sampler.calls)
    assert sampler.pretrained == sampler.nets_of_input("draft") == ("draft_generator",)
    assert [(phase.name, phase.net) for phase in sampler.phases] == [("redraw_denoise", "redraw_denoiser")]


def test_it_is_its_parts_one_after_the_other(sampler):
    request = asked(sampler, [3, 4], [0, 2])
    draft, redraw = sampler.parts["draft"], sampler.parts["redraw"]
    source = Source(draft.sample(Request(request.seeds, draft.Settings())).clamp(-1, 1), 0.7)
    conditions = dataclasses.replace(request.conditions, source=source)
    expected = redraw.sample(Request(request.seeds, request.settings.redraw, conditions))
    assert torch.equal(sampler.sample(request), expected)


def test_it_is_measured(sampler):
    settings = sampler.Settings(**SETTINGS)
    made = [generation.generate(sampler, part) for part in generation.requests(sampler, settings, 5, 0, 3)]
    assert [len(piece.images) for piece in made] == [3, 2] and made[0].labels.tolist() == [0, 1, 2]
    steps = len(sampler.parts["redraw"].sigmas(settings.redraw, 0.7)) - 1
    assert generation.network_evaluations(sampler, settings) == 1 + steps
    assert generation.ms_single(sampler, settings, 0) > 0


def test_a_run_folder_holds_the_parts_nets(sampler, folder):
    found = run_folder.load(folder / "sampler").family
    assert sorted(path.stem for path in folder.glob("sampler/*.safetensors")) == sorted(sampler.kept)
    for name in sampler.kept:
        assert_same(copied(found.nets[name]), copied(sampler.nets[name]))


def test_it_is_registered(sampler, folder):
    (folder / pyfunc.CANDIDATE).write_text(json.dumps({"settings": SETTINGS}))
    got = pyfunc.RegisteredSampler(folder).predict({"seed": [3], "label": [2]})
    expected = MEDIUM.to_stored(sampler.sample(asked(sampler, [3], [2]))).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(got, expected)


def test_it_is_served_together_with_others_and_shows_the_last_parts_previews(sampler):
    forwards, seen = [], []
    engine = Engine(sampler.calls, on_forward=forwards.append)
    requests = [asked(sampler, [seed], [seed % 3]) for seed in range(4)]
    futures = [
        engine.submit(
            lambda request=request: sampler.trajectory(request),
            num_previews=2,
            on_preview=lambda progress, images: seen.append((progress, images)),
        )
        for request in requests
    ]
    for request, future in zip(requests, futures, strict=True):
        assert (future.result(TIMEOUT) - drive(sampler.trajectory(request), sampler.calls)).abs().max() < 1e-4
    engine.stop(timeout=TIMEOUT)
    assert seen and all(images.shape == (1, *IMAGES.shape) for _, images in seen)
    assert {forward.net for forward in forwards} == set(sampler.kept)


def test_each_part_refuses_what_it_does_not_take(sampler):
    settings = sampler.Settings(redraw={"guidance": "autoguidance"})
    with pytest.raises(SamplerError, match="guidance: autoguidance needs a worse net: a snapshot"):
        sampler.sample(Request(torch.tensor([1]), settings))
    with pytest.raises(SamplerError, match="prompt: this sampler takes no texts"):
        sampler.trajectory(Request(torch.tensor([1]), settings, Conditions(prompt=("a",))))
