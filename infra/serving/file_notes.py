"""What a generated file says of how it was made, in the form that image viewers know from Stable Diffusion's web UI
(AUTOMATIC1111): a text `parameters`. All settings stand beside it as JSON."""

from __future__ import annotations

import json

from infra.serving.orders import SampleRequest, Towards
from infra.serving.served_model import ServedModel

PARAMETERS, SETTINGS = "parameters", "latent-foundry"
NAMES = {"num_inference_steps": "Steps", "solver": "Sampler", "guidance_scale": "CFG scale"}


def of(order: SampleRequest, model: ServedModel) -> dict[str, str]:
    """Texts by keyword. Equal orders have equal texts."""
    prompt, negative = (
        _text(order.prompt, order.label, model),
        _text(order.negative_prompt, order.negative_label, model),
    )
    facts = {NAMES[name]: order.settings[name] for name in NAMES if name in order.settings}
    facts |= {
        "Seed": order.seed,
        "Size": model.size_of(order),
        "Model hash": model.hash[:10],
        "Model": model.name,
        "Version": model.version,
    }
    if order.source:
        facts["Denoising strength"] = order.source.strength
    if order.blend:
        facts["Blend"] = _way(order.blend, model)
    lines = [prompt, *([f"Negative prompt: {negative}"] if negative else [])]
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items() if value != ""))
    told = {"prompt": prompt, "negative_prompt": negative, "seed": order.seed, "model": model.id, **order.settings}
    if order.blend:
        told["blend"] = order.blend.model_dump(exclude_none=True)
    return {PARAMETERS: "\n".join(lines), SETTINGS: json.dumps(told, sort_keys=True)}


def _way(blend: Towards, model: ServedModel) -> str:
    seed = [] if blend.seed is None else [f"seed {blend.seed}"]
    prompt = _text(blend.prompt, blend.label, model)
    return f"{blend.share:.2g} of the way to " + " and ".join([*seed, *([f"prompt {prompt}"] if prompt else [])])


def _text(text: str | None, label: int | None, model: ServedModel) -> str:
    return text or ("" if label is None else model.classes[label])
