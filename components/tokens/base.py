"""Samplers of an image's tokens: what they learn from, what steers them, and how tokens become images and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.conditioning.dropout import leads_away, unheard_guidance
from components.conditioning.text import cut, tokens_of, tokens_of_column
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo, DataOutline
from components.data.randomness import Draws
from components.errors import DataError
from components.families import family_class, family_name
from components.families.base import Sampler
from components.likelihood.contract import Likelihood
from components.metrics.held_out import HeldOutLoss
from components.nets.byte_transformer import VOCABULARY as NUM_BYTES
from components.nets.token_transformer import TokenTransformer
from components.sampling.requests import Conditions, Request, Source
from components.sampling.trajectories import Call, Trajectory
from components.training.optimizers import OptimizerConfig

BITS = HeldOutLoss("bits_per_token", "bits per token", "likelihood", "bits/token")
VIEWS = "views"  # the column of tokens of other views of a row


class TokenConfig(Strict):
    """Of a transformer over tokens and what it is told before them."""

    conditioning: Literal["none", "class", "text"] = "class"
    width: int = Field(128, ge=4)
    depth: int = Field(6, ge=1)  # blocks
    heads: int = Field(4, ge=1)
    text_length: int = Field(64, ge=1)  # bytes; longer captions are cut, longer prompts refused
    label_dropout: float = Field(0.1, ge=0, le=1)  # share of rows trained without their class or text, for guidance
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.05, schedule="cosine", warmup=50
    )

    @model_validator(mode="after")
    def _fits(self) -> TokenConfig:
        if self.width % (4 * self.heads):
            raise ValueError(f"width must be divisible by four times the heads ({4 * self.heads})")
        return self


class TokenSampler(Sampler):
    """Subclasses have a `Net`, or make one by `_net`, and `phases` of a loss."""

    Net: ClassVar[type[TokenTransformer]]
    kept = ("transformer", "autoencoder")
    pretrained = ("autoencoder",)
    held_out = BITS

    def __init__(self, config: TokenConfig, data: DataInfo):
        self.config, self.data, name = config, data, family_name(type(self))
        _refuse_unless_described(config, data, name)
        kind = family_class(data.autoencoder.family)
        self.autoencoder = kind(kind.Config(**data.autoencoder.config), data.autoencoder.data)
        codes = self.autoencoder.nets["autoencoder"]
        self.vocabulary = codes.codebook.size
        self.sides, self.count = data.shape[1:], math.prod(data.shape)
        texts = config.conditioning == "text"
        classes = len(data.classes) if config.conditioning == "class" else 0
        self.null = classes
        conditions, prefix = (NUM_BYTES, config.text_length) if texts else (classes + 1, 1)
        net = self._net(codes.codebook, conditions, prefix)
        self.nets = nn.ModuleDict({"transformer": net, "autoencoder": codes})
        self.calls = {"tokeniser": codes.tokens, "decoder": codes.decode_tokens}

    def _net(self, codebook: nn.Module, conditions: int, prefix: int) -> nn.Module:
        """The transformer, told `prefix` ids of `conditions` ones before the tokens."""
        layout = self.config.width, self.config.depth, self.config.heads
        return self.Net(self.vocabulary, conditions, prefix, self.sides, *layout)

    @classmethod
    def unheard(cls, config: TokenConfig, settings: Strict, data: DataOutline) -> str | None:
        return unheard_guidance(config.conditioning, config.label_dropout, settings)

    @property
    def accepts(self) -> frozenset[str]:
        steering = {"none": (), "class": ("label", "negative_label"), "text": ("prompt", "negative_prompt")}
        return frozenset({"source", *steering[self.config.conditioning]})

    @property
    def likelihood(self) -> Likelihood:
        """Of the tokens of rows, told their class; what the tokeniser has lost is no part of it."""
        kind = "exact" if self.is_exact else "bound"
        return Likelihood(kind, "none", self._log_probability, tokens=self.count)

    is_exact: ClassVar[bool]

    def token_losses(self, tokens: Tensor, prefix: Tensor, draws: Draws) -> Tensor:
        """(B,) negative log-likelihoods of tokens (B, N) in nats a token, or bounds of them."""
        raise NotImplementedError

    def training_tokens(self, batch: Batch) -> Tensor:
        """(B, N) int64, of one of the views of each row that the data set holds."""
        tokens = batch.columns["tokens"].long()
        if VIEWS in batch.columns:
            every = torch.cat([tokens, batch.columns[VIEWS].long()], dim=1)
            chosen = batch.draws.integers("view", every.shape[1])
            tokens = every[torch.arange(len(every), device=every.device), chosen]
        return tokens.flatten(1)

    def training_prefix(self, batch: Batch, dropout: float) -> Tensor:
        """(B, prefix) ids of what each row is told before its tokens; of nothing for a share."""
        dropped = batch.draws.uniform("label_dropout") < dropout
        if self.texts:
            texts = tokens_of_column(batch.columns["caption"], self.config.text_length)
            return self.vocabulary + texts.masked_fill(dropped[:, None], 0)
        if not self.conditional:
            return torch.full_like(dropped, self.vocabulary, dtype=torch.int64)[:, None]
        return self.vocabulary + batch.columns["label"].masked_fill(dropped, self.null)[:, None]

    def prefixes(self, request: Request) -> tuple[Tensor, Tensor]:
        """Ids (B, prefix) of what a request asks for, and of what guidance leads away from; the same where that was
        never learned."""
        asked: Conditions = request.conditions
        if self.texts:
            nothing = ("",) * len(request.seeds)
            groups = (asked.prompt or nothing, asked.negative_prompt or nothing)
            device = request.seeds.device
            towards, away = (tokens_of(texts, self.config.text_length).to(device) for texts in groups)
        else:
            null = torch.full_like(request.seeds, self.null)
            towards = null if asked.label is None else asked.label
            away = null if asked.negative_label is None else asked.negative_label
            towards, away = towards[:, None], away[:, None]
        if not leads_away(self.config.label_dropout, asked):
            away = towards
        return self.vocabulary + towards, self.vocabulary + away

    def known(self, source: Source, draws: Draws) -> Trajectory:
        """Tokens (B, N) of images to edit, `vocabulary` where they are to be drawn anew: `strength` of those under the
        mask, which ones the key decides."""
        tokens = (yield Call("tokeniser", {"images": source.images})).flatten(1)
        redrawn = torch.ones_like(tokens, dtype=torch.bool)
        if source.mask is not None:
            # a token is drawn anew with any pixel of its cell
            redrawn = self.nets["autoencoder"].codebook.cells(source.mask, self.sides)
        order = draws.uniform("redrawn", (self.count,)).masked_fill(~redrawn, torch.inf).argsort(dim=1, stable=True)
        wanted = torch.ceil(source.strength * redrawn.sum(1, keepdim=True)).long()
        return tokens.masked_fill(order.argsort(1) < wanted, self.vocabulary)

    def finish(self, tokens: Tensor, source: Source | None) -> Trajectory:
        """The images of tokens (B, N), with a source's own pixels where its mask is 0."""
        decoded = yield Call("decoder", {"tokens": tokens.view(-1, *self.sides)})
        images = self.autoencoder.bounded(decoded)
        if source is None or source.mask is None:
            return images
        return torch.lerp(source.images, images, source.mask)

    def training_columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        images = self.autoencoder.medium.rows(columns)
        return {**columns, "tokens": self.nets["autoencoder"].tokens(images)[:, None]}

    def held_out_losses(self, columns: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """(B, 1) bits a token, told class or text."""
        batch = Batch({name: values for name, values in columns.items() if name != VIEWS}, draws)
        losses = self.token_losses(self.training_tokens(batch), self.training_prefix(batch, dropout=0), draws)
        return losses[:, None] / math.log(2)

    def _log_probability(self, rows: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        columns = {"tokens": self.nets["autoencoder"].tokens(rows)[:, None]}
        columns |= {} if label is None else {"label": label}
        if self.texts:
            columns["caption"] = torch.zeros(len(rows), 1, dtype=torch.uint8, device=rows.device)
        batch = Batch(columns, draws)
        return -self.count * self.token_losses(self.training_tokens(batch), self.training_prefix(batch, 0), draws)

    @property
    def caption_limits(self) -> Mapping[str, int]:
        return {"model.text_length": self.config.text_length} if self.texts else {}

    def prompts_of(self, captions: Sequence[str]) -> tuple[str, ...]:
        return cut(captions, self.config.text_length)


def _refuse_unless_described(config: TokenConfig, data: DataInfo, name: str) -> None:
    """Raises DataError of a data set that holds no tokens, or lacks what the model is to be steered by."""
    if data.medium != "tokens" or data.autoencoder is None:
        raise DataError(
            f"{name}: expected a data set of tokens, as encode.NAME.tokens in params.yaml makes, found {data.medium}"
        )
    if config.conditioning == "class" and not data.classes:
        raise DataError(f"{name}: expected labelled images, found a data set without classes; or conditioning none")
    if config.conditioning == "text" and not data.caption_length:
        raise DataError(f"{name}: expected images with captions for conditioning text, found none")
