"""A denoiser of a config and a data set: its backbone, what tells it class, speaker or text, and what data it wants."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from components.conditioning.classes import ClassConditioner
from components.conditioning.text import Bytes, Embeddings, Projection, TextConditioner
from components.config import parse
from components.data.info import DataInfo, RunInfo
from components.diffusion.config import Config, DenoiserConfig
from components.diffusion.denoiser import Denoiser
from components.errors import ConfigError, DataError
from components.nets.byte_transformer import TextEncoder
from components.nets.text_encoders import EncoderLayout

_ALIKE = ("shape", "classes", "speakers", "statistics", "autoencoder", "text")  # of a guide's data and the guided net's
# by model.conditioning, what steers it
STEERING = {"none": (), "class": ("label", "negative_label"), "text": ("prompt", "negative_prompt")}
SPEAKERS = {"class": ("speaker",)}  # likewise, of data with speakers


def build_denoiser(
    config: DenoiserConfig, data: DataInfo, further: nn.Module | None = None, given_channels: int = 0
) -> Denoiser:
    """A net with initial weights. `further`: see Denoiser; `given_channels`: that it puts beside those of the rows."""
    conditioner = conditioner_of(config, data, config.backbone.context_dim)
    given = {"given_channels": given_channels} if given_channels else {}
    backbone = config.backbone.build(data.shape, conditioner.rows, **given)
    return Denoiser(conditioner, backbone, config.tells_uncertainty, config.numbers, further)


def build_guide(config: Config, data: DataInfo, run: RunInfo) -> Denoiser:
    """The net of another run, to be compared with this one's answer by answer. Raises ConfigError unless both answer
    the same question about the same data."""
    if config.guide is not None:
        raise ConfigError("latent_diffusion: guide: expected model.guide or an input of this role, found both")
    other = parse(Config, run.config, "guide")
    refuse_unalike(
        "latent_diffusion: guide", (config, data), (other, run.data), ("objective", "schedule", "conditioning")
    )
    return build_denoiser(other, data)


def refuse_unless_described(config: DenoiserConfig, data: DataInfo) -> None:
    """Raises DataError of a data set that lacks what the model is to be steered by."""
    if config.conditioning == "class" and not data.classes:
        raise DataError(
            "latent_diffusion: expected labelled images, found a data set without classes; or conditioning none or text"
        )
    if config.conditioning == "text" and not data.caption_length:
        raise DataError("latent_diffusion: expected images with captions for conditioning text, found none")
    if config.conditioning == "text" and config.text.encoder == "pretrained" and data.text is None:
        raise DataError(
            "latent_diffusion: text.encoder: pretrained needs latents beside embeddings of the captions; expected "
            "encode.text in params.yaml, and data: data/latents"
        )
    if config.flips and data.autoencoder is not None and not data.flips:
        raise DataError("latent_diffusion: flips needs latents of mirrored images too; expected encode.flips: true")


def refuse_unalike(
    where: str, own: tuple[DenoiserConfig, DataInfo], other: tuple[DenoiserConfig, DataInfo], keys: Sequence[str]
) -> None:
    """Raises ConfigError unless two models agree in these keys of their configs and in what they know of their data."""
    for names, ours, theirs in zip((keys, _ALIKE), own, other, strict=True):
        for name in names:
            if getattr(ours, name) != getattr(theirs, name):
                raise ConfigError(f"{where}: expected a run with the same {name}, found another")


def conditioner_of(config: DenoiserConfig, data: DataInfo, context_dim: int) -> ClassConditioner | TextConditioner:
    """What turns classes or texts into a backbone's inputs, with initial weights; a text's tokens are `context_dim`
    wide."""
    text, hides = config.text, config.backbone.hides_padding
    if config.conditioning != "text":
        num_classes = len(data.classes) if config.conditioning == "class" else 0
        num_speakers = len(data.speakers) if config.conditioning in SPEAKERS else 0
        return ClassConditioner(num_classes, config.backbone.class_dim, num_speakers)
    if text.encoder == "pretrained":
        return TextConditioner(Projection(_layout(data).width, context_dim, hides))
    return TextConditioner(TextEncoder(text.length, text.width, text.layers, text.heads, context_dim, hides))


def text_inputs_of(config: DenoiserConfig, data: DataInfo) -> Bytes | Embeddings:
    """What makes a conditioner's inputs of texts."""
    is_pretrained = config.conditioning == "text" and config.text.encoder == "pretrained"
    return Embeddings(_layout(data)) if is_pretrained else Bytes(config.text.length)


def _layout(data: DataInfo) -> EncoderLayout:
    """Of the encoder that the captions went through. Raises ConfigError if it is described by something else."""
    return parse(EncoderLayout, data.text, "data.text")
