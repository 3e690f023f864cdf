"""Images with captions, in memory: what benchmarks of text systems share."""

from __future__ import annotations

import functools
import json
import tarfile
from pathlib import Path

from torch import Tensor

from components.conditioning.near_duplicates import NearDuplicates
from components.data.crops import CropConfig
from components.data.dataset import spread
from components.families.base import Family
from components.families.clip import Model as CLIP
from components.metrics.figures import values
from components.sources import DataConfig
from components.training.loop import State, TrainingConfig, fit
from tests.benchmarks import digits, quality
from tests.benchmarks.rates import Data
from tests.components.helpers import no_wrap

ARCHIVE = digits.ROOT.parent / "shared/data/noto-emoji-128.tar.xz"
EMOJI = digits.ROOT / ".cache/emoji"
SKIN = {"without": ["skin", "tone", "light", "medium", "dark"]}  # words that variants of one emoji differ in
CAPTION = "the digit {}"


@functools.cache
def emoji(size: int) -> dict[str, Data]:
    """Both splits of Noto's emoji, a tenth held out."""
    if not (EMOJI / "captions.jsonl").is_file():
        EMOJI.mkdir(parents=True, exist_ok=True)
        with tarfile.open(ARCHIVE, "r|xz") as archive:
            for one in archive:
                if one.isfile():
                    (EMOJI / Path(one.name).name).write_bytes(archive.extractfile(one).read())
        assert json.loads((EMOJI / "captions.jsonl").read_text().splitlines()[0])["caption"]
    named = {"path": EMOJI, "label_key": "group", "max_rejected": 9, "crops": CropConfig()}
    return quality.read(DataConfig(source="folder", image_size=size, channels=3, test_fraction=0.1, **named))


@functools.cache
def captioned_digits(size: int = 16) -> dict[str, Data]:
    """The demo's digits, each said to be the digit that it is."""
    return quality.read(DataConfig(source="digits", image_size=size, caption=CAPTION, crops=CropConfig()))


def trained_clip(
    data: dict[str, Data], model: dict, steps: int, every: int, seed: int, batch_size: int = 128
) -> tuple[CLIP, list[dict]]:
    """A CLIP at its best checkpoint by held-out retrieval, and the figures of all."""
    family = quality.made("clip", model, data["train"].info, seed)
    shadow = quality.made("clip", model, data["train"].info, seed)
    found: list[dict] = []
    best: dict = {}

    def save(state: State) -> None:
        shadow.nets["clip"].load_state_dict(state.average["clip"])
        held_out, train = (some(data[split], 500) for split in ("test", "train"))
        figures = {"step": state.step, **quality.rounded(values(shadow.validate(train, held_out, None)))}
        print(figures, flush=True)
        if not found or figures["retrieval_at_1"] > max(one["retrieval_at_1"] for one in found):
            best.update({key: value.clone() for key, value in state.average["clip"].items()})
        found.append(figures)

    training = TrainingConfig(steps=steps, batch_size=batch_size, save_every=every, report_every=every)
    stream = quality.batches(data["train"], batch_size, seed=seed)
    fit(family, stream, training, start=None, wrap=no_wrap, report=lambda step, told: told, save=save)
    family.nets["clip"].load_state_dict(best)
    family.nets.requires_grad_(False).eval()
    return family, found


def some(data: Data, count: int) -> dict[str, Tensor]:
    """Up to so many rows, evenly spread over a set."""
    return spread(data, min(count, len(data)))


def unseen(clip: Family, data: dict[str, Data]) -> dict[str, Tensor]:
    """The held-out rows of which no training row says the same, variants of an emoji left aside."""
    tokens = {split: data[split].columns["caption"].long() for split in ("train", "test")}
    known = NearDuplicates(**SKIN).same(tokens["test"], tokens["train"]).any(1)
    return data["test"].take((~known).nonzero()[:, 0])
