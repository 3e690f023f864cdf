"""diffusers' network of our layout, and the plain loop that its example scripts train them by."""

from __future__ import annotations

import contextlib
import time

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from components.data.dataset import Dataset
from components.families.latent_diffusion import Model as LatentDiffusion

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
            norm_num_groups=config.norm_groups,
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


def their_rate(
    family: LatentDiffusion, dataset: Dataset, batch_size: int, steps: int, warm: int, precision: str
) -> float:
    """Rows a second over `steps` steps after `warm` ones of the peer's loop."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from tqdm.auto import tqdm

    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision otherwise
    accelerator = Accelerator(mixed_precision=ACCELERATE[precision], cpu=not torch.cuda.is_available())
    model = Theirs(family)
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    average.to(accelerator.device)
    noises = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    loader = torch.utils.data.DataLoader(Rows(dataset), batch_size=batch_size, shuffle=True, drop_last=True)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=warm, num_training_steps=warm + steps)
    model, optimizer, loader, rates = accelerator.prepare(model, optimizer, loader, rates)
    bar = tqdm(total=warm + steps, disable=True)
    step = 0
    while True:
        for batch in loader:
            if step == warm:
                began = time.perf_counter()
            latents = batch["mean"] + batch["std"] * torch.randn_like(batch["std"])
            labels = torch.where(
                torch.rand(len(latents), device=latents.device) < 0.1, family.num_classes, batch["label"]
            )
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
            if step == warm + steps:
                return steps * batch_size / (time.perf_counter() - began)
