"""Weights spread over workers (FSDP2), and their way in and out of whole tensors.

What is stored, averaged over workers or handed on is always whole, so a run may continue with another number of workers
or with none of this. Zhao et al. 2023; the code is torch's `fully_shard`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(net: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh) -> None:
    """Spreads a net's parameters over the workers of `mesh`, in place, and gives the optimizer the parts."""
    from torch.distributed.fsdp import fully_shard  # here and below on demand: most runs spread nothing

    names = {id(parameter): name for name, parameter in net.named_parameters()}
    fully_shard(net, mesh=mesh)
    parts = dict(net.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parts[names[id(parameter)]] for parameter in group["params"]]


def is_spread(value: object) -> bool:
    """Whether a tensor lies in parts on several workers, torch's DTensor."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def gathered(tree):
    """`tree`, mappings and lists of tensors and plain values, with every spread tensor made whole. All workers must
    call it together."""
    if is_spread(tree):
        return tree.full_tensor()
    if isinstance(tree, Mapping):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(gathered(value) for value in tree)
    return tree


def placed_like(whole: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, each spread as the tensor of the same name in `like` is; plain where that is plain."""
    return {name: placed(value, like[name]) for name, value in whole.items()}


def place_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Spreads a loaded optimizer's whole moments as its parameters are."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = placed(value, parameter)


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread as `like` is; plain where that is plain."""
    if not is_spread(like) or is_spread(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
