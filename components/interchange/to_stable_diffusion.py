"""A run of `stable_diffusion`, imported or fine-tuned, as the folder of Stable Diffusion that from_diffusers reads:
plain diffusers loads it, and what is read again has the same weights.

The scheduler visits the levels that the run visits; which solver it has there is for its user to choose. A refiner is
a folder of its own below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from components.artifacts.run_folder import Run
from components.diffusion.schedules import NUM_TRAIN_TIMESTEPS, ScheduleConfig
from components.errors import SamplerError
from components.families.stable_diffusion import Config, UNetLayout, adapter_net
from components.families.stable_diffusion import Model as StableDiffusion
from components.files import whole_folder, write_json, write_whole
from components.interchange.to_diffusers import BETAS, PREDICTIONS, VERSION, WEIGHTS, plain, vae_config
from components.nets.text_encoders import EncoderLayout, TextEncoders

FIRST, XL, REFINER = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"
REFINER_FOLDER = "refiner"
DENOISER = "denoiser"
NOTHING = [None, None]


def export(run: Run, target: Path) -> None:
    """Writes model_index.json and a folder for each part, whole or not at all. The only adapter of a run, which is on
    unless a request says otherwise, is added to the U-Net's weights.

    Raises SamplerError of what diffusers' pipelines cannot express."""
    family, where = run.family, str(run.folder)
    refuse_unless_expressible(family, where)
    is_xl = len(family.config.text) == 2
    with whole_folder(target) as folder:
        _write_pipeline(folder, family, XL if is_xl else FIRST, DENOISER, family.config.backbone)
        if family.config.refiner is not None:
            _write_pipeline(folder / REFINER_FOLDER, family, REFINER, "refiner", family.config.refiner)


def refuse_unless_expressible(family: StableDiffusion, where: str) -> None:
    """Raises SamplerError naming the first thing that a folder has no place for."""
    config, autoencoder = family.config, family.autoencoder
    if len(config.adapters) > 1:
        raise SamplerError(
            f"{where}: a folder has one U-Net, and this run the adapters {', '.join(config.adapters)}; expected one at "
            "most, which is added to it, or --to lora, which writes each as a file"
        )
    is_xl = len(config.text) == 2
    kinds = [(one.kind, one.pooled, one.penultimate) for one in config.text]
    if kinds != ([("clip", False, True), ("clip", True, True)] if is_xl else [("clip", False, False)]):
        raise SamplerError(f"{where}: expected the text encoders of Stable Diffusion 1, 2 or XL")
    if autoencoder.config.codebook or autoencoder.config.reconstruction == "bce":
        raise SamplerError(f"{where}: expected an autoencoder with a Gaussian posterior, trained by mse or l1")
    _, height, width = family.data.shape
    if height != width:
        raise SamplerError(f"{where}: latents of {height}x{width}; a folder knows one side, of squares")
    if not is_xl and not _has_one_factor(config):
        raise SamplerError(
            f"{where}: latents normalised channel by channel; {FIRST} knows one factor for all and no mean"
        )


def _write_pipeline(folder: Path, family: StableDiffusion, kind: str, net: str, layout: UNetLayout) -> None:
    """One pipeline: the U-Net `net` with what it needs."""
    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": VERSION}
    texts = family.nets["text"]
    names = ("text_encoder", "text_encoder_2") if len(texts.layouts) == 2 else ("text_encoder",)
    for number, name in enumerate(names):
        index |= {name: NOTHING, _tokenizer(name): NOTHING}
        if kind != REFINER or number == 1:  # the refiner knows the last encoder alone
            index |= _write_text(folder, name, texts, number)
    scheduler, described = scheduler_of(family.config)
    parts = {
        "vae": ("AutoencoderKL", vae_config(family) | latents_of(family.config), plain(family.nets["autoencoder"])),
        "unet": ("UNet2DConditionModel", unet_config(layout, family), unet_weights(family, net)),
    }
    for name, (of, config, weights) in parts.items():
        write_json(folder / name / "config.json", {"_class_name": of, "_diffusers_version": VERSION, **config})
        stored = {key: value.contiguous() for key, value in weights.items()}
        safetensors.torch.save_file(stored, folder / name / WEIGHTS, metadata={"format": "pt"})
        index[name] = ["diffusers", of]
    head = {"_class_name": scheduler, "_diffusers_version": VERSION}
    write_json(folder / "scheduler" / "scheduler_config.json", head | described)
    index |= {"scheduler": ["diffusers", scheduler], "image_encoder": NOTHING, "feature_extractor": NOTHING}
    if kind == FIRST:
        index |= {"safety_checker": NOTHING, "requires_safety_checker": False}
    else:
        index |= {"force_zeros_for_empty_prompt": family.config.zeros_for_nothing if kind == XL else False}
    if kind == REFINER:
        index["requires_aesthetics_score"] = layout.added is not None and layout.added[1] == 5
    write_json(folder / "model_index.json", index)


