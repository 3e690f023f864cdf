"""Data without classes through every stage: what needs labels is absent, and nothing else."""

import json
import math
import shutil

import pytest
import yaml
from PIL import Image

from components.artifacts.pyfunc import RegisteredSampler
from components.data.dataset import read_manifest
from infra.tracking.registry import Registry
from pipelines import evaluate, prepare, promote, reference, report
from pipelines.support.params import load
from pipelines.support.yardsticks import OF_LABELS
from tests.clones import ROOT
from tests.pipelines.in_process import train_stage
from tests.pipelines.measured import PARAMS

TRAINING = {"steps": 3, "batch_size": 8}
UNET = {"widths": [8], "attention": [True], "heads": 1, "context_dim": 8}


def write_folder(root, kind: str) -> None:
    """24 images: with a caption each, in one class, or alone."""
    folder = root / "data/raw/own" / ("all" if kind == "one class" else "")
    folder.mkdir(parents=True)
    for number in range(24):
        Image.new("RGB", (20, 16), (number * 10, 0, 128)).save(folder / f"{number:02}.png")
    if kind == "captions":
        lines = [json.dumps({"file_name": f"{number:02}.png", "caption": f"pet {number}"}) for number in range(24)]
        (folder / "captions.jsonl").write_text("\n".join(lines))


def write_params(root, conditioning: str) -> None:
    """As shipped, the guards of promotion too, in miniature."""
    model = {"conditioning": conditioning, "backbone": {"name": "unet", **UNET}}
    model |= {"text": {"length": 16, "width": 8, "layers": 1, "heads": 1}} if conditioning == "text" else {}
    images = {"data": "data/images/train", "training": TRAINING}
    guards = yaml.safe_load((ROOT / "params.yaml").read_text())["promote"]["guards"]
    guards |= {"memorised": {"at_most": 1}, "recall": {"at_least": 0}}
    content = {
        **PARAMS,
        "data": {"source": "folder", "path": "data/raw/own", "image_size": 8, "channels": 3, "test_fraction": 0.4},
        "autoencoders": {},
        "encode": {},
        "judges": {"judge": {"family": "judge", "model": {"width": 4, "feature_dim": 6}, **images}},
        "samplers": {"ldm": {"family": "latent_diffusion", "model": model, **images}},
        "inputs": {"evaluate/judge": "runs/judge", "ldm/judge": "runs/judge"},
        "promote": {"guards": guards | {"ms_per_image": {"at_most": 10000}}, "refuse_collapsed": False},
    }
    content["samplers"]["ldm"]["candidates"] = [{"solver": "ddim", "num_inference_steps": 2}]
    (root / "params.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("kind", "conditioning"), [("captions", "text"), ("flat", "none"), ("one class", "class")], ids=lambda one: one
)
def test_data_without_two_classes_are_measured_promoted_and_reported(kind, conditioning, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(promote, "ROOT", tmp_path)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    write_folder(tmp_path, kind)
    write_params(tmp_path, conditioning)
    prepare.main([])
    assert read_manifest(tmp_path / "data/images/train").classes == (("all",) if kind == "one class" else ())
    for key in ("judges.judge", "samplers.ldm"):
        train_stage(load(), key)
    reference.main([])
    evaluate.main(["samplers.ldm"])
    figures = json.loads((tmp_path / "metrics/ldm.json").read_text())
    assert all(math.isfinite(figures[name]) for name in ("frechet_distance", "recall", "memorised", "ms_per_image"))
    # one class is a class to be asked for, but nothing to be told apart
    assert not OF_LABELS & figures.keys()
    if kind == "flat":  # the others go the same way from here on
        return
    promote.main([])
    assert "guard label_agreement: left out" in capsys.readouterr().out
    report.main([])
    page = (tmp_path / "report.html").read_text()
    assert "judge's accuracy" not in page.lower() and ("Class by class" in page) == (kind == "one class")
    registry = Registry(load().tracking, tmp_path, "latent-foundry")
    fetched = tmp_path / "fetched"
    registry.fetch(registry.champion(), fetched)
    asked = {"captions": {"prompt": ["pet 1"]}, "one class": {"label": [0]}}[kind]
    assert RegisteredSampler(fetched).predict({"seed": [3], **asked}).shape == (1, 8, 8, 3)
    shutil.rmtree(fetched)
