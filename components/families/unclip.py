"""DALL-E 2 (Ramesh et al. 2022), from scratch: a prior draws the CLIP embedding of an image that fits a text, a decoder
draws the image under embedding and text.

The CLIP is an input, trained on the same captions and kept. Both parts train at once, the decoder on the embeddings of
real images. What an image shows can be drawn anew (`image`), and led from one text to another (`instead_of`).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.composite import embedding_prior
from components.composite.base import Composite, chosen, named, prefixed
from components.composite.embedding_prior import Prior
from components.conditioning.dropout import unheard_guidance
from components.conditioning.embedding import EMBEDDING, ImageEmbedding, scaled
from components.conditioning.text import cut, texts_of_column
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo, DataOutline, RunInfo
from components.data.randomness import Draws
from components.diffusion import config as diffusion
from components.diffusion.building import build_denoiser
from components.diffusion.denoiser import Denoiser
from components.diffusion.guidance import Condition, Guidance
from components.families import clip as clip_family
from components.families.base import Early, Judge, Losses, Role, Tiny
from components.families.latent_diffusion import Model as Diffusion
from components.metrics.embeddings import NAMES, prior_figures
from components.metrics.figures import Figures
from components.metrics.held_out import DENOISING
from components.sampling.blends import slerp
from components.sampling.requests import BLEND, Conditions, Request
from components.sampling.trajectories import Call, Trajectory, drive
from components.training.optimizers import OptimizerConfig

CLIP, PRIOR, DECODER = clip_family.ROLE, "prior", "decoder"


class DecoderConfig(diffusion.Config):
    """Diffusion under an image's embedding and, by `conditioning`, text. Rows are trained without either for a share,
    each by its own draw."""

    conditioning: Literal["none", "text"] = "text"
    label_dropout: float = Field(0.5, ge=0, le=1)  # of the text: the embedding says most of it
    embedding_dropout: float = Field(0.1, ge=0, le=1)
    embedding_tokens: int = Field(4, ge=1)  # that the net attends to
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup=50)


class Config(Strict):
    prior: embedding_prior.Config = embedding_prior.Config()  # from a text to the embedding of an image
    decoder: DecoderConfig = DecoderConfig()  # from there to the image


class Settings(Strict):
    """`text_difference`: how far an image is led from one text to another, as a share of a right angle."""

    prior: embedding_prior.Settings = embedding_prior.Settings()  # how the embedding is drawn
    decoder: diffusion.Settings = diffusion.Settings()  # and how the image
    text_difference: float = Field(0.35, ge=0, le=1)  # 0.25 to 0.5 as published


class Decoder(Diffusion):
    """The decoder by itself. `clip`: whose embeddings steer it, frozen."""

    Config = DecoderConfig

    def __init__(self, config: DecoderConfig, data: DataInfo, clip: clip_family.Model):
        self.clip = clip
        super().__init__(config, data)
        self.accepts |= {EMBEDDING}

    def build(self, config: DecoderConfig, data: DataInfo) -> Denoiser:
        # a transformer of no text attends to nothing
        tokens = config.embedding_tokens if self.texts or config.backbone.class_dim else 0
        net = build_denoiser(config, data)
        net.further = ImageEmbedding(
            self.clip.config.dim, net.backbone.embedding_dim, tokens, config.backbone.context_dim
        )
        return net

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        return super().loss(net, replace(batch, draws=batch.draws.fold(DECODER)))

    def _training_further(self, batch: Batch, flips: bool) -> Condition:
        share = self.config.embedding_dropout if self.nets[self.phases[0].net].training else 0.0  # none is measured so
        dropped = batch.draws.uniform("embedding_dropout") < share
        return {EMBEDDING: scaled(self.embeddings(batch, flips)).masked_fill(dropped[:, None], 0)}

    @torch.no_grad()
    def embeddings(self, batch: Batch, flips: bool = False) -> Tensor:
        """What the CLIP sees in a batch's images, or in what its latents decode to: (B, dim) of unit length."""
        rows = self.space.clean(batch, flips)
        if self.autoencoder is not None:
            rows = self.autoencoder.bounded(self.nets["autoencoder"].decode(rows))
        return self.clip.nets["clip"].images(rows)

    def _leads_away(self, request: Request) -> bool:
        return self.config.embedding_dropout > 0 or super()._leads_away(request)

    def _conditions(self, request: Request, guidance: Guidance) -> Generator[Call, Tensor, tuple[Condition, Condition]]:
        towards, away = yield from super()._conditions(request, guidance)
        embedding = scaled(request.conditions.embedding)
        is_kept = guidance.guide is not None or not self.config.embedding_dropout
        worse = embedding if is_kept else torch.zeros_like(embedding)
        if guidance.guide is None and not super()._leads_away(request):  # a guide is told in its own terms
            away = towards
        return {**towards, EMBEDDING: embedding}, {**away, EMBEDDING: worse}


