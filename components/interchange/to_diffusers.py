"""A latent diffusion run of classes, or of none, as a folder that plain diffusers loads and samples with.

No pipeline of diffusers hands class numbers to its U-Net, but StableDiffusionXLPipeline takes both roads by which a
class enters ours as ready embeddings: `prompt_embeds` are the context token, and `pooled_prompt_embeds`, a one-hot
class, pass a small net whose second layer holds the class embedding that is added to the time's. All is exact:

    class embedding      add_embedding(one-hot) = W silu(one-hot), with column k of W the embedding over silu(1)
    latents' moments     folded into the autoencoder's 1x1 convolutions, so that `scaling_factor` is 1
    EDM's objective      with unit data it predicts -v, so the last convolution changes its sign
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.artifacts.run_folder import Run
from components.diffusion.schedules import NUM_TRAIN_TIMESTEPS
from components.errors import SamplerError
from components.families.latent_diffusion import Model as LatentDiffusion
from components.files import whole_folder, write_json, write_whole

VERSION = "0.42.1"  # of diffusers, whose layout this is
PIPELINE = "StableDiffusionXLPipeline"
WEIGHTS = "diffusion_pytorch_model.safetensors"
EMBEDDINGS = "class_embeddings.safetensors"
SIZE_IDS, SIZE_WIDTH = 6, 2  # the six numbers of an image's size and crop that the pipeline adds, unused here
ABSENT = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder", "feature_extractor")
_NO_PLACE = "diffusers has no place for it"
BETAS = {  # by our schedule's name; values as in components/diffusion/schedules.py
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "edm": "v_prediction", "x0": "sample"}


def export(run: Run, target: Path) -> None:
    """Writes model_index.json, vae/, unet/, scheduler/ and class_embeddings.safetensors, whole or not at all.

    Raises SamplerError of what diffusers' networks, schedulers or pipeline cannot express."""
    family = run.family
    if run.config.family == "sdxl":
        raise SamplerError(f"{run.folder}: what reads its texts as bytes was trained here; {_NO_PLACE}")
    if type(family) is not LatentDiffusion:
        raise SamplerError(
            f"{run.folder}: a {run.config.family}; expected latent_diffusion or stable_diffusion, the families that "
            "diffusers has"
        )
    refuse_unless_expressible(family, str(run.folder))
    scheduler, scheduler_config = scheduler_of(family, str(run.folder))
    parts = {
        "vae": ("AutoencoderKL", vae_config(family), vae_weights(family)),
        "unet": ("UNet2DConditionModel", unet_config(family), unet_weights(family)),
    }
    index = {
        "_class_name": PIPELINE,
        "_diffusers_version": VERSION,
        "force_zeros_for_empty_prompt": False,
        "scheduler": ["diffusers", scheduler],
        **{name: ["diffusers", kind] for name, (kind, _, _) in parts.items()},
        **{name: [None, None] for name in ABSENT},
    }
    with whole_folder(target) as folder:
        for name, (kind, config, weights) in parts.items():
            write_json(folder / name / "config.json", {"_class_name": kind, "_diffusers_version": VERSION, **config})
            safetensors.torch.save_file(weights, folder / name / WEIGHTS, metadata={"format": "pt"})
        described = {"_class_name": scheduler, "_diffusers_version": VERSION, **scheduler_config}
        write_json(folder / "scheduler" / "scheduler_config.json", described)
        write_json(folder / "model_index.json", index)
        classes = dict(enumerate(class_names(family)))
        safetensors.torch.save_file(
            embeddings(family), folder / EMBEDDINGS, {str(k): name for k, name in classes.items()}
        )
        write_whole(folder / "README.md", usage(family))


