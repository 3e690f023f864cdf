"""Quality by the clock: Fashion-MNIST (Xiao et al. 2017), class-conditional diffusion on the 28x28 pixels for so many
seconds, measured by a classifier that is trained here first: the Fréchet distance of its features to the held-out
images', beside that of real training images of as many of each class, and how often it sees the class that was asked
for."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import torch
from torch import Tensor

from components.data.dataset import batches
from components.data.info import DataInfo
from components.data.media.image import MEDIUM
from components.evaluation import generation
from components.evaluation.real_draws import drawn_rows, over_draws
from components.families import judge as judge_family
from components.families import latent_diffusion
from components.families.base import Family, Sampler
from components.metrics.classes import label_agreement
from components.metrics.figures import named
from components.metrics.frechet import FRECHET_DISTANCE, Moments, frechet_distance
from components.sources.fashion_mnist import CLASSES, parse_idx
from components.training.loop import State, TrainingConfig, fit
from tests.benchmarks.rates import Data, noise, settle, timed
from tests.components.helpers import no_wrap
from tests.gpu import models
from tests.gpu.models import Size
from tests.gpu.part import Part

JUDGE_SECONDS, JUDGE_BATCH = 12.0, 512
TOY_STEPS = 4
PROBED = 40  # steps from whose time the number of steps is planned
AFTER = 30.0  # seconds kept for sampling and measuring
NUM_SAMPLES = 2000
REAL_DRAWS = 20
UNET = Size(models.unet((96, 192, 192), (False, True, True), layers=2, heads=4), side=28, batch_size=256)
OPTIMIZER = {"learning_rate": 6e-4, "schedule": "cosine", "warmup": 200}
SAMPLING = {"solver": "heun", "num_inference_steps": 18, "spacing": "karras", "guidance_scale": 1.5}


def run(part: Part) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    train, test = split(part, "train"), split(part, "t10k")
    judge = judge_family.Model(judge_family.Config(width=32, feature_dim=64), train.info)
    part.measure("judge", lambda: trained(part, judge, train, 32 if part.toy else JUDGE_BATCH, JUDGE_SECONDS))
    reference, accuracy = seen(part, judge, test.columns["image"], test.columns["label"])
    part.tell("judge_accuracy", accuracy)
    part.measure("real", lambda: real(part, judge, train, reference))

    size, option = (models.TOY, {}) if part.toy else (UNET, chosen(part))
    part.tell("settings", {**option, **models.config(size), "batch_size": size.batch_size, **SAMPLING})
    available = min(part.train_seconds, part.left() - AFTER)
    family = denoiser(part, size, train.info, option)
    graphs = option.get("cuda_graphs", False)
    part.measure("training", lambda: trained(part, family, train, size.batch_size, available, graphs))
    part.measure("samples", lambda: sampled(part, family, judge, reference))


def chosen(part: Part) -> dict:
    """The options that were fastest in this run."""
    from tests.gpu.speed import BEST, OPTIONS

    return OPTIONS[part.earlier.get("speed", {}).get("best", {}).get("option", BEST)]


def denoiser(part: Part, size: Size, data: DataInfo, option: dict) -> latent_diffusion.Model:
    torch.manual_seed(0)
    family = latent_diffusion.Model(latent_diffusion.Model.Config(**models.config(size), optimizer=OPTIMIZER), data)
    if option.get("channels_last"):
        family.nets.to(memory_format=torch.channels_last)
    return family


def split(part: Part, prefix: str) -> Data:
    """One of the two splits; noise where no data is given."""
    if part.data is None:
        return noise(DataInfo(shape=(1, 28, 28), classes=CLASSES), 256 if part.toy else 60000)
    images, labels = (
        torch.from_numpy(parse_idx(gzip.decompress((Path(part.data) / f"{prefix}-{what}.gz").read_bytes())).copy())
        for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    info = DataInfo(shape=(1, *images.shape[1:]), classes=CLASSES)
    return Data(info, {"image": images[:, None], "label": labels.long()})


def trained(part: Part, family: Family, data: Data, batch_size: int, seconds: float, cuda_graphs: bool = False) -> dict:
    """Trains for so many seconds of the clock, the number of steps planned from the time of a first few, and leaves the
    average of weights in the family."""
    began = time.perf_counter()
    family.nets.to(part.device)
    start = {name: value.clone() for name, value in family.nets.state_dict().items()}
    if part.toy:
        steps = TOY_STEPS
    else:
        fitted(part, family, data, batch_size, PROBED // 2, cuda_graphs)  # kernels are chosen, memory is taken
        short, long = (timed(lambda n=n: fitted(part, family, data, batch_size, n, cuda_graphs)) for n in (10, PROBED))
        begin = short - 10 * (long - short) / (PROBED - 10)  # recordings
        left = seconds - (time.perf_counter() - began) - begin
        steps = max(PROBED, int(left / ((long - short) / (PROBED - 10))))
        family.nets.load_state_dict(start)
    until = float("inf") if part.toy else began + 1.05 * seconds
    state = fitted(part, family, data, batch_size, steps, cuda_graphs, until)
    settle()
    for name in family.kept:
        if name in state.average:
            family.nets[name].load_state_dict(state.average[name])
    family.nets.requires_grad_(False).eval()
    last = state.history[-1] if state.history else {}
    last = {name: value for name, value in last.items() if "loss" in name or "accuracy" in name}
    return {
        "steps": state.step,
        "planned": steps,
        "seconds": time.perf_counter() - began,
        "images": state.step * batch_size,
        "parameters": sum(weight.numel() for weight in family.nets.parameters()),
        **last,
    }


def fitted(
    part: Part,
    family: Family,
    data: Data,
    batch_size: int,
    steps: int,
    cuda_graphs: bool,
    until: float = float("inf"),
) -> State:
    config = TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        cuda_graphs=cuda_graphs,
        clip_norm=1.0,
        report_every=min(steps, 200),
        save_every=steps,
    )

    def report(step: int, figures: dict[str, float]) -> dict[str, float]:
        if step % 1000 == 0:
            print(f"[{part.name}] step {step} of {steps}: {figures}", flush=True)
        return figures

    return fit(
        family,
        (batch.to(part.device) for batch in batches(data, batch_size)),
        config,
        start=None,
        wrap=no_wrap,
        report=report,
        save=lambda state: None,
        leave=lambda step: time.perf_counter() > until,
    )


@torch.inference_mode()
def seen(part: Part, judge: judge_family.Model, images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Of images (N, C, H, W), uint8 or in [-1, 1]: features (N, D) float64, and the share whose class is seen."""
    judge.nets.to(part.device)
    net, vectors, logits = judge.nets["classifier"], [], []
    for rows in images.split(1000):
        pixels = rows.to(part.device)
        vectors.append(net.features(MEDIUM.to_floats(pixels) if pixels.dtype == torch.uint8 else pixels))
        logits.append(net.logits(vectors[-1]))
    return torch.cat(vectors).double().cpu(), label_agreement(torch.cat(logits).cpu(), labels)


