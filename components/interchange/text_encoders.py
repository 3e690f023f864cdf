"""Text encoders in folders as transformers saves them: CLIP's, alone or in the whole model, and T5's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from components.config import parse
from components.errors import SamplerError
from components.interchange.folders import folder_of, read_json, refuse_pickles, weight_files
from components.nets.text_encoders import EncoderLayout, FrozenText, library

KNOWN = "a folder that transformers saved, or a hub name such as openai/clip-vit-large-patch14 or google-t5/t5-base"
KINDS = {"clip": "clip", "clip_text_model": "clip", "t5": "t5"}  # by transformers' model_type
FILES = ("*.json", "*.txt", "*.model", "model*.safetensors")
WEIGHTS = "model.safetensors"


def read(name: str, length: int, where: str) -> FrozenText:
    """The encoder of a local folder or of a hub name, with up to `length` tokens a text; `where` is told in errors.

    Raises InputError, one line, if it cannot be had, holds a pickle, or is no such encoder."""
    folder = folder_of(name, where, KNOWN, FILES)
    if Path(name).is_dir():  # of a hub name only safetensors are fetched
        refuse_pickles(folder)
    found = read_json(folder / "config.json", KNOWN).get("model_type")
    if found not in KINDS:
        raise SamplerError(f"{folder}: a {found}; expected {KNOWN}")
    layout, weights = layout_and_weights(folder, folder, KINDS[found], length=length)
    net = FrozenText(layout)
    net.load_state_dict({**numbered(0, weights), "nothing": net.nothing})
    net.requires_grad_(False).eval()
    net.nothing.copy_(net.encoded([""]).context[0])
    return net


def layout_and_weights(
    folder: Path, tokenizer_folder: Path, kind: str, pooled: bool = False, penultimate: bool = False, length: int = 0
) -> tuple[EncoderLayout, dict[str, Tensor]]:
    """An encoder and its tokenizer; `length`: the most tokens, 0 for as many as both take. The weights have the names
    that the encoder of `layout.build()` gives them, and the tokenizer's bytes are under `tokenizer`.

    Raises SamplerError, one line, of what is missing, damaged or no such encoder."""
    transformers = library("transformers")
    weight_files(folder, WEIGHTS, KNOWN)
    name = {"clip": "CLIPTextModelWithProjection" if pooled else "CLIPTextModel", "t5": "T5EncoderModel"}[kind]
    words = transformers.CLIPTokenizer if kind == "clip" else transformers.AutoTokenizer
    try:
        net, report = getattr(transformers, name).from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = words.from_pretrained(tokenizer_folder)
        stored = torch.frombuffer(bytearray(tokenizer.backend_tokenizer.to_str().encode()), dtype=torch.uint8)
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError, ImportError, SafetensorError) as error:
        raise SamplerError(f"{folder}: {' '.join(str(error).split())[:200]}") from None
    if report["missing_keys"]:
        raise SamplerError(f"{folder}: no {sorted(report['missing_keys'])[0]} in its weights; expected {KNOWN}")
    most = [tokenizer.model_max_length, length or tokenizer.model_max_length]
    most += [net.config.max_position_embeddings] if kind == "clip" else []
    described = {
        "kind": kind,
        "config": json.loads(net.config.to_json_string(use_diff=True)),
        "pooled": pooled,
        "penultimate": penultimate,
        "length": min(most),
        "pad": tokenizer.pad_token_id,
        "tokenizer_bytes": len(stored),
    }
    layout = parse(EncoderLayout, described, str(folder))
    encoder = net.encoder if kind == "t5" else net
    return layout, {**encoder.state_dict(), "tokenizer": stored}


def numbered(number: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of layout_and_weights as TextEncoders' encoder `number` names them."""
    return {
        f"tokenizer_{number}" if key == "tokenizer" else f"encoders.{number}.{key}": value
        for key, value in weights.items()
    }
