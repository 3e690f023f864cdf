"""A diffusers folder of Stable Diffusion 1, 2 or XL as a model of ours: what it is, and its weights.

Every setting that would change the result is compared with what our networks compute; another value is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from components.config import parse
from components.data.info import AutoencoderInfo, DataInfo
from components.diffusion.schedules import NUM_TRAIN_TIMESTEPS
from components.errors import SamplerError
from components.families.stable_diffusion import Config, adapter_net
from components.families.stable_diffusion import Model as StableDiffusion
from components.interchange import lora
from components.interchange.folders import read_json, read_weights, refuse_pickles
from components.interchange.text_encoders import layout_and_weights, numbered
from components.interchange.to_diffusers import BETAS, WEIGHTS
from components.nets.text_encoders import EncoderLayout

PIPELINE = "a folder as diffusers saves a pipeline"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
REFINER = "StableDiffusionXLImg2ImgPipeline"
OBJECTIVES = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
# what our networks do where a config may say otherwise
UNET = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
VAE = {"act_fn": "silu", "mid_block_add_attention": True, "use_quant_conv": True, "use_post_quant_conv": True}
SCHEDULER = {
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "trained_betas": None,
    "thresholding": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "sigma_min": None,  # of karras, in the place of the levels' own ends
    "sigma_max": None,
}
# of a config that does not tell: what these schedulers of diffusers do, where the others take linspace
LEVELS = {"DDIMScheduler": "leading", "DDPMScheduler": "leading", "PNDMScheduler": "leading"}
# these count one level more than they visit, without the last; under karras they begin and end where the table does
MULTISTEP = ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "SASolver")
WITHOUT_LAST = {"linspace": "trailing", "leading": "inner", "trailing": "trailing"}
MIRROR = {"CrossAttnDownBlock2D": "CrossAttnUpBlock2D", "DownBlock2D": "UpBlock2D"}
OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}  # names before diffusers 0.15


class Part(NamedTuple):
    """One folder of a pipeline: its config, and its path for messages."""

    folder: Path
    config: dict[str, Any]

    def refuse(self, message: str) -> SamplerError:
        return SamplerError(f"{self.folder}: {message}")

    def expect(self, known: Mapping[str, Any]) -> None:
        """Raises SamplerError of the first setting that is not as known, where the config tells it."""
        for name, value in known.items():
            if self.config.get(name, value) != value:
                raise self.refuse(f"{name}: expected {value!r}, found {self.config[name]!r}")


def read(folder: Path, refiner: Path | None = None, adapters: Mapping[str, Path] = {}) -> StableDiffusion:
    """The model of a folder; `refiner`: a folder of Stable Diffusion XL's second stage; `adapters`: files of LoRA
    weights, by the names that requests shall know them by.

    Raises SamplerError, one line, of what is missing, damaged, a pickle, or beyond our networks."""
    index = _index(folder, PIPELINES)
    is_xl = index["_class_name"] == PIPELINES[1]
    unet, vae = _part(folder / "unet"), _part(folder / "vae")
    side = unet.config.get("sample_size")
    if not isinstance(side, int):
        raise unet.refuse(f"sample_size: expected one number for a square, found {side!r}")
    texts, text_weights = _texts(folder, is_xl)
    described = {
        "backbone": _unet(unet, _part(folder / "text_encoder_2").config["projection_dim"] if is_xl else 0),
        "text": texts,
        "zeros_for_nothing": is_xl and index.get("force_zeros_for_empty_prompt", True),
        **_schedule(_part(folder / "scheduler", "scheduler_config.json")),
        **_latents(vae),
    }
    if refiner is not None:
        described["refiner"] = _refiner(refiner, folder, is_xl)
    adapted = {name: lora.read(path) for name, path in adapters.items()}
    described["adapters"] = {name: adapter.model_dump() for name, (adapter, _) in adapted.items()}
    config, info = parse(Config, described, str(folder)), _autoencoder(vae, side)
    channels = info.config["latent_channels"]
    family = StableDiffusion(config, DataInfo(shape=(channels, side, side), autoencoder=info))
    for name, (_, weights) in adapted.items():
        _load_adapter(family.nets[adapter_net(name)], weights, adapters[name])
    _load(family.nets["denoiser"].backbone, unet)
    _load(family.nets["autoencoder"], vae)
    family.nets["text"].load_state_dict(text_weights)
    if refiner is not None:
        _load(family.nets["refiner"].backbone, _part(refiner / "unet"))
    family.nets.requires_grad_(False).eval()
    return family


def _index(folder: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    index = read_json(folder / "model_index.json", PIPELINE)
    if index.get("_class_name") not in kinds:
        raise SamplerError(f"{folder}: a {index.get('_class_name')}; expected {' or '.join(kinds)}")
    refuse_pickles(folder)
    return index


def _part(folder: Path, name: str = "config.json") -> Part:
    return Part(folder, read_json(folder / name, PIPELINE))


def _unet(part: Part, pooled_dim: int) -> dict[str, Any]:
    """The block of Config that a U-Net's config stands for; `pooled_dim`: of the text that XL's are told."""
    part.expect(UNET)
    config = part.config
    widths, downs = config["block_out_channels"], config["down_block_types"]
    if any(kind not in MIRROR for kind in downs) or config["up_block_types"] != [MIRROR[kind] for kind in downs[::-1]]:
        raise part.refuse(f"down_block_types: expected {' or '.join(MIRROR)}, and up_block_types their mirror image")
    if config["in_channels"] != config["out_channels"]:
        raise part.refuse(
            f"in_channels: expected out_channels, {config['out_channels']}, found {config['in_channels']}"
        )
    described = {
        "widths": widths,
        "attention": [kind.startswith("CrossAttn") for kind in downs],
        "layers": config["layers_per_block"],
        # attention_head_dim has always meant the number of heads
        "heads": _each(config.get("num_attention_heads") or config["attention_head_dim"], widths),
        "depth": _each(config.get("transformer_layers_per_block") or 1, widths),
        "context_dim": config["cross_attention_dim"],
        "linear": bool(config.get("use_linear_projection")),
        "norm_groups": _norm_groups(part),
    }
    kind = config.get("addition_embed_type")
    if kind not in (None, "text_time"):
        raise part.refuse(f"addition_embed_type: expected text_time or none, found {kind!r}")
    if kind is not None:
        width = config["addition_time_embed_dim"]
        sizes, rest = divmod(config["projection_class_embeddings_input_dim"] - pooled_dim, width)
        if rest or sizes not in (5, 6):
            raise part.refuse(f"projection_class_embeddings_input_dim: no place for 5 or 6 sizes beside {pooled_dim}")
        described["added"] = (pooled_dim, sizes, width)
    return described


def _norm_groups(part: Part) -> int:
    """The one number of groups that all norms of a part have."""
    groups = part.config.get("norm_num_groups", 32)
    if any(width % groups for width in part.config["block_out_channels"]):
        raise part.refuse(f"norm_num_groups: {groups} do not divide block_out_channels")
    return groups


def _each(value: Any, widths: list[int]) -> list:
    return [value] * len(widths) if isinstance(value, int) else value


def _refiner(refiner: Path, folder: Path, is_xl: bool) -> dict[str, Any]:
    _index(refiner, (REFINER,))
    if not is_xl:
        raise SamplerError(f"{refiner}: refines {PIPELINES[1]}; {folder} is none")
    one, other = (read_weights(of / "text_encoder_2", "model.safetensors", PIPELINE) for of in (folder, refiner))
    if one.keys() != other.keys() or any(not torch.equal(one[name], other[name]) for name in one):
        raise SamplerError(f"{refiner}: another text_encoder_2 than {folder} has; expected the same")
    return _unet(_part(refiner / "unet"), _part(folder / "text_encoder_2").config["projection_dim"])


def _schedule(part: Part) -> dict[str, Any]:
    """Objective and schedule, and which of its levels the folder's scheduler visits. Which solver it is does not
    matter, that is for a request's settings."""
    part.expect(SCHEDULER)
    config = part.config
    kind = config.get("beta_schedule", "linear")
    names = [name for name, betas in BETAS.items() if betas["beta_schedule"] == kind]
    if not names:
        raise part.refuse(f"beta_schedule: expected one of {', '.join(b['beta_schedule'] for b in BETAS.values())}")
    part.expect(BETAS[names[0]])
    objective = OBJECTIVES.get(config.get("prediction_type", "epsilon"))
    if objective is None:
        raise part.refuse(f"prediction_type: expected one of {', '.join(OBJECTIVES)}")
    schedule = {"name": names[0], "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr")), **_visited(part)}
    return {"objective": objective, "schedule": schedule}


