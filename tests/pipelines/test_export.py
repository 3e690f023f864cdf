"""The verb: runs to and from folders of diffusers, and refusals in one line."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch

from components.artifacts import run_folder
from components.config import parse
from components.errors import ConfigError, SamplerError
from components.nets.low_rank import AdapterConfig
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request
from components.training.loop import State
from infra.ray_train import Input, Job
from pipelines import export
from pipelines.support import inputs, paths
from pipelines.support.params import Params, TrainBlock
from tests.components.helpers import assert_same
from tests.components.interchange import folders
from tests.components.interchange.test_to_diffusers import run
from tests.pipelines.measured import PARAMS


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


def test_a_run_goes_out(runs, tmp_path, capsys):
    made = run(tmp_path)
    family = made.family
    average = {"denoiser": family.nets["denoiser"].state_dict()}
    run_folder.write(runs / "ldm", "latent_diffusion", family, State(0, {}, {}, average), made.config.provenance)
    export.main(["ldm", "--to", "diffusers", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["unet"] == [
        "diffusers",
        "UNet2DConditionModel",
    ]
    assert "out" in capsys.readouterr().out
    with pytest.raises(SamplerError, match="is there already; expected the name of a new folder"):
        export.main(["ldm", "--to", "diffusers", str(tmp_path / "out")])
    with pytest.raises(SamplerError, match="missing; expected a run folder"):
        export.main(["nobody", "--to", "diffusers", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_a_folder_comes_in_as_a_run_that_serves_prompts(runs, tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    folders.stable_diffusion(tmp_path / "model")
    export.main(["sd", "--from", str(tmp_path / "model")])
    loaded = run_folder.load(runs / "sd")
    assert loaded.config.family == "stable_diffusion"
    family = loaded.family
    settings = family.Settings(num_inference_steps=3)
    first, second = (
        family.sample(Request(torch.tensor([1]), settings, Conditions(prompt=(text,)))) for text in ("a fish", "a cat")
    )
    assert first.shape == (1, 3, 16, 16)
    assert first.abs().max() <= 1
    assert not torch.equal(first, second)
    direct = export.from_diffusers.read(tmp_path / "model")
    assert torch.equal(direct.sample(Request(torch.tensor([1]), settings, Conditions(prompt=("a fish",)))), first)


def test_an_imported_model_is_served_and_fine_tuned(runs, tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    folders.stable_diffusion(tmp_path / "model")
    export.main(["sd", "--from", str(tmp_path / "model")])
    family = run_folder.load(runs / "sd").family
    asked = ({"guidance_scale": 5.0}, "a fish"), ({"guidance_scale": 1.0, "solver": "heun"}, "a cat")
    requests = [
        Request(torch.tensor([seed]), family.Settings(num_inference_steps=3, **settings), Conditions(prompt=(text,)))
        for seed, (settings, text) in enumerate(asked)
    ]
    engine = Engine(family.calls)
    futures = [engine.submit(functools.partial(family.trajectory, request)) for request in requests]
    for request, future in zip(requests, futures, strict=True):
        assert (future.result(timeout=60) - family.sample(request)).abs().max() < 1e-4
    engine.stop()

    block = TrainBlock(
        family="stable_diffusion",
        data="data/latents",
        model={"optimizer": {"learning_rate": 0.001}},
        training={"steps": 1, "batch_size": 2},
    )
    start = str(runs / "sd")
    content = {**PARAMS, "samplers": {"tuned": block.model_dump()}, "inputs": {"tuned/start": start}}
    params = Params(**content)
    config = parse(type(family).Config, inputs.whole_model(params, "tuned"), "model")
    assert config.backbone == family.config.backbone
    assert config.optimizer.learning_rate == 0.001
    given = (Input("start", start, "hash"),)
    job = Job("tuned", block.family, config, family.data, block.training, 0, "nowhere", "d", "c", given)
    begun = job.build()
    for net in family.kept:
        assert_same(dict(begun.nets[net].state_dict()), dict(family.nets[net].state_dict()), net)

    # an adapter begins anew on what it adapts, goes out as a file and comes in again
    adapted = replace(job, config=config.model_copy(update={"adapters": {"ink": AdapterConfig(rank=2)}})).build()
    net = adapted.nets["adapter_ink"]
    assert all(not up.any() for up in net.up.values()) and all(down.any() for down in net.down.values())
    for part in family.kept:
        assert_same(dict(adapted.nets[part].state_dict()), dict(family.nets[part].state_dict()), part)
    with torch.no_grad():
        for up in net.up.values():
            up.normal_(generator=torch.Generator().manual_seed(1))
    run_folder.write(
        runs / "tuned",
        "stable_diffusion",
        adapted,
        State(1, {}, {}, {"adapter_ink": net.state_dict()}),
        run_folder.read_config(runs / "sd").provenance,
    )
    export.main(["tuned", "--to", "lora", str(tmp_path / "out")])
    export.main(["inked", "--from", str(tmp_path / "model"), "--adapter", f"ink={tmp_path / 'out'}"])
    tuned, inked = (run_folder.load(runs / name).family for name in ("tuned", "inked"))
    images = [one.sample(requests[0]) for one in (family, tuned, inked)]
    assert torch.allclose(images[1], images[2], atol=1e-5) and not torch.allclose(images[0], images[1], atol=1e-3)
    again = replace(job, config=tuned.config, inputs=(Input("start", str(runs / "tuned"), "hash"),)).build()
    assert_same(dict(again.nets["adapter_ink"].state_dict()), dict(tuned.nets["adapter_ink"].state_dict()))
    export.main(["tuned", "--to", "diffusers", str(tmp_path / "merged")])
    export.main(["merged", "--from", str(tmp_path / "merged")])
    merged = run_folder.load(runs / "merged").family.sample(requests[0])
    assert torch.allclose(merged, images[1], atol=1e-4)
    with pytest.raises(ConfigError, match="--adapter: expected NAME=FILE, found 'ink'"):
        export.main(["other", "--from", str(tmp_path / "model"), "--adapter", "ink"])


@pytest.mark.parametrize(
    "argv", [["ldm"], ["ldm", "--to", "onnx", "out"], ["ldm", "--to", "diffusers", "out", "--from", "x"]]
)
def test_usage(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        export.main(argv)
    assert stopped.value.code == 2
    assert "usage: python -m pipelines.export" in capsys.readouterr().err
