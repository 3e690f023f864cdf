"""Ways from mel spectra back to waves, by what a judge hears in held-out clips that went there and back: Griffin and
Lim's algorithm, by its steps, on spectra that a net tells, and phases of a net's own, learnt against discriminators.

    python -m tests.benchmarks.vocoders             # both, seed 0: some twenty minutes of one core
    python -m tests.benchmarks.vocoders phased 1    # one of them, another seed

Spoken digits are read from ../shared/data. What is measured is kept in .cache/vocoders, with a picture of clips each.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import torch

from components.evaluation.protocol import EvaluateConfig
from components.families.base import Family
from components.sources import DataConfig
from components.spectra import FLOOR, compressed, stft
from components.training.loop import TrainingConfig
from components.training.optimizers import OptimizerConfig
from tests.benchmarks import digits, quality
from tests.benchmarks.common import as_a_worker, emit
from tests.benchmarks.rates import Data

FOLDER = digits.ROOT / ".cache" / "vocoders"
ARCHIVE = digits.ROOT.parent / "shared/data/fsdd.tar.xz"
NET = {"width": 96, "depth": 3}
FLAT = OptimizerConfig(learning_rate=2e-3, warmup=20)  # the number of steps is not known beforehand
MODELS = {
    "griffin_lim": {**NET, "optimizer": FLAT},
    "phased": {**NET, "optimizer": FLAT, "adversarial": {"start": 200}},
}
SECONDS = {"griffin_lim": 120.0, "phased": 900.0}  # of CPU; what the first learns is learnt by then
BATCH_SIZE = 16
ALGORITHM_STEPS = (0, 2, 4, 8, 16, 32)
BY_STEPS = ("label_agreement", "frechet_distance", "decibels_apart", "cpu_ms_per_clip")
JUDGE = {"width": 16, "rotate": 0, "shift": 0.05}  # presets/spoken_digits.yaml's


@functools.cache
def data() -> dict[str, Data]:
    named = {"path": FOLDER, "mirror": str(ARCHIVE)}
    return quality.read(DataConfig(source="spoken_digits", sample_rate=8000, seconds=0.768, **named))


@functools.cache
def yardstick() -> quality.Yardstick:
    train = data()["train"]
    training = TrainingConfig(steps=1600, batch_size=64)
    judge, _, _ = quality.trained(quality.made("judge", JUDGE, train.info, 0), train, training, 0)
    return quality.Yardstick(judge, data()["test"], EvaluateConfig(num_samples=300, resamples=50))


@torch.inference_mode()
def there_and_back(vocoder: Family, test: Data) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Held-out waves (N, 1, L), what the vocoder makes of their mel spectra, and its CPU milliseconds a clip."""
    real = vocoder.medium.to_floats(test.columns[vocoder.medium.column])
    net = vocoder.nets["autoencoder"]
    mel = torch.cat([net.encode(part)[0] for part in real.split(100)])
    began = time.process_time()
    made = torch.cat([vocoder.bounded(net.decode(part)) for part in mel.split(100)])
    return real, made, (time.process_time() - began) / len(real) * 1000


def measure(variant: str, seed: int) -> dict:
    family = quality.made("vocoder", MODELS[variant], data()["train"].info, seed)
    training = TrainingConfig(steps=100_000, batch_size=BATCH_SIZE, precision="float32", report_every=100)
    family, state, seconds = quality.trained(
        family, data()["train"], training, seed, SECONDS[variant], time.process_time
    )
    told = heard(family, FOLDER / f"{variant}_{seed}.png")
    if not family.nets["autoencoder"].phased:
        told |= by_steps(family)
    return quality.rounded(told) | {"steps": state.step, "cpu_seconds": round(seconds)}


def heard(vocoder: Family, picture: Path | None = None) -> dict:
    """What the judge says of held-out clips that went there and back, how far their spectra are apart, and the cost."""
    real, made, milliseconds = there_and_back(vocoder, data()["test"])
    if picture is not None:
        picture.write_bytes(vocoder.medium.preview(made[::6][:50], 10))
    apart = compressed(stft(real[:, 0], vocoder.hop).abs()) - compressed(stft(made[:, 0], vocoder.hop).abs())
    told = yardstick().of_images(made, data()["test"].columns["label"])
    return told | {"decibels_apart": float(apart.abs().mean()) * -FLOOR / 2, "cpu_ms_per_clip": milliseconds}


def by_steps(vocoder: Family) -> dict[str, float]:
    """Some of what is heard after fewer and more of the algorithm's steps than the configured ones."""
    net, found = vocoder.nets["autoencoder"], {}
    usual = net.steps
    for net.steps in ALGORITHM_STEPS:
        told = heard(vocoder)
        found |= {f"{name}_after_{net.steps}": told[name] for name in BY_STEPS}
    net.steps = usual
    return found


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    torch.set_num_threads(1)  # CPU seconds are told
    FOLDER.mkdir(parents=True, exist_ok=True)
    names, seeds = digits.asked(argv, MODELS, digits.SEEDS[:1])
    table = digits.table(names, seeds, FOLDER, measure)
    target = "phases of its own at least Griffin and Lim's label agreement"
    best = max(table, key=lambda name: table[name]["label_agreement"])
    emit("vocoders", table[best]["label_agreement"], f"label agreement of {best}, held-out clips", target, table=table)


if __name__ == "__main__":
    main(sys.argv[1:])
