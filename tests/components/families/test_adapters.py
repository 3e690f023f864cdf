"""LoRA of Stable Diffusion: what is trained, and requests for different adapters in one engine."""

from __future__ import annotations

import pytest
import torch

from components.errors import ConfigError, SamplerError
from components.families.stable_diffusion import Model
from components.sampling.requests import Conditions, Request
from components.training.loop import fit
from tests.components.families.contract import CONFIG, co_batched, fast, stored
from tests.components.helpers import assert_same, build, copied, no_wrap, one_exact_thread, stream

ADAPTERS = {"one": {"rank": 2}, "two": {"rank": 3, "targets": ("to_q", "ff.net.2")}}
ENDS = {"wrap": no_wrap, "report": lambda step, figures: figures}


@pytest.fixture(scope="module")
def sampler() -> Model:
    family = build("stable_diffusion", adapters=ADAPTERS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("adapter_one", "adapter_two"):
            for parameter in family.nets[name].parameters():
                torch.nn.init.normal_(parameter, std=0.5)
    family.nets.requires_grad_(False).eval()
    return family


def asked(sampler: Model, seed: int = 3, **settings) -> Request:
    chosen = sampler.Settings(**{**fast("stable_diffusion"), **settings})
    return Request(torch.tensor([seed]), chosen, Conditions(prompt=("abc",)))


def test_adapters_alone_are_trained_and_go_on_bit_for_bit(tmp_path):
    checkpoints, ended = {}, []

    def run(start=None, seed=0, save=lambda state: None):
        family = build("stable_diffusion", seed, adapters={"one": {"rank": 2}})
        family.nets["denoiser"].load_state_dict(build("stable_diffusion").nets["denoiser"].state_dict())
        stream_from = stream("stable_diffusion", start=start.step if start else 0)
        ended.append(fit(family, stream_from, CONFIG, start=start, save=save, **ENDS))
        return family

    with one_exact_thread():
        family = run(save=lambda state: checkpoints.update({state.step: stored(state, tmp_path / f"{state.step}.pt")}))
        again = run(checkpoints[3], seed=1)
    assert set(ended[0].nets) == set(ended[0].average) == {"adapter_one"}
    assert_same(vars(ended[1]), vars(ended[0]))
    base = copied(build("stable_diffusion").nets["denoiser"])
    assert_same(copied(family.nets["denoiser"]), base)
    assert_same(copied(again.nets["adapter_one"]), copied(family.nets["adapter_one"]))
    assert all(value.abs().max() > 0 for name, value in family.nets["adapter_one"].up.items()), "every layer learns"
    family.nets["adapter_one"].load_state_dict(ended[0].average["adapter_one"])
    on, off = (family.sample(asked(family, adapter=adapter)) for adapter in (None, "none"))
    assert not torch.equal(on, off), "the only adapter is on"
    plain = build("stable_diffusion")
    assert torch.equal(off, plain.sample(asked(plain)))


def test_requests_for_different_adapters_share_forwards(sampler):
    requests = [
        asked(sampler),
        asked(sampler, adapter="one"),
        asked(sampler, adapter="two"),
        asked(sampler, adapter="one", adapter_scale=0.3, refiner_start=1.0),
    ]
    together, forwards = co_batched(sampler, requests)
    for one, images in zip(requests, together, strict=True):
        assert torch.allclose(images, sampler.sample(one), atol=1e-5)
    assert max(forward.num_calls for forward in forwards if forward.net == "denoiser") == 4
    for number, images in enumerate(together):
        assert all((images - other).abs().max() > 1e-4 for other in together[:number])
    none = sampler.sample(asked(sampler, adapter="none"))
    assert torch.equal(none, together[0]) or torch.allclose(none, together[0], atol=1e-5), "of several none is on"


def test_reused_features_are_those_of_the_requests_own_adapter(sampler):
    def requests(reuse: int) -> list[Request]:
        return [asked(sampler, adapter=one, reuse=reuse, num_inference_steps=4) for one in ("none", "one", "two")]

    together, forwards = co_batched(sampler, requests(2))
    for one, images in zip(requests(2), together, strict=True):
        assert torch.allclose(images, sampler.sample(one), atol=1e-5)
    shallow = [forward.num_calls for forward in forwards if forward.net.endswith("shallow")]
    assert max(shallow) == 3, "the three share the forwards that reuse"
    for number, (images, plain) in enumerate(zip(together, requests(1), strict=True)):
        assert (images - sampler.sample(plain)).abs().max() > 1e-5
        assert all((images - other).abs().max() > 1e-4 for other in together[:number])


def test_what_there_is_not_is_refused(sampler):
    with pytest.raises(SamplerError, match="adapter: expected one of one, two, none, found 'three'"):
        sampler.sample(asked(sampler, adapter="three"))
    with pytest.raises(ConfigError, match=r"adapters\.a\.targets: no linear layer is called nope"):
        build("stable_diffusion", adapters={"a": {"targets": ("nope",)}})
    with pytest.raises(ValueError, match="letters, digits and _, and not none"):
        Model.Config(**{**sampler.config.model_dump(), "adapters": {"none": {}}})