def _visited(part: Part) -> dict[str, Any]:
    """The levels that a folder's scheduler visits, as keys of ScheduleConfig."""
    config, kind = part.config, part.config.get("_class_name", "")
    levels = config.get("timestep_spacing", LEVELS.get(kind, "linspace"))
    if levels not in WITHOUT_LAST:
        raise part.refuse(f"timestep_spacing: expected {', '.join(WITHOUT_LAST)}, found {levels!r}")
    karras = bool(config.get("use_karras_sigmas"))
    if kind.startswith(MULTISTEP):
        levels = "linspace" if karras else WITHOUT_LAST[levels]
    offset = config.get("steps_offset", 0) if levels in ("leading", "inner") else 0
    return {"levels": levels, "offset": offset, "karras": karras}


def _latents(part: Part) -> dict[str, Any]:
    """Mean and spread of a latent channel, from the one factor or the statistics that the autoencoder's config has."""
    config, channels = part.config, part.config["latent_channels"]
    factor = config.get("scaling_factor", 0.18215)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean and std:
        return {"latent_mean": mean, "latent_std": [value / factor for value in std]}
    return {"latent_mean": [config.get("shift_factor") or 0.0] * channels, "latent_std": [1 / factor] * channels}


def _autoencoder(part: Part, side: int) -> AutoencoderInfo:
    part.expect(VAE)
    config = part.config
    widths, channels = config["block_out_channels"], config["in_channels"]
    part.expect({"down_block_types": ["DownEncoderBlock2D"] * len(widths), "out_channels": channels})
    part.expect({"up_block_types": ["UpDecoderBlock2D"] * len(widths)})
    described = {
        "latent_channels": config["latent_channels"],
        "widths": widths,
        "layers": config["layers_per_block"],
        "norm_groups": _norm_groups(part),
    }
    pixels = side * 2 ** (len(widths) - 1)
    return AutoencoderInfo(config=described, data=DataInfo(shape=(channels, pixels, pixels)))


