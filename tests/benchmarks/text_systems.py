"""The text-to-image systems side by side, each trained from scratch in pixels on the same captions: diffusion of texts
alone, a cascade, unclip, a small Stable Diffusion XL. Fit to texts is scored by a CLIP that none of them has seen.

    python -m tests.benchmarks.text_systems                  # on captioned digits of 16x16, one seed
    python -m tests.benchmarks.text_systems unclip 1         # one system, another seed
    python -m tests.benchmarks.text_systems text dit mmdit   # texts alone, by each backbone
    python -m tests.benchmarks.text_systems emoji            # all, on emoji of 32x32: hours of one core

What is measured is kept in .cache/text_systems, with a sheet of samples each.
"""

from __future__ import annotations

import functools
import sys
import time

import torch

from components.data.info import DataInfo, RunInfo
from components.evaluation import generation
from components.families.base import Sampler
from components.metrics.figures import values
from components.training.loop import TrainingConfig
from tests.benchmarks import captioned, digits, quality
from tests.benchmarks.common import as_a_worker, emit
from tests.benchmarks.rates import Data

FOLDER = digits.ROOT / ".cache" / "text_systems"
SYSTEMS = ("text", "cascade", "unclip", "sdxl")
STANDS_ON_CLIP = ("unclip", "sdxl")
BACKBONE = {"widths": [32, 64], "attention": [False, True], "context_dim": 32}
TEXT = {"conditioning": "text", "backbone": BACKBONE, "text": {"length": 48, "width": 32, "layers": 2, "heads": 4}}
SOLVER = {"solver": "unipc", "num_inference_steps": 8, "guidance_scale": 2.0, "spacing": "karras"}
TRANSFORMER = {"patch": 2, "width": 96, "depth": 4, "heads": 4, "context_dim": 32}
FAMILY = dict.fromkeys(("text", "dit", "mmdit"), "latent_diffusion")
MODEL = {
    "text": TEXT,
    **{name: {**TEXT, "backbone": {"name": name, **TRANSFORMER}} for name in ("dit", "mmdit")},
    "cascade": {"base": TEXT, "up1": TEXT},
    "unclip": {"prior": {"width": 64, "depth": 3}, "decoder": TEXT},
    "sdxl": {**TEXT, "backbone": {**BACKBONE, "context_dim": 64}},  # both encoders beside each other
}
SETTINGS = {
    **dict.fromkeys(FAMILY, SOLVER),
    "cascade": {"base": SOLVER, "up1": {**SOLVER, "augmentation": 0.1}},
    "unclip": {"decoder": SOLVER},
    "sdxl": SOLVER,
}
CLIP = {"dim": 32, "image": {"widths": [16, 32, 64]}, "text": {"length": 48, "width": 32, "layers": 2, "heads": 4}}
# of a data set: its rows, the CLIP's training and the systems', and how many samples are measured
SETS = {
    "digits": (captioned.captioned_digits, {"steps": 200, "every": 50}, 500, 300),
    "emoji": (functools.partial(captioned.emoji, 32), {"steps": 1000, "every": 125}, 6000, 300),
}


@functools.cache
def clip(of: str, seed: int):
    rows, training, _, _ = SETS[of]
    model = CLIP | ({"duplicates": captioned.SKIN} if of == "emoji" else {})
    return captioned.trained_clip(rows(), model, **training, seed=seed)[0]


def trained(of: str, system: str, seed: int) -> tuple[Sampler, float]:
    data, steps = SETS[of][0]()["train"], SETS[of][2]
    info: DataInfo = data.info
    if system in STANDS_ON_CLIP:
        config = clip(of, seed).config.model_dump(mode="json")
        info = info.model_copy(update={"inputs": {"clip": RunInfo(family="clip", config=config, data=info)}})
    family = quality.made(FAMILY.get(system, system), MODEL[system], info, seed)
    if system in STANDS_ON_CLIP:
        family.receive("clip", clip(of, seed))
    began = time.process_time()
    training = TrainingConfig(steps=steps, batch_size=64, precision="float32", report_every=100)
    family, _, _ = quality.trained(family, Data(info, data.columns, data.frames), training, seed)
    return family, time.process_time() - began


@functools.cache
def yardstick(of: str) -> quality.Yardstick:
    if of == "digits":
        return digits.yardstick()
    data = SETS[of][0]()
    training = TrainingConfig(steps=300, batch_size=64)
    judge, _, _ = quality.trained(quality.made("judge", {}, data["train"].info, 0), data["train"], training, 0)
    return quality.Yardstick(judge, data["test"], digits.PROTOCOL)


def measure(of: str, system: str, seed: int) -> dict:
    """Figures under held-out captions; `clip_score` by a CLIP of another seed, that of the images themselves beside."""
    sampler, seconds = trained(of, system, seed)
    test, count = SETS[of][0]()["test"], SETS[of][3]
    scorer = clip(of, seed + 100)
    texts = tuple(bytes(row.tolist()).rstrip(b"\0").decode() for row in test.columns["caption"])
    captions = generation.Captions(texts, tuple(test.columns["label"].tolist()))
    settings = sampler.Settings(**SETTINGS[system])
    made = [
        generation.generate(sampler, one) for one in generation.requests(sampler, settings, count, 0, 100, captions)
    ]
    images = torch.cat([one.images for one in made])
    quality.save(FOLDER / of / f"{system}_{seed}.png", images[:50])
    real = quality.MEDIUM.to_floats(test.columns["image"])
    told = yardstick(of).of_images(images, generation.wanted_labels(sampler, captions, count))
    told |= {
        "clip_score": float(scorer.score(images, captions.take(range(count))).mean()),
        "clip_score_real": float(scorer.score(real, texts).mean()),
        "ms_per_image": generation.ms_per_image([(len(one.images), one.seconds) for one in made]),
        "cpu_seconds": seconds,
    }
    if system == "unclip":
        told |= values(sampler.validate(test.columns, test.columns, None))
    print(of, system, seed, quality.rounded(told), flush=True)
    return told


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    torch.set_num_threads(1)  # CPU seconds are told
    words = list(argv or [])
    of = next((word for word in words if word in SETS), "digits")
    names, seeds = digits.asked([word for word in words if word not in SETS], SYSTEMS, digits.SEEDS[:1])
    table = digits.table(names, seeds, FOLDER / of, functools.partial(measure, of))
    best = max(table, key=lambda name: table[name]["clip_score"])
    target = "unclip above text alone in CLIP score or recall"
    emit("text_systems", table[best]["clip_score"], f"CLIP score of {best}, {of}", target, table=table)


if __name__ == "__main__":
    main(sys.argv[1:])
