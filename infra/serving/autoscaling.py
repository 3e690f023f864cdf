"""How many replicas the engines' load asks for. Serve's controller imports this module, so it imports nothing heavy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

LOAD = "engine_load"  # rows that advance or wait, as a share of an engine's slots
TARGET = 0.5  # of that share: half of the slots are free for what comes while another replica starts


def replicas_for_load(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """An autoscaling policy of Serve: as many replicas as bring the mean load to TARGET. Serve keeps the answer between
    the bounds and applies the delays."""
    loads = context.aggregated_metrics.get(LOAD, {}) if context.aggregated_metrics else {}
    if not loads:  # nothing is known yet
        return context.target_num_replicas, {}
    return max(1, math.ceil(sum(loads.values()) / TARGET)), {}
