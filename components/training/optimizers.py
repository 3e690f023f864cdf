"""Optimizers and their learning-rate schedules."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from components.config import Strict
from components.errors import ConfigError
from components.training.muon import Muon, block_matrices

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Strict):
    """One phase's optimizer. `warmup` and the run's length are counted in steps. `muon` moves the matrices in a net's
    blocks, `adamw` at the same rate the rest (components/training/muon.py)."""

    name: Literal["adamw", "adam", "rmsprop", "muon"] = "adamw"
    learning_rate: float = Field(gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    warmup: int = Field(0, ge=0)


def build(config: OptimizerConfig, net: nn.Module) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters of `net`; weight decay spares biases, norms and embeddings.

    Raises ConfigError of a net without blocks that muon could move."""
    named = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    plain = {name for name, parameter in named if parameter.ndim < 2}
    plain |= {f"{path}.weight" for path, module in net.named_modules() if isinstance(module, nn.Embedding)}
    moved = block_matrices(net) if config.name == "muon" else set()
    groups = [
        {"params": [p for name, p in named if name not in plain | moved], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if name in plain], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "muon":
        matrices = [parameter for name, parameter in named if name in moved]
        if not matrices:
            raise ConfigError(f"optimizer.name: muon: {type(net).__name__} has no matrices in blocks; expected adamw")
        groups.append({"params": matrices, "weight_decay": config.weight_decay, "muon": True})
        return Muon(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    if config.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.learning_rate)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    # one pass over a tensor, on CPU as on GPU, instead of ten: tests/benchmarks/training_options.py
    return kind(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """The rate at `step` (from 0) of `num_steps`: a linear warm-up, then the schedule.

    `cosine` falls to 0 at the end (Loshchilov and Hutter 2017, equation 5 without restarts); `inverse_sqrt` falls with
    the root of steps after the warm-up (Vaswani et al. 2017, equation 3)."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "cosine":
        done = (step - config.warmup) / max(1, num_steps - config.warmup)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "inverse_sqrt":
        since = max(1, config.warmup)
        return config.learning_rate * math.sqrt(since / max(since, step + 1))
    return config.learning_rate
