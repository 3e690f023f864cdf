"""Runs that a block without steps holds as they are: measured, promoted and served like those that were trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import openai
import pytest
import yaml
from PIL import Image

from components.artifacts import run_folder
from components.errors import ConfigError, SamplerError
from components.training.loop import State
from infra.config import ServeConfig
from pipelines import evaluate, export, prepare, promote, reference, report, train
from pipelines.support import paths
from pipelines.support.params import load
from tests.components.helpers import assert_same, build
from tests.components.interchange import folders
from tests.infra.local import LocalBackend, client, free_port, serving
from tests.pipelines.in_process import train_stage
from tests.pipelines.test_train import write_run

DOCUMENT = (paths.ROOT / "docs/DIFFUSION.md").read_text()
QUICK = {"steps": 2, "batch_size": 4, "report_every": 1, "save_every": 2, "precision": "float32"}


def documented() -> dict:
    """The block of the document."""
    block = re.search(r"^### As it is\n\n    # params.yaml\n((?:    .*\n)+)", DOCUMENT, re.MULTILINE)
    return yaml.safe_load(block[1].replace("\n    ", "\n").removeprefix("    "))


def params(**changes) -> dict:
    known = documented()
    judge = {"family": "judge", "data": "data/images/train", "model": {"width": 4}, "training": QUICK}
    whole = {
        "seed": 0,
        "data": {"source": "folder", "path": "own", "image_size": 16, "channels": 3, "caption": "a {}"},
        "autoencoders": {},
        "judges": {"judge": judge},
        "encode": {},
        "samplers": known["samplers"],
        "inputs": {**known["inputs"], "evaluate/judge": "runs/judge"},
        "promote": {"refuse_collapsed": False},
        "evaluate": {"num_samples": 8, "batch_size": 4, "neighbours": 1, "resamples": 20, "real_draws": 3},
    }
    return whole | changes


def write(content: dict) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project of captioned pictures; no Ray may be started."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    for verb in (train, promote, report):
        monkeypatch.setattr(verb, "ROOT", root)

    def refused(*_):
        raise AssertionError("holding a run needs no Ray")

    monkeypatch.setattr(train, "session", refused)
    for number in range(24):
        path = Path(f"own/{'ab'[number % 2]}/{number:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(90 * number).resize((16, 16)).convert("RGB").save(path)
    return root


def write_adapters(root: Path) -> list[str]:
    """Two files of LoRA weights; returns how an import names them."""
    from components.interchange import lora
    from components.nets.low_rank import AdapterConfig
    from tests.components.interchange.test_to_stable_diffusion import changed, run_of, trained

    plain = export.from_diffusers.read(root / "model")
    config = {name: AdapterConfig(rank=2) for name in ("ink", "oil")}
    lora.export(run_of(trained(changed(plain, adapters=config)), root / "run"), root / "lora")
    return [part for name in config for part in ("--adapter", f"{name}={root / 'lora' / name}.safetensors")]


def test_an_imported_folder_is_measured_promoted_and_served_with_its_adapters(root, tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    folders.stable_diffusion(tmp_path / "model")
    export.main(["sd", "--from", str(tmp_path / "model"), *write_adapters(tmp_path)])
    write(params())
    prepare.main([])
    train_stage(load(), "judges.judge")
    train.main(["samplers.drawn"])
    held, start = run_folder.load(paths.RUNS / "drawn"), run_folder.load(paths.RUNS / "sd")
    assert held.config.config == start.config.config and held.config.data == start.config.data
    assert {"adapter_ink", "adapter_oil"} < set(held.family.kept)
    for net in start.family.kept:
        assert_same(dict(held.family.nets[net].state_dict()), dict(start.family.nets[net].state_dict()), net)
    assert held.config.provenance.inputs["start"].startswith("runs/sd ") and held.config.provenance.step == 0

    reference.main([])
    content = params()
    content["samplers"]["drawn"]["candidates"] = [{"num_inference_steps": 2}]
    write(content)
    evaluate.main(["samplers.drawn"])
    promote.main([])
    promoted = json.loads(paths.PROMOTED.read_text())
    assert promoted["sampler"] == "drawn"
    report.main([])
    assert "drawn" in paths.REPORT.read_text()

    config = ServeConfig(port=free_port(), threads=1)
    backend = LocalBackend(paths.RUNS / "drawn", config, settings=promoted["settings"])
    with serving(backend, config) as address:

        def image(**settings) -> str:
            asked = {"seed": 3, "metadata": False, **settings}
            answer = client(address).images.generate(prompt="a fish", extra_body=asked)
            assert not hasattr(answer, "ignored")
            return answer.data[0].b64_json

        plain = image(adapter="none")
        shown = {plain, image(adapter="ink"), image(adapter="oil"), image(adapter="ink", adapter_scale=0.3)}
        assert len(shown) == 4 and image(adapter="ink", adapter_scale=0.0) == plain
        with pytest.raises(openai.BadRequestError, match="adapter: expected one of ink, oil, none, found 'chalk'"):
            image(adapter="chalk")
    backend.engine.stop(timeout=10)


@pytest.mark.parametrize(
    ("family", "config"), [("unclip", {}), ("latent_diffusion", {"guide": {"at": 0.5, "sigma_rel": 0.1}})]
)
def test_any_familys_run_is_held(family, config, root):
    """Also one that keeps another run's nets, or an early snapshot of its own, which a training would need again."""
    made = build(family, **config)
    provenance = run_folder.Provenance(data="d", code="c", job="j", seed=0, step=1)
    run_folder.write(paths.RUNS / "other", family, made, State(0, {}, {}, {}), provenance)
    held = {"family": family, "data": "data/images/train", "training": {"steps": 0}}
    content = params(samplers={"kept": held}, inputs={"kept/start": "runs/other"})
    content["data"] |= {"channels": 1}
    write(content)
    prepare.main([])
    train.main(["samplers.kept"])
    found = run_folder.load(paths.RUNS / "kept").family
    assert set(found.early) == set(made.early) and bool(found.early) == bool(config)
    for net in made.kept:
        assert_same(dict(found.nets[net].state_dict()), dict(made.nets[net].state_dict()), net)


def test_steps_of_none_need_a_run_and_nothing_else(root):
    write_run("unclip", "unclip")
    held = {"family": "unclip", "data": "data/images/train", "training": {"steps": 0}}

    def told(block: dict, inputs: dict) -> str:
        write(params(samplers={"kept": {**held, **block}}, inputs=inputs))
        with pytest.raises((ConfigError, SamplerError)) as refused:
            load()
        assert "\n" not in str(refused.value)
        return str(refused.value)

    start = {"kept/start": "runs/unclip"}
    assert "samplers.kept.training.steps: 0 holds a run as it is; expected kept/start: runs/..." in told({}, {})
    assert "needs no other input than start; found kept/clip" in told({}, {**start, "kept/clip": "runs/clip"})
    assert "samplers.kept.model: expected none beside" in told({"model": {"prior": {"width": 8}}}, start)
    training = {"training": {"steps": 0, "ema_snapshots": 2}}
    assert "steps: 0 trains nothing; expected neither ema_snapshots nor keep: best" in told(training, start)
    assert "steps" in told({"training": {"steps": -1, "batch_size": 4}}, start)
    assert "runs/nobody" in told({}, {"kept/start": "runs/nobody"})
    write(params(samplers={"kept": held}, inputs=start))
    prepare.main([])
    with pytest.raises(ConfigError, match="makes images of 1x16x16; expected images of 3x16x16, as in data/images"):
        train.main(["samplers.kept"])
    assert not (paths.RUNS / "kept").exists()
