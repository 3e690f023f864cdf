"""Texts by pretrained encoders, which the library `transformers` owns: one of CLIP (Rombach et al. 2022) or T5 (Saharia
et al. 2022, section 2.1), or two of CLIP beside each other, the second with a pooled embedding (Podell et al. 2024,
section 2.1)."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.errors import ConfigError

LIBRARIES = ("transformers",)  # what runs the nets of this module beside torch


class EncoderLayout(Strict):
    """One encoder. `config` is CLIPTextConfig's or T5Config's own; `pooled`: it has a projected pooled embedding;
    `penultimate`: its answer is what its last layer gets, not what it makes. `tokenizer_bytes`: the size of its
    tokenizer's JSON."""

    kind: Literal["clip", "t5"] = "clip"
    config: dict[str, Any]
    pooled: bool = False
    penultimate: bool = False
    length: int = Field(77, ge=3)  # tokens
    pad: int = Field(ge=0)
    tokenizer_bytes: int = Field(ge=2)

    @property
    def width(self) -> int:
        return self.config["d_model" if self.kind == "t5" else "hidden_size"]

    def build(self) -> nn.Module:
        """The encoder with initial weights."""
        transformers = library("transformers")
        if self.kind == "t5":
            # without the wrapper, which knows the embedding by a second name
            return transformers.T5EncoderModel(transformers.T5Config(**self.config)).encoder
        kind = transformers.CLIPTextModelWithProjection if self.pooled else transformers.CLIPTextModel
        return kind(transformers.CLIPTextConfig(**self.config))


class Encoded(NamedTuple):
    """Texts of B rows: per token (B, length, all encoders' widths), and pooled (B, P), P of 0 where there is none."""

    context: Tensor
    pooled: Tensor


class TextEncoders(nn.Module):
    """Token numbers of each encoder, (B, length) int64 -> (B, length * widths + P), which `unpack` takes apart.

    The tokenizers are kept beside the weights as bytes, so that one file holds all that a text needs."""

    def __init__(self, layouts: Sequence[EncoderLayout]):
        super().__init__()
        self.layouts = tuple(layouts)
        self.encoders = nn.ModuleList(layout.build() for layout in layouts)
        for number, layout in enumerate(layouts):
            self.register_buffer(f"tokenizer_{number}", torch.zeros(layout.tokenizer_bytes, dtype=torch.uint8))

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What `forward` takes; a text that is too long is cut, as these models' users expect."""
        device = self.tokenizer_0.device
        numbers = {}
        for number, layout in enumerate(self.layouts):
            rows = [encoding.ids for encoding in self._encodings(number, texts)]
            padded = [row + [layout.pad] * (layout.length - len(row)) for row in rows]
            numbers[f"tokens_{number}"] = torch.tensor(padded, device=device)
        return numbers

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts have more tokens than an encoder takes."""
        return sum(
            any(encoding.overflowing for encoding in of_encoders)
            for of_encoders in zip(
                *(self._encodings(number, texts) for number in range(len(self.layouts))), strict=True
            )
        )

    def _encodings(self, number: int, texts: Sequence[str]) -> list[Any]:
        stored = getattr(self, f"tokenizer_{number}").cpu().numpy().tobytes()
        return _tokenizer(stored, self.layouts[number].length).encode_batch(list(texts))

    def forward(self, **tokens: Tensor) -> Tensor:
        contexts, pooled = [], None
        for number, (layout, encoder) in enumerate(zip(self.layouts, self.encoders, strict=True)):
            given = tokens[f"tokens_{number}"]
            if layout.kind == "t5":
                there = (given != layout.pad).to(torch.int64)
                found = encoder(input_ids=given, attention_mask=there)
                # the U-Net attends to all places; what follows a text shall say nothing
                contexts.append(found.last_hidden_state * there[:, :, None])
                continue
            found = encoder(given, output_hidden_states=layout.penultimate)
            contexts.append(found.hidden_states[-2] if layout.penultimate else found.last_hidden_state)
            if layout.pooled:
                pooled = found.text_embeds
        packed = torch.cat(contexts, dim=2).flatten(1)
        return packed if pooled is None else torch.cat([packed, pooled], dim=1)

    def unpack(self, packed: Tensor) -> Encoded:
        length, width = self.layouts[0].length, sum(layout.width for layout in self.layouts)
        context, pooled = packed.split([length * width, packed.shape[1] - length * width], dim=1)
        return Encoded(context.unflatten(1, (length, width)), pooled)

    @torch.no_grad()
    def encoded(self, texts: Sequence[str]) -> Encoded:
        """Texts on the spot."""
        return self.unpack(self(**self.tokens(texts)))


class FrozenText(TextEncoders):
    """One encoder whose answers are stored beside the data, in half precision, and given in it everywhere: what is
    stored and what is computed on the spot are the same. `nothing`: (length, width), its answer to the empty text."""

    def __init__(self, layout: EncoderLayout):
        super().__init__([layout])
        self.register_buffer("nothing", torch.zeros(layout.length, layout.width))

    def forward(self, **tokens: Tensor) -> Tensor:
        return super().forward(**tokens).half().float()


@functools.lru_cache(maxsize=8)  # reading a vocabulary takes a tenth of a second
def _tokenizer(stored: bytes, length: int) -> Any:
    tokenizer = library("tokenizers").Tokenizer.from_buffer(stored)
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    return tokenizer


def library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"pretrained text encoders: {name} cannot be imported ({error}); install the extra `text`"
        ) from None
