"""Which autoencoder gives the better U-Net: variants of its training on the digits (16x16), each followed by the demo's
U-Net on its latents with the same steps, three seeds: one table.

python -m tests.benchmarks.autoencoder_ablation [VARIANT SEED]

Naming a variant and a seed measures that run alone and keeps it; without names all that is not kept yet is measured,
and the table is told. What is kept, and each run's grid to look at, lies in .cache/autoencoder_ablation.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch

from components.data import batches
from components.families import FAMILIES
from components.families.base import AutoencoderInfo, DataInfo, Family
from components.images import encode_png, from_uint8, grid
from components.metrics import generation
from components.training import TrainingConfig, fit
from pipelines import params
from tests.benchmarks.common import Rows, emit
from tests.benchmarks.gan_digits_table import FOLDER as JUDGED
from tests.benchmarks.gan_digits_table import INFO, figures_of, floor, judge, split
from tests.components.helpers import no_wrap

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "autoencoder_ablation"
SEEDS = (0, 1, 2)
PERCEPTUAL = {"perceptual": {"judge": "the table's own judge", "weight": 0.1}}
ADVERSARIAL = {"adversarial": {"start": 100, "weight": 0.1}}
VARIANTS: dict[str, dict] = {  # beside params.yaml's own autoencoder
    "plain": {},
    "kl_tenfold": {"kl_weight": 0.1},
    "perceptual": PERCEPTUAL,
    "adversarial": {**PERCEPTUAL, **ADVERSARIAL},
    "equivariance": {"equivariance": {"smallest": 0.5}},
    "codebook": {"codebook": {"size": 256}},
}


def trained(family: Family, rows: object, training: TrainingConfig, seed: int) -> Family:
    """The family with the average of what it trains."""
    state = fit(
        family,
        batches(rows, training.batch_size, seed=seed),
        training,
        start=None,
        wrap=no_wrap,
        report=lambda step, figures: figures,
        save=lambda state: None,
    )
    for net, weights in state.average.items():
        family.nets[net].load_state_dict(weights)
    family.nets.requires_grad_(False).eval()
    return family


def autoencoder(variant: str, seed: int, config: params.TrainBlock) -> Family:
    kind = FAMILIES["vae"]
    torch.manual_seed(seed)
    family = kind(kind.Config(**{**config.model, **VARIANTS[variant]}), INFO)
    if family.config.perceptual:
        family.borrow("judge", judge().nets["classifier"])
    return trained(family, split("train"), config.training, seed)


@torch.inference_mode()
def encoded(family: Family) -> tuple[DataInfo, Rows]:
    """What `encode` writes: posteriors, and their statistics over the set."""
    columns = split("train").columns
    parts = [family.nets["autoencoder"].encode(from_uint8(part)) for part in columns["image"].split(256)]
    mean, std = (torch.cat(values) for values in zip(*parts, strict=True))
    places = (0, 2, 3)
    spread = (mean.double().var(places, correction=0) + std.double().square().mean(places)).sqrt()
    moments = {"channel_mean": tuple(mean.double().mean(places).tolist()), "channel_std": tuple(spread.tolist())}
    described = AutoencoderInfo(config=family.config.model_dump(mode="json"), data=family.data)
    info = DataInfo(shape=mean.shape[1:], classes=INFO.classes, statistics=moments, autoencoder=described)
    return info, Rows({"mean": mean.numpy(), "std": std.numpy(), "label": columns["label"].numpy()})


def measure(variant: str, seed: int) -> dict:
    """One run: both trained, sampled, measured; the samples' grid is saved."""
    demo = params.load(ROOT / params.DEFAULT)
    vae = autoencoder(variant, seed, demo.autoencoders["vae"])
    judged, test = judge(), split("test").columns
    watched = vae.watch(test, test, judged)
    info, rows = encoded(vae)
    block, kind = demo.samplers["ldm"], FAMILIES["latent_diffusion"]
    torch.manual_seed(seed)
    sampler = kind(kind.Config(**block.model), info)
    sampler.nets["autoencoder"].load_state_dict(vae.nets["autoencoder"].state_dict())
    sampler = trained(sampler, rows, block.training, seed)
    _, settings = generation.weights_and_settings(block.candidates[0])
    chosen = sampler.Settings(**settings)
    png = encode_png(grid(sampler.sample(generation.grid_request(sampler, chosen, 1)), 10), 3)
    (FOLDER / f"{variant}_{seed}.png").write_bytes(png)
    found = figures_of(sampler, judged, test["image"], chosen)
    told = ("frechet_distance", "kid", "precision", "recall", "label_agreement", "classes_hit")
    return {**watched, **{name: found[name] for name in told}}


def kept(variant: str, seed: int) -> dict:
    path = FOLDER / f"{variant}_{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(measure(variant, seed)))
    return json.loads(path.read_text())


def row(variant: str) -> dict:
    """The mean over seeds of each figure; Fréchet distance seed by seed too."""
    runs = [kept(variant, seed) for seed in SEEDS]
    means = {name: round(statistics.mean(run[name] for run in runs), 4) for name in runs[0]}
    return {**means, "frechet_by_seed": [round(run["frechet_distance"], 3) for run in runs]}


def main(argv: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    for folder in (FOLDER, JUDGED):
        folder.mkdir(parents=True, exist_ok=True)
    if argv:
        variant, seed = argv
        print(json.dumps(kept(variant, int(seed)), indent=1))
        return
    table = {variant: row(variant) for variant in VARIANTS}
    best = min(table, key=lambda variant: table[variant]["frechet_distance"])
    emit(
        "autoencoder_ablation",
        table[best]["frechet_distance"],
        f"Fréchet distance of the U-Net on the best autoencoder ({best}), mean of {len(SEEDS)} seeds",
        "which autoencoder is best",
        real=round(floor(), 3),
        table=table,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