def real(part: Part, judge: judge_family.Model, train: Data, reference: Tensor) -> dict:
    """The distance of training images drawn as samples are: as many, and as many of each class. The mean of REAL_DRAWS
    draws and the interval that 95 % of draws lie in."""
    vectors, _ = seen(part, judge, train.columns["image"], train.columns["label"])
    labels, known = train.columns["label"], Moments.of(reference)
    wanted = torch.arange(min(NUM_SAMPLES, len(train) // 2)) % len(CLASSES)
    draws = [drawn_rows(wanted, labels, len(labels), len(wanted), draw) for draw in range(REAL_DRAWS)]
    found = over_draws(
        named(FRECHET_DISTANCE.figure(frechet_distance(Moments.of(vectors[rows]), known))) for rows in draws
    )
    figure = found["frechet_distance"]
    return {"frechet_distance": figure.value, "interval": list(figure.interval), "draws": REAL_DRAWS}


def sampled(part: Part, family: Sampler, judge: judge_family.Model, reference: Tensor) -> dict:
    """Figures of NUM_SAMPLES samples, and a picture of ten of each class."""
    settings = family.Settings(**SAMPLING | ({"num_inference_steps": 3} if part.toy else {}))
    count, rows = (40, 20) if part.toy else (NUM_SAMPLES, 500)
    picture = family.sample(generation.grid_request(family, settings, seed=0))
    (part.out / "samples.png").write_bytes(MEDIUM.preview(picture, generation.GRID_COLUMNS, 3))
    settle()
    began = time.perf_counter()
    images = [family.sample(asked) for asked in generation.requests(family, settings, count, 1, rows)]
    settle()
    seconds = time.perf_counter() - began
    quantised = MEDIUM.to_floats(MEDIUM.to_stored(torch.cat(images)).cpu())
    vectors, agreement = seen(part, judge, quantised, family.cycled_labels(count))
    return {
        "frechet_distance": frechet_distance(Moments.of(vectors), Moments.of(reference)),
        "label_agreement": agreement,
        "count": count,
        "ms_per_image": 1000 * seconds / count,
    }
