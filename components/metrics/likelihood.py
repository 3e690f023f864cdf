"""Bits per dimension: the negative log2-likelihood of stored values, a value of a row."""

from __future__ import annotations

import math

from torch import Tensor

from components.metrics.figures import Definition, Figure
from components.metrics.intervals import normal

BITS_PER_DIM = Definition(
    name="bits_per_dim",
    label="bits/dim",
    group="likelihood",
    explanation="negative log2-likelihood of held-out rows, a stored value",
    kind="likelihood",
    better="lower",
    unit="bits",
)
BITS_PER_DIM_TRAIN = BITS_PER_DIM.model_copy(
    update={
        "name": "bits_per_dim_train",
        "label": "bits/dim, training rows",
        "explanation": "the same of as many rows that were trained on",
    }
)
BITS_GAP = Definition(
    name="bits_gap",
    label="bits/dim, gap",
    group="likelihood",
    explanation="held-out less training bits per dimension: what was memorised rather than learnt",
    kind="likelihood",
    better="lower",
    unit="bits",
)


def _of_unit(unit: str, explanation: str) -> tuple[Definition, Definition, Definition]:
    """The same three figures by another unit than a dimension: `explanation` of the first."""
    told = {
        BITS_PER_DIM: explanation,
        BITS_PER_DIM_TRAIN: BITS_PER_DIM_TRAIN.explanation,
        BITS_GAP: f"held-out less training bits per {unit}: what was memorised rather than learnt",
    }
    return tuple(
        definition.model_copy(
            update={
                "name": definition.name.replace("per_dim", f"per_{unit}").replace("bits_gap", f"bits_per_{unit}_gap"),
                "label": definition.label.replace("bits/dim", f"bits/{unit}"),
                "explanation": explanation,
            }
        )
        for definition, explanation in told.items()
    )


# each of held-out rows, of training rows, and the gap between
OF_VALUES = (BITS_PER_DIM, BITS_PER_DIM_TRAIN, BITS_GAP)
OF_TOKENS = _of_unit("token", "negative log2-likelihood of held-out rows' tokens, a token; of no pixel")
OF_LATENTS = _of_unit(
    "latent",
    "negative log2-density of held-out rows' latents at unit variance, a number of them; comparable between "
    "models on the latents of one autoencoder alone, and of no pixel",
)


def bits_per_dim_figure(definition: Definition, bits: Tensor) -> Figure:
    """The mean of rows' bits per dimension (N,), with the interval of a mean of independent rows."""
    return _figure(definition, bits.double().mean().item(), _squared_error(bits))


def gap_figure(definition: Definition, held_out: Tensor, train: Tensor) -> Figure:
    """The difference of two means of rows' bits per dimension, (N,) and (M,)."""
    value = (held_out.double().mean() - train.double().mean()).item()
    return _figure(definition, value, _squared_error(held_out) + _squared_error(train))


def _squared_error(bits: Tensor) -> float:
    return bits.double().var(correction=1).item() / len(bits)


def _figure(definition: Definition, value: float, squared_error: float) -> Figure:
    return definition.figure(value, normal(value, math.sqrt(squared_error)))