def unet_config(layout: UNetLayout, family: StableDiffusion) -> dict[str, Any]:
    """As diffusers names it."""
    channels, side, _ = family.data.shape
    described = {
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(layout.widths),
        "layers_per_block": layout.layers,
        "attention_head_dim": list(layout.heads),  # the number of heads, in spite of its name
        "transformer_layers_per_block": list(layout.depth),
        "cross_attention_dim": layout.context_dim,
        "use_linear_projection": layout.linear,
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in layout.attention],
        "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in layout.attention[::-1]],
        "norm_num_groups": layout.norm_groups,
        "sample_size": side,
    }
    if layout.added is not None:
        pooled, sizes, width = layout.added
        described |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": width,
            "projection_class_embeddings_input_dim": pooled + sizes * width,
        }
    return described


def unet_weights(family: StableDiffusion, net: str) -> dict[str, Tensor]:
    """A U-Net's weights, with those of the run's only adapter, if it has one, added to the first one's."""
    weights = plain(family.nets[net].backbone)
    for name in family.config.adapters if net == DENOISER else ():
        adapter = family.nets[adapter_net(name)]
        for layer in adapter.layers:
            down, up = (matrix.detach().cpu() for matrix in adapter.matrices(layer))
            key = f"{layer.removeprefix('backbone.')}.weight"
            weights[key] = weights[key] + up @ down
    return weights


def latents_of(config: Config) -> dict[str, Any]:
    """How the latents are normalised, in the terms of the autoencoder's config."""
    if _has_one_factor(config):
        return {"scaling_factor": _inverse(config.latent_std[0])}
    return {"scaling_factor": 1.0, "latents_mean": list(config.latent_mean), "latents_std": list(config.latent_std)}


def _has_one_factor(config: Config) -> bool:
    return not any(config.latent_mean) and len(set(config.latent_std)) == 1


def _inverse(value: float) -> float:
    """1 / value; of two floats with the same inverse the shorter one, as a person wrote it."""
    short = round(1 / value, 8)
    return short if short and 1 / short == value else 1 / value


def scheduler_of(config: Config) -> tuple[str, dict[str, Any]]:
    """A scheduler's class and config that visit the levels that the run visits."""
    schedule: ScheduleConfig = config.schedule
    # DPM-Solver++ counts one level more than it visits: what others cannot say
    is_inner = schedule.levels == "inner"
    described = {
        "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
        "prediction_type": PREDICTIONS[config.objective],
        "timestep_spacing": "leading" if is_inner else schedule.levels,
        # of other levels it says nothing, and diffusers warns of 0
        "steps_offset": schedule.offset if schedule.levels in ("leading", "inner") else 1,
        "use_karras_sigmas": schedule.karras,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        **BETAS[schedule.name],
    }
    return ("DPMSolverMultistepScheduler" if is_inner else "EulerDiscreteScheduler"), described


def _write_text(folder: Path, name: str, texts: TextEncoders, number: int) -> dict[str, list[str]]:
    """An encoder and its tokenizer; returns what the pipeline's index says of them."""
    layout, encoder = texts.layouts[number], texts.encoders[number]
    encoder.save_pretrained(folder / name)
    words = folder / _tokenizer(name)
    stored = getattr(texts, f"tokenizer_{number}").cpu().numpy().tobytes()
    write_whole(words / "tokenizer.json", stored)
    known = json.loads(stored)
    write_json(words / "vocab.json", known["model"]["vocab"])
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in known["model"]["merges"]]
    write_whole(words / "merges.txt", "\n".join(["#version: 0.2", *pairs, ""]))
    write_json(words / "tokenizer_config.json", _words_config(layout, known))
    return {name: ["transformers", type(encoder).__name__], _tokenizer(name): ["transformers", "CLIPTokenizer"]}


def _words_config(layout: EncoderLayout, known: dict[str, Any]) -> dict[str, Any]:
    """`known`: the tokenizer's JSON. Its own marks are told, for those of published encoders' configs are others."""
    by_number = {number: word for word, number in known["model"]["vocab"].items()}
    by_number |= {one["id"]: one["content"] for one in known["added_tokens"]}
    marks = known["post_processor"]
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": layout.length,
        "bos_token": marks["cls"][0],
        "eos_token": marks["sep"][0],
        "unk_token": known["model"]["unk_token"],
        "pad_token": by_number[layout.pad],
    }


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")
