"""CLIP from scratch on 3,066 emoji: held-out retrieval against chance, with and without near-duplicates masked.

python -m tests.benchmarks.clip_retrieval            # 1,000 steps of 128 pairs at 32x32, both ways
python -m tests.benchmarks.clip_retrieval 0          # one seed
"""

from __future__ import annotations

import sys
import time

import torch

from components.metrics.figures import values
from tests.benchmarks import captioned, digits, quality
from tests.benchmarks.common import as_a_worker, emit

FOLDER = digits.ROOT / ".cache" / "clip_retrieval"
MODEL = {"dim": 64, "image": {"widths": [16, 32, 64]}, "text": {"length": 64, "width": 64, "layers": 2, "heads": 4}}
VARIANTS = {"masked": {"duplicates": captioned.SKIN}, "plain": {}}
STEPS, EVERY, SIZE = 1000, 125, 32


def measure(variant: str, seed: int) -> dict:
    data, began = captioned.emoji(SIZE), time.process_time()
    clip, found = captioned.trained_clip(data, MODEL | VARIANTS[variant], STEPS, EVERY, seed)
    best = max(found, key=lambda one: one["retrieval_at_1"])
    clip.config = clip.config.model_copy(update={"duplicates": captioned.NearDuplicates(**captioned.SKIN)})
    told = {"cpu_seconds": time.process_time() - began, "best": best, "last": found[-1]}
    for name, rows in {"held_out": captioned.some(data["test"], 500), "new": captioned.unseen(clip, data)}.items():
        told[name] = quality.rounded(values(clip.retrieval(rows)) | {"rows": len(rows["caption"])})
    return told


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    torch.set_num_threads(1)  # CPU seconds are told
    names, seeds = digits.asked(argv, VARIANTS)
    table = digits.runs(names, seeds, FOLDER, measure)
    first = table[names[0]]
    ratio = sum(one["held_out"]["retrieval_at_1"] / one["held_out"]["retrieval_chance"] for one in first) / len(first)
    what = f"held-out R@1 over chance, {names[0]}, mean of {len(seeds)} seed(s), emoji at {SIZE}x{SIZE}"
    emit("clip_retrieval", round(ratio, 1), what, "at least 5 times chance", table=table)


if __name__ == "__main__":
    main(sys.argv[1:])
