"""Guidance away from no class or text, which a model learns only where rows are trained without theirs."""

from __future__ import annotations

from components.config import Strict
from components.sampling.requests import Conditions


def leads_away(label_dropout: float, asked: Conditions) -> bool:
    """Whether a model has learned what a request is to be led away from: no class or text, or the negative ones."""
    return label_dropout > 0 or asked.negative_label is not None or asked.negative_prompt is not None


def unheard_guidance(conditioning: str, label_dropout: float, settings: Strict) -> str | None:
    """Why a candidate that chooses guidance would get none, as Sampler.unheard says it."""
    is_chosen = "guidance_scale" in settings.model_fields_set and settings.guidance_scale != 1
    if not is_chosen or conditioning == "none" or label_dropout > 0:
        return None
    return (
        f"guidance_scale: this model is never trained without its {conditioning}, so that nothing guides; expected 1, "
        "or model.label_dropout above 0"
    )
