"""Conditioning on texts: by a small transformer over their bytes, trained from scratch with the denoiser, or by a
frozen pretrained encoder, whose embeddings of the data's captions lie beside the latents.

A text is (L,) UTF-8 bytes, zeros where it has ended, or its embedding (L, W); the empty one stands for "no text".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.data.dataset import Batch
from components.errors import SamplerError
from components.nets.text_encoders import LIBRARIES, EncoderLayout, FrozenText
from components.sampling.trajectories import Call, Trajectory

EMBEDDED = "text"  # the column of embeddings beside latents


def tokens_of(texts: Sequence[str], length: int) -> Tensor:
    """(B, length) int64. Raises SamplerError of a text that is longer or holds a zero byte."""
    rows = [list(text.encode()) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > length:
            raise SamplerError(f"prompt: at most {length} bytes, found {len(row)}: {text[:40]!r}...")
        if 0 in row:
            raise SamplerError(f"prompt: holds a zero byte: {text[:40]!r}")
    return torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(-1, length)


def cut(texts: Sequence[str], length: int) -> tuple[str, ...]:
    """Texts of up to `length` bytes: what is longer is cut, between characters."""
    return tuple(text.encode()[:length].decode(errors="ignore") for text in texts)


def cut_tokens_of(texts: Sequence[str], length: int) -> Tensor:
    """(B, length) int64; what is longer is cut."""
    return tokens_of([text.replace("\0", " ") for text in cut(texts, length)], length)


def tokens_of_column(captions: Tensor, length: int) -> Tensor:
    """Stored captions (B, any) uint8 -> (B, length) int64; what is longer is cut, between characters."""
    kept = captions[:, :length].long()
    if captions.shape[1] > length:
        places = torch.arange(length + 1, device=captions.device)
        begins = (captions[:, : length + 1] & 0xC0) != 0x80  # the other bytes of a character are 10xxxxxx in UTF-8
        end = (begins * places).amax(1, keepdim=True)  # where what fits ends: at `length`, or with a whole character
        return kept * (places[:-1] < end)
    return F.pad(kept, (0, length - kept.shape[1]))


def longer_than(captions: Tensor, length: int) -> int:
    """How many stored captions (B, any) are cut to `length` bytes."""
    return int((captions[:, length:] != 0).any(1).sum())


def texts_of_column(captions: Tensor) -> tuple[str, ...]:
    """Stored captions (B, any) uint8 as texts; a character that was cut is left out."""
    return tuple(bytes(row).rstrip(b"\0").decode(errors="ignore") for row in captions.cpu().numpy())


class Bytes:
    """Texts of up to `length` bytes, for the encoder that is trained along."""

    nets: Mapping[str, nn.Module] = {}
    libraries: tuple[str, ...] = ()

    def __init__(self, length: int):
        self.length = length

    def trained(self, batch: Batch, dropped: Tensor) -> Tensor:
        """The captions of a batch, (B, L) int64; `dropped` (B,) ones are empty."""
        return tokens_of_column(batch.columns["caption"], self.length).masked_fill(dropped[:, None], 0)

    def asked(self, texts: Sequence[str]) -> Trajectory:
        """The texts of a request, likewise, on the CPU. Raises SamplerError of one that is too long."""
        yield from ()
        return tokens_of(texts, self.length)

    def columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What training reads beside stored captions: nothing."""
        return {}

    def prompts_of(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Captions as a request may have them."""
        return cut(captions, self.length)


class Embeddings:
    """Embeddings of texts by a frozen encoder; training reads what is stored and never runs it."""

    length = 0  # of texts in bytes: none, it counts tokens
    libraries = LIBRARIES

    def __init__(self, layout: EncoderLayout):
        self.net = FrozenText(layout)
        self.nets: Mapping[str, nn.Module] = {"text": self.net}

    def trained(self, batch: Batch, dropped: Tensor) -> Tensor:
        """The captions of a batch, (B, L, W); `dropped` (B,) ones are the empty text's."""
        return torch.where(dropped[:, None, None], self.net.nothing, batch.columns[EMBEDDED].float())

    def asked(self, texts: Sequence[str]) -> Trajectory:
        """The texts of a request, likewise; empty ones cost no row. What is too long is cut."""
        found = self.net.nothing.repeat(len(texts), 1, 1)
        rows = [row for row, text in enumerate(texts) if text]
        if rows:
            packed = yield Call("text", self.net.tokens([texts[row] for row in rows]))
            found[rows] = self.net.unpack(packed).context
        return found

    def columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What training reads beside stored captions: their embeddings."""
        return {EMBEDDED: self.net.encoded(texts_of_column(columns["caption"])).context.half()}

    def prompts_of(self, captions: Sequence[str]) -> tuple[str, ...]:
        return tuple(captions)


class Projection(nn.Module):
    """Embeddings (B, L, W) of a frozen encoder -> (B, L, context_dim): the part of it that is trained. With
    `hides_padding` rows of zeros, which T5's padding is, stay such."""

    def __init__(self, width: int, context_dim: int, hides_padding: bool = False):
        super().__init__()
        self.hides_padding = hides_padding
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, context_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        context = self.project(self.norm(tokens))
        return context * tokens.any(dim=2, keepdim=True) if self.hides_padding else context


class TextConditioner(nn.Module):
    """Makes a context for the backbone of a text's bytes or embeddings; `text` is the net that does."""

    rows = 0  # of a class embedding

    def __init__(self, text: nn.Module):
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"context": self.text(tokens)}


class JoinedTexts(TextConditioner):
    """Two encoders beside each other, by channel (Podell et al. 2024, section 2.1): `text`, trained along, and one that
    is not, whose tokens of the same places come ready as `known` (B, L, W)."""

    def forward(self, tokens: Tensor, known: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"context": torch.cat([self.text(tokens).to(known.dtype), known], dim=2)}
