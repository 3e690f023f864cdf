"""Our training loop against a plain one on diffusers' networks, written as its example scripts are.

Both train the demo's U-Net, of the same number of parameters, on the same latents on disk, in the same batches of rows,
with AdamW, clipping, a cosine schedule and an average of weights, in one process on all cores. The figure is images/s
of ours at the precision that pays on this device over images/s of theirs at the precision that pays there, the sides
alternating; the rates and ratios at each precision stand beside it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from components.data.dataset import Dataset
from components.families.latent_diffusion import LatentDiffusion
from tests.benchmarks.common import as_a_worker, demo, emit, fit_rate, in_turn, write_noise

STEPS, WARM, ROUNDS = 6, 2, 3
ACCELERATE = {"float32": "no", "bfloat16": "bf16"}


def let_torchvision_import() -> None:
    """diffusers imports torchvision if it is there, and a build for CUDA beside a torch without asks for two operators
    that do not exist. Their schemas are enough."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # it is there
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Rows(torch.utils.data.Dataset):
    """Our data set as a DataLoader takes it: row by row."""

    def __init__(self, dataset: Dataset):
        self._rows = dataset.take(torch.arange(len(dataset)))

    def __len__(self) -> int:
        return len(self._rows["label"])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: values[row] for name, values in self._rows.items()}


class Theirs(nn.Module):
    """diffusers' class of the net that ours maps to, with the table of contexts that ours has."""

    def __init__(self, family: LatentDiffusion):
        super().__init__()
        from diffusers import UNet2DConditionModel

        config, num_classes = family.config.backbone, family.num_classes + 1
        kinds = ["CrossAttn" if attend else "" for attend in config.attention]
        self.context = nn.Embedding(num_classes, config.context_dim)
        self.unet = UNet2DConditionModel(
            in_channels=family.data.shape[0],
            out_channels=family.data.shape[0],
            block_out_channels=config.widths,
            layers_per_block=config.layers,
            attention_head_dim=config.heads,
            cross_attention_dim=config.context_dim,
            num_class_embeds=num_classes,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        )

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        return self.unet(x, timesteps, self.context(labels)[:, None], class_labels=labels).sample


def their_weights(family: LatentDiffusion) -> dict[str, Tensor]:
    """The weights of ours as Theirs names them."""
    ours = family.nets["denoiser"].state_dict()
    names = {key: key.replace("conditioner.context", "context").replace("backbone", "unet") for key in ours}
    return {names[key]: value for key, value in ours.items()}


def their_rate(family: LatentDiffusion, dataset: Dataset, batch_size: int, precision: str) -> float:
    """Rows a second over STEPS steps after WARM ones of the peer's loop."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from tqdm.auto import tqdm

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision otherwise
    accelerator = Accelerator(mixed_precision=ACCELERATE[precision], cpu=not torch.cuda.is_available())
    model = Theirs(family)
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    average.to(accelerator.device)
    noises = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    loader = torch.utils.data.DataLoader(Rows(dataset), batch_size=batch_size, shuffle=True, drop_last=True)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=WARM, num_training_steps=WARM + STEPS)
    model, optimizer, loader, rates = accelerator.prepare(model, optimizer, loader, rates)
    bar = tqdm(total=WARM + STEPS, disable=True)
    step = 0
    while True:
        for batch in loader:
            if step == WARM:
                began = time.perf_counter()
            latents = batch["mean"] + batch["std"] * torch.randn_like(batch["std"])
            labels = torch.where(torch.rand(len(latents)) < 0.1, family.num_classes, batch["label"])
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, noises.config.num_train_timesteps, (len(latents),), device=latents.device)
            with accelerator.accumulate(model):
                answer = model(noises.add_noise(latents, noise, timesteps), timesteps, labels)
                loss = F.mse_loss(answer.float(), noise)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
            average.step(model.parameters())
            bar.update(1)
            bar.set_postfix(loss=loss.detach().item(), lr=rates.get_last_lr()[0])
            step += 1
            if step == WARM + STEPS:
                return STEPS * batch_size / (time.perf_counter() - began)


def sides(dataset: Dataset) -> dict[str, Callable[[], float]]:
    """Each side at each precision, as functions that measure a rate."""

    def ours(precision: str) -> float:
        family, _, batch_size = demo("ldm")
        as_a_worker()
        rate = fit_rate(family, dataset, batch_size, STEPS, WARM, precision=precision, clip_norm=1.0)
        torch.use_deterministic_algorithms(False)
        return rate

    def theirs(precision: str) -> float:
        family, _, batch_size = demo("ldm")
        return their_rate(family, dataset, batch_size, precision)

    return {
        f"{name} {precision}": lambda run=run, precision=precision: run(precision)
        for precision in ACCELERATE
        for name, run in (("ours", ours), ("theirs", theirs))
    }


def main() -> None:
    let_torchvision_import()
    family, info, _ = demo("ldm")
    counts = [sum(p.numel() for p in net.parameters()) for net in (family.nets["denoiser"], Theirs(family))]
    assert counts[0] == counts[1], "the two sides must train equally many parameters"
    with tempfile.TemporaryDirectory() as temporary:
        rates = in_turn(sides(write_noise(Path(temporary) / "latents", info, 1438)), ROUNDS)
    best = {name: max(rates[f"{name} {precision}"] for precision in ACCELERATE) for name in ("ours", "theirs")}
    emit(
        "train_vs_diffusers",
        round(best["ours"] / best["theirs"], 2),
        "images/s of ours / of a loop on diffusers, each at its faster precision",
        ">= 1.5",
        **{precision: round(rates[f"ours {precision}"] / rates[f"theirs {precision}"], 2) for precision in ACCELERATE},
        ours_best_to_their_default=round(best["ours"] / rates["theirs float32"], 2),
        images_per_second={name: round(rate) for name, rate in rates.items()},
        parameters=counts[0],
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
