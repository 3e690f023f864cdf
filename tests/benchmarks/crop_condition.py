"""What it brings to tell a net where its training images were cut: SDXL from scratch against diffusion of the same text
that is told nothing, both on random crops of digits, and where an object goes that is asked for elsewhere.

    python -m tests.benchmarks.crop_condition      # one seed: some seven CPU minutes
    python -m tests.benchmarks.crop_condition 1    # another one

Distances are to held-out images cut in their middle, which is what the told net is asked for. What is measured is kept
in .cache/crop_condition, with a sheet of samples for each cut.
"""

from __future__ import annotations

import functools
import sys
import time

import torch
from torch import Tensor

from components.data.crops import FRAME, CropConfig
from components.data.info import RunInfo
from components.evaluation import generation
from components.families.base import Family, Sampler
from components.sources import DataConfig
from components.training.loop import TrainingConfig
from tests.benchmarks import captioned, digits, quality
from tests.benchmarks.common import as_a_worker, emit
from tests.benchmarks.rates import Data

FOLDER = digits.ROOT / ".cache" / "crop_condition"
SIDE, COVER = 16, 1.5
ENDS = round(SIDE * COVER) - SIDE  # pixels that a crop may begin at, from 0 on
STEPS, BATCH, COUNT = 600, 64, 300
TEXT = {"length": 16, "width": 16, "layers": 2, "heads": 4}
CLIP = {"dim": 16, "image": {"widths": [8, 16, 32]}, "text": TEXT}
UNET = {"widths": [24, 48], "attention": [False, True]}
MODEL = {
    "sdxl": {"backbone": {**UNET, "context_dim": 32}, "text": TEXT},
    "latent_diffusion": {
        "conditioning": "text",
        "backbone": {**UNET, "context_dim": 32},
        "text": TEXT,
        "crops": True,
    },
}
SOLVER = {"solver": "unipc", "num_inference_steps": 8, "guidance_scale": 2.0, "spacing": "karras"}
CUTS = {"middle": (ENDS // 2, ENDS // 2), "left": (ENDS // 2, 0), "right": (ENDS // 2, ENDS)}


@functools.cache
def data() -> dict[str, Data]:
    """Digits with frames; the images are cut in the middle."""
    crops = CropConfig(cover=COVER, frame=COVER)
    found = quality.read(DataConfig(source="digits", image_size=SIDE, caption="a {}", crops=crops))
    for split in found.values():
        split.columns["image"] = cut(split, CUTS["middle"])
    return found


def cut(split: Data, start: tuple[int, int]) -> Tensor:
    """All images of a split cut at the same place."""
    top, left = start
    return split.frames[FRAME][:, :, top : top + SIDE, left : left + SIDE].contiguous()


@functools.cache
def judged(seed: int) -> quality.Yardstick:
    training = TrainingConfig(steps=150, batch_size=BATCH, precision="float32")
    sets = data()
    judge, _, _ = quality.trained(quality.made("judge", {}, sets["train"].info, seed), sets["train"], training, seed)
    return quality.Yardstick(judge, sets["test"], digits.PROTOCOL)


def trained(name: str, seed: int) -> tuple[Family, float]:
    train = data()["train"]
    info, clip = train.info, None
    if name == "sdxl":
        clip, _ = captioned.trained_clip(data(), CLIP, 100, 50, seed)
        kept = RunInfo(family="clip", config=clip.config.model_dump(mode="json"), data=info)
        info = info.model_copy(update={"inputs": {"clip": kept}})
    family, began = quality.made(name, MODEL[name], info, seed), time.process_time()
    if clip is not None:
        family.receive("clip", clip)
    training = TrainingConfig(steps=STEPS, batch_size=BATCH, precision="float32", report_every=200)
    family, _, _ = quality.trained(family, Data(info, train.columns, train.frames), training, seed)
    return family, time.process_time() - began


def drawn(sampler: Sampler, start: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Images, asked for as cut at `start`, and the classes of their captions."""
    test = data()["test"]
    texts = tuple(bytes(row.tolist()).rstrip(b"\0").decode() for row in test.columns["caption"])
    captions = generation.Captions(texts, tuple(test.columns["label"].tolist()))
    settings = sampler.Settings(**SOLVER, **({} if start is None else {"crops_coords_top_left": start}))
    made = [
        generation.generate(sampler, one) for one in generation.requests(sampler, settings, COUNT, 0, 100, captions)
    ]
    return torch.cat([one.images for one in made]), generation.wanted_labels(sampler, captions, COUNT)


def across(images: Tensor) -> float:
    """The mean place of ink from the left, in pixels, of images (N, 1, H, W), uint8 or in [-1, 1]."""
    ink = (images.float() if images.dtype == torch.uint8 else (images.float() + 1)).clamp(min=0).sum(dim=(1, 2))
    return float((ink * torch.arange(images.shape[-1])).sum() / ink.sum())


def measure(name: str, seed: int) -> dict:
    sampler, seconds = trained(name, seed)
    found: dict = {"cpu_seconds": seconds}
    for place in CUTS if name == "sdxl" else ("middle",):
        images, labels = drawn(sampler, CUTS[place] if name == "sdxl" else None)
        quality.save(FOLDER / f"{name}_{seed}_{place}.png", images[:50])
        told = quality.rounded(judged(seed).of_images(images, labels))
        found[place] = {**told, "across": across(images), "across_real": across(cut(data()["test"], CUTS[place]))}
        print(name, seed, place, found[place], flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    torch.set_num_threads(1)  # CPU seconds are told
    names, seeds = digits.asked(argv, MODEL, digits.SEEDS[:1])
    runs = digits.runs(names, seeds, FOLDER, measure)
    told, none = (runs[name][0]["middle"]["frechet_distance"] for name in ("sdxl", "latent_diffusion"))
    cuts = runs["sdxl"][0]
    moved, real = (cuts["left"][key] - cuts["right"][key] for key in ("across", "across_real"))
    what = "Fréchet distance to images cut in the middle, asked for there, over that of a net told nothing"
    target = "below 1; an object asked for elsewhere moves there"
    emit("crop_condition", round(told / none, 3), what, target, pixels_moved=moved, pixels_real=real, runs=runs)


if __name__ == "__main__":
    main(sys.argv[1:])