def _texts(folder: Path, is_xl: bool) -> tuple[list[EncoderLayout], dict[str, Tensor]]:
    """The layouts of the text encoders, and the weights of nets/text_encoders.py's TextEncoders."""
    layouts, weights = [], {}
    for number, name in enumerate(("text_encoder", "text_encoder_2") if is_xl else ("text_encoder",)):
        part, words = _part(folder / name), folder / name.replace("text_encoder", "tokenizer")
        if part.config.get("use_attention_mask"):
            raise part.refuse("use_attention_mask: expected false")
        layout, found = layout_and_weights(part.folder, words, "clip", pooled=number == 1, penultimate=is_xl)
        layouts.append(layout)
        weights |= numbered(number, found)
    return layouts, weights


def _load(net: nn.Module, part: Part) -> None:
    """Raises SamplerError unless the part's weights are those of the net."""
    weights = {_renamed(name): value for name, value in read_weights(part.folder, WEIGHTS, PIPELINE).items()}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise part.refuse(f"not this network's weights ({' '.join(str(error).split())[:200]})") from None


def _load_adapter(net: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Raises SamplerError unless the weights are those of an adapter of this U-Net."""
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise SamplerError(f"{path}: adapts another U-Net ({' '.join(str(error).split())[:200]})") from None


def _renamed(name: str) -> str:
    """Today's name of an old one."""
    place, _, rest = name.partition(".attentions.0.")
    old, _, kind = rest.rpartition(".")
    return f"{place}.attentions.0.{OLD_ATTENTION[old]}.{kind}" if old in OLD_ATTENTION else name
