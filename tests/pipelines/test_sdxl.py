"""SDXL from scratch through the stages: files of several sizes, a CLIP, a sampler that is told sizes and crops."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from PIL import Image

from components.sampling.requests import Conditions, Request
from pipelines import prepare
from pipelines.support.params import load
from tests.components.helpers import tiny
from tests.pipelines.in_process import train_stage

DATA = {"data": "data/images/train"}
TRAINING = {"training": {"steps": 2, "batch_size": 4, "report_every": 1, "save_every": 2, "precision": "float32"}}
SIZES = ((20, 20), (40, 12), (12, 40))  # of files, width first


def params() -> dict:
    crops = {"cover": 1.25, "aspect": 4}
    model = {**tiny("sdxl").config, "flips": True}
    candidates = [{"num_inference_steps": 2, "original_size": [40, 40], "refiner_start": 0.7}]
    return {
        "seed": 0,
        "encode": {},
        "promote": {},
        "data": {"source": "folder", "path": "own", "image_size": 16, "caption": "a {}", "crops": crops},
        "autoencoders": {},
        "judges": {
            "judge": {"family": "judge", **DATA, "model": {"width": 4}, **TRAINING},
            "clip": {"family": "clip", **DATA, "model": tiny("clip").config, **TRAINING},
        },
        "samplers": {"xl": {"family": "sdxl", **DATA, "model": model, **TRAINING, "candidates": candidates}},
        "inputs": {"xl/clip": "runs/clip", "evaluate/judge": "runs/judge"},
        "evaluate": {"neighbours": 1},
    }


def test_from_files_of_several_sizes_to_images_of_every_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(24):
        path = Path(f"own/{'ab'[number % 2]}/{number:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(90 * number).resize(SIZES[number % 3]).save(path)
    Path("params.yaml").write_text(yaml.safe_dump(params()))
    prepare.main([])
    train_stage(load(), "judges.clip")
    run = train_stage(load(), "samplers.xl")
    assert sorted(path.stem for path in run.folder.glob("*.safetensors")) == ["clip", "denoiser", "refiner"]
    assert (run.folder / "clip.safetensors").read_bytes() == Path("runs/clip/clip.safetensors").read_bytes()
    sampler, settings = run.family, run.family.Settings(num_inference_steps=2)
    assert sampler.crops and sampler.sizes == ((16, 16), (8, 32), (32, 8))
    for size in sampler.sizes:
        conditions = Conditions(prompt=("a b",), size=torch.tensor([size]))
        assert sampler.sample(Request(torch.tensor([1]), settings, conditions)).shape == (1, 1, *size)
