"""Muon (Jordan et al. 2024): a matrix moves by the orthogonal matrix nearest to its momentum; the rest by AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.training import sharding

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration (Jordan et al. 2024)
ITERATIONS = 5
MOMENTUM = 0.95
ADAMW_RMS = 0.2  # of AdamW's usual update, which the scale matches (Liu et al. 2025, section 2.2)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices (..., m, n) with their singular values brought to about 1 (0.7 to 1.2), by Newton and Schulz.

    In bfloat16 on a GPU, as published, elsewhere in float32: one device, one result."""
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def block_matrices(net: nn.Module) -> set[str]:
    """Names of the weights that Muon moves: matrices and kernels of the blocks of a net, which are what lies in lists.
    Embeddings, what modulates, and the layers at both ends stay AdamW's (Jordan et al. 2024)."""
    left_out = {
        f"{path}.{name}"
        for path, module in net.named_modules()
        if isinstance(module, nn.Embedding) or getattr(module, "modulates", False)
        for name, _ in module.named_parameters()
    }
    return {
        name
        for name, parameter in net.named_parameters()
        if parameter.ndim >= 2 and name not in left_out and any(part.isdigit() for part in name.split("."))
    }


class Muon(torch.optim.AdamW):
    """AdamW, whose groups with `muon` set move by Muon. Kernels (out, in, ...) count as matrices (out, in * ...).

    Weights spread over workers are gathered first, so that every worker makes the same of the same numbers."""

    def __init__(self, groups: Sequence[dict], **adamw):
        super().__init__([{"muon": False, **group} for group in groups], **adamw)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._move(group)

    def _move(self, group: dict) -> None:
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
        for (rows, columns), parameters in by_shape.items():
            directions = torch.stack([sharding.gathered(self._direction(p)).reshape(rows, columns) for p in parameters])
            steps = orthogonalised(directions) * (ADAMW_RMS * max(rows, columns) ** 0.5)
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(sharding.placed(step.reshape(parameter.shape), parameter), alpha=group["lr"])

    def _direction(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov's momentum of the gradient."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # not counted, but AdamW expects one in every state that it loads
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(state["momentum"], MOMENTUM)