def refuse_unless_expressible(family: LatentDiffusion, where: str) -> None:
    """Raises SamplerError naming the first thing about the networks that diffusers has no place for."""
    autoencoder, backbone = family.autoencoder, family.config.backbone.name
    if backbone != "unet":
        raise SamplerError(
            f"{where}: its backbone is a {backbone}, with rotary places and gated feed-forwards that no transformer of "
            "diffusers has; expected unet"
        )
    if autoencoder is None:
        raise SamplerError(f"{where}: works on pixels; diffusers' latent pipelines expect an autoencoder")
    if family.texts:
        raise SamplerError(f"{where}: what makes its texts a context was trained here; {_NO_PLACE}")
    if autoencoder.config.codebook:
        raise SamplerError(f"{where}: its autoencoder has a codebook; expected one with a Gaussian posterior")
    if autoencoder.config.reconstruction == "bce":
        raise SamplerError(f"{where}: its autoencoder answers with logits (reconstruction: bce); expected mse or l1")
    _, height, width = autoencoder.data.shape
    if height != width or height % 8:
        raise SamplerError(
            f"{where}: images of {height}x{width} pixels; diffusers' pipelines expect squares, multiples of 8"
        )
    for net in (autoencoder.nets["autoencoder"], family.nets["denoiser"].backbone):
        if len(groups := norm_groups_of(net)) > 1:
            found = ", ".join(map(str, groups))
            raise SamplerError(f"{where}: norms of {found} groups in one net; diffusers has one number for all")
    unet = family.nets["denoiser"].backbone
    rows, width = unet.class_embedding.weight.shape
    if rows > width:
        raise SamplerError(f"{where}: {rows} classes; the embedding of diffusers' layout has room for {width}")


def norm_groups_of(net: nn.Module) -> list[int]:
    """The numbers of groups that a net's norms have."""
    return sorted({module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)})


def scheduler_of(family: LatentDiffusion, where: str) -> tuple[str, dict]:
    """The scheduler's class and config. Raises SamplerError if none speaks of the objective on this schedule."""
    objective, schedule = family.config.objective, family.config.schedule
    common = {"num_train_timesteps": NUM_TRAIN_TIMESTEPS}
    if objective == "flow" and schedule.name == "flow":
        if schedule.shift != 1:
            raise SamplerError(
                f"{where}: flow with shift {schedule.shift}; diffusers tells the net shifted levels, ours not"
            )
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
        return "UniPCMultistepScheduler", {**common, **flow}
    if objective in PREDICTIONS and schedule.name in BETAS:
        kept = {
            "prediction_type": PREDICTIONS[objective],
            "timestep_spacing": "linspace",
            "use_karras_sigmas": schedule.karras,
            "interpolation_type": "linear",
        }
        betas = {"trained_betas": betas_of(family)} if schedule.zero_terminal_snr else BETAS[schedule.name]
        return "EulerDiscreteScheduler", {**common, **betas, **kept}
    raise SamplerError(
        f"{where}: objective {objective} on schedule {schedule.name}; diffusers has flow on flow, and "
        f"{', '.join(PREDICTIONS)} on {', '.join(BETAS)}"
    )


def betas_of(family: LatentDiffusion) -> list[float]:
    """The schedule as a table: the end of ours, close to no signal, is not the one that diffusers puts there."""
    alpha_bar = 1 / (1 + torch.exp(2 * family.schedule.log_sigmas))
    return (1 - alpha_bar / torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])).tolist()


def vae_config(family: LatentDiffusion) -> dict:
    config, (channels, side, _) = family.autoencoder.config, family.autoencoder.data.shape
    depth = len(config.widths)
    return {
        "in_channels": channels,
        "out_channels": channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.layers,
        "down_block_types": ["DownEncoderBlock2D"] * depth,
        "up_block_types": ["UpDecoderBlock2D"] * depth,
        "norm_num_groups": norm_groups_of(family.nets["autoencoder"])[0],
        "sample_size": side,
        "scaling_factor": 1.0,
    }


def vae_weights(family: LatentDiffusion) -> dict[str, Tensor]:
    """The autoencoder's weights, with the latents' normalisation in its 1x1 convolutions."""
    weights = plain(family.nets["autoencoder"])
    mean, std = (torch.tensor(family.data.statistics[name]) for name in ("channel_mean", "channel_std"))
    # the posterior's (mean - m) / s and logvar - 2 log s
    scale, shift = torch.cat([1 / std, torch.ones_like(std)]), torch.cat([-mean / std, -2 * std.log()])
    weights["quant_conv.weight"] = weights["quant_conv.weight"] * scale[:, None, None, None]
    weights["quant_conv.bias"] = weights["quant_conv.bias"] * scale + shift
    # W (s z + m) + b
    kernel = weights["post_quant_conv.weight"]
    weights["post_quant_conv.weight"] = kernel * std[None, :, None, None]
    weights["post_quant_conv.bias"] = weights["post_quant_conv.bias"] + kernel[:, :, 0, 0] @ mean
    return {name: value.contiguous() for name, value in weights.items()}


