"""What keeping freed memory (components/memory.py) is worth: rows a second of training steps, kept over given back, in
processes of their own that alternate, each in a thread as Ray Train has it.

    python -m tests.benchmarks.kept_memory
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable

import torch

from components import memory
from components.data.info import DataInfo
from components.families import family_class
from components.nets.wavenet import WaveNet
from tests.benchmarks.common import as_a_worker, demo, emit
from tests.benchmarks.rates import fit_rate, noise
from tests.benchmarks.waiting_policy import HERE, told_by

ROUNDS, STEPS, WARM = 3, 8, 3
CLIP, CLIPS = 6144, 16  # of presets/spoken_digits.yaml


def autoencoder_of_large_images() -> float:
    """Images a second of presets/emoji_text.yaml's autoencoder."""
    info = DataInfo(shape=(3, 64, 64), classes=("one", "other"))
    kind = family_class("vae")
    torch.manual_seed(0)
    family = kind(kind.Config(latent_channels=4, widths=[32, 64, 64]), info)
    return fit_rate(family, noise(info, 256), 32, STEPS, WARM)


def of_demo(name: str) -> float:
    """Images a second of a model of params.yaml, in the precision that `auto` picks."""
    family, info, batch_size = demo(name)
    return fit_rate(family, noise(info, 1024), batch_size, STEPS, WARM)


def wavenet() -> float:
    """Clips a second of forward and backward passes of presets/spoken_digits.yaml's WaveNet, bfloat16."""
    torch.manual_seed(0)
    net = WaveNet(outputs=31, width=32, skip=64, depth=9, cycles=2, ids=(11, 7), block=128, blocks=CLIP // 128)
    clips, ids, times = torch.rand(CLIPS, CLIP) * 2 - 1, torch.zeros(CLIPS, 2, dtype=torch.int64), []
    for _ in range(WARM + STEPS):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(clips, ids).square().mean()
        loss.backward()
        times.append(time.perf_counter() - began)
    return CLIPS / statistics.median(times[WARM:])


MODELS: dict[str, Callable[[], float]] = {
    "vae of the demo": lambda: of_demo("vae"),
    "U-Net of the demo": lambda: of_demo("ldm"),
    "vae of 64x64 images": autoencoder_of_large_images,
    "WaveNet": wavenet,
}


def measured() -> None:
    """Prints rows a second of every model and the share of processor time that the kernel took."""
    as_a_worker()
    found = {}
    for name, rate in MODELS.items():
        before = resource.getrusage(resource.RUSAGE_SELF)
        value = rate()
        after = resource.getrusage(resource.RUSAGE_SELF)
        system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
        found[name] = {"rate": value, "in_the_kernel": system / (system + user)}
    print(json.dumps(found))


def main(argv: list[str] | None = None) -> None:
    if argv == [HERE]:
        thread = threading.Thread(target=measured)
        thread.start()
        thread.join()
        return
    rounds = {"given back": [], "kept": []}
    for _ in range(ROUNDS):
        rounds["given back"].append(json.loads(told_by("kept_memory", {})))
        rounds["kept"].append(json.loads(told_by("kept_memory", memory.ENVIRONMENT)))
    table = {
        name: {
            f"{part}, {how}": round(statistics.median(one[name][part] for one in found), 3)
            for how, found in rounds.items()
            for part in ("rate", "in_the_kernel")
        }
        for name in MODELS
    }
    ratios = {name: round(row["rate, kept"] / row["rate, given back"], 2) for name, row in table.items()}
    unit = "times the rows a second of training where freed memory is kept, the least of the models"
    emit("kept_memory", min(ratios.values()), unit, "at least 1", **ratios, table=table)


if __name__ == "__main__":
    main(sys.argv[1:])