class Model(Composite):
    Config = Config
    Settings = Settings
    held_out = DENOISING
    checkpoint_figures = NAMES
    beside = {"text_difference": "instead_of"}

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        clip = clip_family.kept_clip(data, "unclip")
        own = data.model_copy(update={"inputs": {}})
        decoder = Decoder(config.decoder, own, clip)
        self.adopt(**{CLIP: clip, PRIOR: Prior(config.prior, own, clip, decoder.embeddings), DECODER: decoder})
        self.phases = (*self.phases_of(PRIOR), *self.phases_of(DECODER))
        away = {"negative_prompt"} & self.parts[DECODER].accepts
        self.accepts = frozenset({"prompt", "image", "instead_of", BLEND, *away})

    @classmethod
    def roles(cls, config: Config) -> dict[str, Role]:
        return {CLIP: Role(family=CLIP, needed=True, kept=True)}

    @classmethod
    def early_nets(cls, config: Config) -> dict[str, Early]:
        return {
            named(DECODER, net): early._replace(net=named(DECODER, early.net))
            for net, early in Diffusion.early_nets(config.decoder).items()
        }

    @classmethod
    def why_not(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        reason = Diffusion.why_not(config.decoder, settings.decoder, data)
        return reason and f"{DECODER}.{reason}"

    @classmethod
    def unheard(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        if reason := unheard_guidance("text", config.prior.label_dropout, settings.prior):
            return f"{PRIOR}.{reason}"
        if config.decoder.embedding_dropout > 0:
            return None
        reason = Diffusion.unheard(config.decoder, chosen(settings.decoder), data)
        return reason and f"{DECODER}.{reason}"

    def _trajectory(self, request: Request) -> Trajectory:
        embedding = yield from self._embedding(request)
        asked, decoder = request.conditions, self.parts[DECODER]
        own = {name: value for name, value in asked.parts().items() if name in decoder.accepts}
        blend = request.blend
        if blend is not None and "prompt" not in decoder.accepts:
            blend = replace(blend, prompt=None)
        told = Request(request.seeds, request.settings.decoder, Conditions(**own, embedding=embedding), blend)
        return (yield from prefixed(DECODER, decoder.trajectory(told), shows=True))

    def _embedding(self, request: Request) -> Generator[Call, Any, Tensor]:
        """What the images are to show, (B, dim) of unit length."""
        asked, rows = request.conditions, len(request.seeds)
        groups = {"nothing": ("",) * rows, "prompt": asked.prompt or ("",) * rows}
        if asked.instead_of is not None:
            groups["before"] = asked.instead_of
        if request.blend is not None and request.blend.prompt is not None:
            groups["other"] = request.blend.prompt
        tokens = self.parts[PRIOR].asked([text for group in groups.values() for text in group], request.seeds.device)
        answer = yield Call(named(CLIP, "text"), tokens)
        parts = {name: part.split(rows) for name, part in answer.items()}
        told = {group: {name: part[number] for name, part in parts.items()} for number, group in enumerate(groups)}
        if asked.image is None:
            found = yield from self._drawn(request.seeds, request, told["prompt"], told["nothing"])
        else:
            found = yield Call(named(CLIP, "image"), {"images": asked.image})
            if asked.instead_of is not None:
                way = F.normalize(told["prompt"]["pooled"] - told["before"]["pooled"], dim=1)
                found = slerp(found, way, torch.full_like(found[:, 0], request.settings.text_difference))
        blend = request.blend
        if "other" in told or (blend is not None and blend.seeds is not None and asked.image is None):
            seeds = request.seeds if blend.seeds is None else blend.seeds
            other = told.get("other", told["prompt"])
            found = slerp(found, (yield from self._drawn(seeds, request, other, told["nothing"])), blend.share)
        return F.normalize(found, dim=1)

    def _drawn(self, seeds: Tensor, request: Request, told: Mapping[str, Tensor], nothing: Mapping[str, Tensor]):
        drawn = self.parts[PRIOR].draw(seeds, request.settings.prior, told, nothing)
        return (yield from prefixed(PRIOR, drawn, shows=False))

    def training_columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.parts[DECODER].training_columns(columns)

    def held_out_losses(self, columns: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """Those of the decoder; the prior is measured by `validate`."""
        return self.parts[DECODER].held_out_losses(columns, draws)

    @torch.inference_mode()
    def validate(self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor], judge: Judge | None) -> Figures:
        """How near the embeddings that the prior draws for held-out captions come to those of their images."""
        texts = self.prompts_of(texts_of_column(held_out["caption"]))
        device = held_out["caption"].device
        request = Request(torch.arange(len(texts), device=device), self.Settings(), Conditions(prompt=texts))
        drawn = drive(self._embedding(request), self.calls)
        rows = self.medium.rows(held_out)
        true = torch.cat([self.parts[CLIP].nets[CLIP].images(part) for part in rows.split(256)])
        return prior_figures(drawn, true)

    @property
    def caption_limits(self) -> Mapping[str, int]:
        own = self.parts[DECODER].caption_limits.items()
        told = {key.replace("model.", f"model.{DECODER}.", 1): length for key, length in own}
        return {"its CLIP's model.text.length": self.parts[PRIOR].length, **told}

    def prompts_of(self, captions: Sequence[str]) -> tuple[str, ...]:
        decoder = self.parts[DECODER]
        return cut(decoder.prompts_of(captions) if decoder.texts else captions, self.parts[PRIOR].length)


# -- the tiny configuration ------------------------------------------------------------------------------------------

_IMAGES = DataInfo(shape=(1, 16, 16), classes=("nought", "one", "two"), caption_length=12)
_TINY_CLIP = clip_family.Config(**clip_family.TINY.config).model_dump(mode="json")


TINY = Tiny(
    {
        "prior": {"width": 8, "depth": 1, "heads": 2},
        "decoder": {
            "backbone": {"widths": (8, 8), "heads": 2, "context_dim": 8},
            "text": {"length": 12, "width": 8, "layers": 1, "heads": 2},
            "embedding_tokens": 2,
        },
    },
    data=_IMAGES.model_copy(update={"inputs": {CLIP: RunInfo(family=CLIP, config=_TINY_CLIP, data=_IMAGES)}}),
    settings={"prior": {"num_inference_steps": 2}, "decoder": {"num_inference_steps": 2}},
    prepare=lambda family: clip_family.give_tiny_weights(family.nets[named(CLIP, CLIP)]),
)
