"""Texts as Stable Diffusion sees them: by one CLIP encoder (Rombach et al. 2022), or by two beside each other, the
second with a pooled embedding (Podell et al. 2024, section 2.1). The library `transformers` owns the encoders."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.errors import ConfigError


class EncoderLayout(Strict):
    """One encoder. `config` is CLIPTextConfig's own; `pooled`: it has a projected pooled embedding; `penultimate`: its
    answer is what its last layer gets, not what it makes. `tokenizer_bytes`: the size of its tokenizer's JSON."""

    config: dict[str, Any]
    pooled: bool = False
    penultimate: bool = False
    length: int = Field(77, ge=3)  # tokens
    pad: int = Field(ge=0)
    tokenizer_bytes: int = Field(ge=2)

    @property
    def width(self) -> int:
        return self.config["hidden_size"]


class Encoded(NamedTuple):
    """Texts of B rows: per token (B, length, all encoders' widths), and pooled (B, P), P of 0 where there is none."""

    context: Tensor
    pooled: Tensor


class TextEncoders(nn.Module):
    """Token numbers of each encoder, (B, length) int64 -> (B, length * widths + P), which `unpack` takes apart.

    The tokenizers are kept beside the weights as bytes, so that one file holds all that a text needs."""

    def __init__(self, layouts: Sequence[EncoderLayout]):
        super().__init__()
        transformers = library("transformers")
        self.layouts = tuple(layouts)
        self.encoders = nn.ModuleList()
        for number, layout in enumerate(layouts):
            kind = transformers.CLIPTextModelWithProjection if layout.pooled else transformers.CLIPTextModel
            self.encoders.append(kind(transformers.CLIPTextConfig(**layout.config)))
            self.register_buffer(f"tokenizer_{number}", torch.zeros(layout.tokenizer_bytes, dtype=torch.uint8))

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What `forward` takes; a text that is too long is cut, as these models' users expect."""
        tokenizers, device = library("tokenizers"), self.tokenizer_0.device
        numbers = {}
        for number, layout in enumerate(self.layouts):
            stored = getattr(self, f"tokenizer_{number}").cpu().numpy().tobytes()
            tokenizer = tokenizers.Tokenizer.from_buffer(stored)
            tokenizer.enable_truncation(layout.length)
            tokenizer.no_padding()
            rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
            padded = [row + [layout.pad] * (layout.length - len(row)) for row in rows]
            numbers[f"tokens_{number}"] = torch.tensor(padded, device=device)
        return numbers

    def forward(self, **tokens: Tensor) -> Tensor:
        contexts, pooled = [], None
        for number, (layout, encoder) in enumerate(zip(self.layouts, self.encoders, strict=True)):
            found = encoder(tokens[f"tokens_{number}"], output_hidden_states=layout.penultimate)
            contexts.append(found.hidden_states[-2] if layout.penultimate else found.last_hidden_state)
            if layout.pooled:
                pooled = found.text_embeds
        packed = torch.cat(contexts, dim=2).flatten(1)
        return packed if pooled is None else torch.cat([packed, pooled], dim=1)

    def unpack(self, packed: Tensor) -> Encoded:
        length, width = self.layouts[0].length, sum(layout.width for layout in self.layouts)
        context, pooled = packed.split([length * width, packed.shape[1] - length * width], dim=1)
        return Encoded(context.unflatten(1, (length, width)), pooled)


def library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"stable_diffusion: {name} cannot be imported ({error}); install the extra `text`") from None
