"""The prior part of unclip: diffusion of image embeddings under a text, by x0-prediction (Ramesh et al. 2022, section
2.2). Embeddings have unit length, so that an entry is about 1/sqrt(dim): here they are multiplied by sqrt(dim), else
they would drown in the noise."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.conditioning.embedding import scaled
from components.conditioning.text import tokens_of, tokens_of_column
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.diffusion import schedules
from components.diffusion.guidance import Guidance, Preconditioner, solve
from components.diffusion.objectives import OBJECTIVES
from components.diffusion.schedules import ScheduleConfig
from components.diffusion.solvers import SOLVERS
from components.families.base import Family, Losses, Phase
from components.families.clip import Model as CLIPFamily
from components.nets.prior import Prior as PriorNet
from components.sampling.trajectories import Call
from components.shapes import per_row
from components.training.optimizers import OptimizerConfig

Asked = Mapping[str, Tensor]  # of texts: `tokens` (B, L, W) and `pooled` (B, dim), as CLIP's text tower answers


class Config(Strict):
    width: int = Field(128, ge=2)
    depth: int = Field(4, ge=1)  # blocks
    heads: int = Field(4, ge=1)
    schedule: ScheduleConfig = ScheduleConfig()
    label_dropout: float = Field(0.1, ge=0, le=1)  # share of rows trained without their text, for guidance
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-4, schedule="cosine", warmup=50)


class Settings(Strict):
    """`candidates`: how many embeddings are drawn for an image; the one nearest to the text's is kept."""

    num_inference_steps: int = Field(10, ge=1, le=1000)
    guidance_scale: float = Field(1.0, ge=0, le=50)
    candidates: int = Field(2, ge=1, le=16)


class Prior(Family):
    """`clip`: whose image embeddings it draws, frozen; `embeddings`: those of a batch's images, (B, dim), of unit
    length."""

    kept = ("net",)

    def __init__(self, config: Config, data: DataInfo, clip: CLIPFamily, embeddings: Callable[[Batch], Tensor]):
        self.config, self.data, self.clip, self.embeddings = config, data, clip, embeddings
        self.dim, self.length = clip.config.dim, clip.config.text.length
        net = PriorNet(self.dim, clip.config.text.width, config.width, config.depth, config.heads)
        self.nets = nn.ModuleDict({"net": net})
        self.calls = {"net": net}
        self.schedule = schedules.build(config.schedule)
        self.preconditioner = Preconditioner("x0", self.schedule, net="net")
        self.phases = (Phase("embed", "net", self.loss, config.optimizer),)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        draws = batch.draws.fold("prior")
        dropped = draws.uniform("label_dropout") < self.config.label_dropout
        tokens = tokens_of_column(batch.columns["caption"], self.length).masked_fill(dropped[:, None], 0)
        with torch.no_grad():
            clean = scaled(self.embeddings(replace(batch, draws=draws)))
            told = self.clip.nets["clip"].texts(tokens)
        sigma = self.schedule.sigma(draws.uniform("time").double())
        wide = per_row(sigma, clean).float()
        noisy = OBJECTIVES["x0"](wide).c_in * (clean + wide * draws.normal("noise", (self.dim,)))
        answer = net(x=noisy, level=self.preconditioner.level(sigma).float(), **told)
        return {"loss": (answer - clean).square().mean()}

    def asked(self, texts: tuple[str, ...], device: torch.device) -> dict[str, Tensor]:
        """The inputs of CLIP's text tower. Raises SamplerError of a text that is too long."""
        return {"tokens": tokens_of(texts, self.length).to(device)}

    def draw(self, seeds: Tensor, settings: Settings, told: Asked, nothing: Asked) -> Generator[Call, Any, Tensor]:
        """Embeddings (B, dim) of unit length, of images that fit texts. `nothing`: what CLIP says of the empty text, a
        row each."""
        sigmas = schedules.spaced_sigmas(self.schedule, "schedule", settings.num_inference_steps, 1.0)
        count, rows = settings.candidates, len(seeds)
        keys = torch.cat([Draws.of_seeds(seeds).fold(f"candidate {number}").keys for number in range(count)])
        towards, away = ({name: torch.cat([part] * count) for name, part in texts.items()} for texts in (told, nothing))
        scale = settings.guidance_scale if self.config.label_dropout else 1.0
        denoise = self.preconditioner.guided(towards, away, Guidance(scale))
        start = sigmas[0] * Draws(keys).normal("start", (self.dim,))
        drawn = yield from solve(SOLVERS["ddim"](start, sigmas, lambda step: torch.zeros_like(start)), denoise)
        found = F.normalize(drawn, dim=1).unflatten(0, (count, rows))
        best = (found * told["pooled"]).sum(2).argmax(0)
        return found[best, torch.arange(rows, device=seeds.device)]
