"""Perceptual distance of images (Zhang et al. 2018): by LPIPS, or by the judge's features."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.config import Strict


class PerceptualConfig(Strict):
    """`weight` against an error summed over pixels, as if each had this distance (Esser et al. 2021). `network`: the
    input that measures it, a judge's run or `lpips`, a file of AlexNet's weights (the extra `metrics`)."""

    weight: float = Field(0.1, gt=0)
    network: Literal["judge", "lpips"] = "judge"

    @model_validator(mode="before")
    @classmethod
    def _of_old_runs(cls, content: Any) -> Any:
        """Run folders of before name the network's path under its own key."""
        if isinstance(content, dict) and "network" not in content and {"judge", "lpips"} & content.keys():
            rest = {name: value for name, value in content.items() if name not in ("judge", "lpips")}
            return {**rest, "network": "lpips" if content.get("lpips") else "judge"}
        return content


def by_judge(net: nn.Module, images: Tensor, others: Tensor) -> Tensor:
    """(B,) distances of pairs of images (B, C, H, W) in [-1, 1] in the maps of a classifier; differentiable."""
    return sum(_apart(one, other) for one, other in zip(net.maps(images), net.maps(others), strict=True))


def by_lpips(net: nn.Module, images: Tensor, others: Tensor) -> Tensor:
    """The same by LPIPS, which takes images of three channels."""
    return net(images.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1)).flatten()


DISTANCES = {"judge": by_judge, "lpips": by_lpips}  # by the role of the network


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Zhang et al. 2018, equation 1, all channels weighing the same."""
    return (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1).mean((1, 2))