def unet_config(family: LatentDiffusion) -> dict:
    backbone, (channels, side, _) = family.config.backbone, family.data.shape
    rows = family.null + 1
    return {
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(backbone.widths),
        "layers_per_block": backbone.layers,
        "attention_head_dim": backbone.heads,  # the number of heads, in spite of its name
        "cross_attention_dim": backbone.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in backbone.attention],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(backbone.attention)],
        "norm_num_groups": norm_groups_of(family.nets["denoiser"].backbone)[0],
        "sample_size": side,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": rows + SIZE_IDS * SIZE_WIDTH,
    }


def unet_weights(family: LatentDiffusion) -> dict[str, Tensor]:
    """The U-Net's weights, its class embedding as the second layer of a net that takes one-hot classes."""
    weights = plain(family.nets["denoiser"].backbone)
    table = weights.pop("class_embedding.weight")  # (classes and none, T)
    rows, width = table.shape
    one = torch.zeros(width, rows + SIZE_IDS * SIZE_WIDTH)
    one[:rows, :rows] = torch.eye(rows)
    two = torch.zeros(width, width)
    two[:, :rows] = table.T / F.silu(torch.ones(()))
    weights["add_embedding.linear_1.weight"], weights["add_embedding.linear_2.weight"] = one, two
    weights["add_embedding.linear_1.bias"] = torch.zeros(width)
    weights["add_embedding.linear_2.bias"] = torch.zeros(width)
    if family.config.objective == "edm":
        weights |= {name: -weights[name] for name in ("conv_out.weight", "conv_out.bias")}
    return {name: value.contiguous() for name, value in weights.items()}


def embeddings(family: LatentDiffusion) -> dict[str, Tensor]:
    """What the pipeline wants for class k: rows k of both; the last row stands for no class."""
    context = family.nets["denoiser"].conditioner.context.weight.detach().cpu()
    return {"prompt_embeds": context[:, None].contiguous(), "pooled_prompt_embeds": torch.eye(len(context))}


def class_names(family: LatentDiffusion) -> tuple[str, ...]:
    return family.data.classes if family.conditional else ()


def plain(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in net.state_dict().items()}


def usage(family: LatentDiffusion) -> str:
    """How to sample, with the names of this model's classes."""
    classes = class_names(family)
    names = ", ".join(f"{number} {name}" for number, name in enumerate(classes[:20])) or "0 any"
    levels, note = "num_inference_steps=steps", ""
    if family.config.objective == "flow":
        # the scheduler tells the net 1000 * sigma rounded down
        levels = "sigmas=(np.linspace(999, 0, steps, endpoint=False).round() + 1e-6) / 1000"
        note = (
            "\nThe scheduler rounds a level down to whole thousandths before the U-Net sees it; `sigmas` as above are\n"
            "whole ones already, so that nothing is lost. Plain `num_inference_steps` works too, less exactly.\n"
        )
    return f"""# Sampling

    import numpy as np
    from diffusers import {PIPELINE}
    from safetensors.torch import load_file

    pipe = {PIPELINE}.from_pretrained(".")
    known = load_file("{EMBEDDINGS}")

    def images(classes, guidance_scale=1.5, steps=25):
        none = [-1] * len(classes)
        return pipe(
            prompt_embeds=known["prompt_embeds"][classes],
            pooled_prompt_embeds=known["pooled_prompt_embeds"][classes],
            negative_prompt_embeds=known["prompt_embeds"][none],
            negative_pooled_prompt_embeds=known["pooled_prompt_embeds"][none],
            guidance_scale=guidance_scale,
            {levels},
        ).images

Classes: {names}{", ..." if len(classes) > 20 else ""}

Groups of the norms (`norm_num_groups`, 32 in most published folders): {_told_groups(family)}.
{note}"""


def _told_groups(family: LatentDiffusion) -> str:
    nets = {"vae": family.nets["autoencoder"], "unet": family.nets["denoiser"].backbone}
    return ", ".join(f"{norm_groups_of(net)[0]} in {name}" for name, net in nets.items())
