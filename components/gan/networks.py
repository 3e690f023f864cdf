"""Networks that several GAN families share: functions that build a generator and a discriminator of a GAN's config and
data. Layers are initialised in the order in which they stand here."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import nn

from components.errors import SamplerError
from components.families import family_name
from components.nets.gan import dcgan, residual
from components.nets.gan.critic import Condition, Critic
from components.nets.gan.layers import doublings
from components.shapes import refuse_unless_square

if TYPE_CHECKING:
    from components.gan.base import GAN


def convolutional(gan: GAN, batch_norm: bool = True, condition: Condition = "none") -> dict[str, nn.Module]:
    """The networks of DCGAN (Radford et al. 2016). `batch_norm` and `condition` are the discriminator's; the generator
    takes the class if it does."""
    channels, size = doubled_side(gan)
    config, classes = gan.config, 0 if condition == "none" else gan.num_classes
    planes = classes if condition == "concatenate" else 0
    trunk = dcgan.Trunk(channels + planes, size, config.width, batch_norm)
    return {
        "generator": dcgan.Generator(channels, size, config.latent_dim, config.width, classes),
        "discriminator": Critic(trunk, dcgan.Flat, condition=condition, num_classes=classes, **critic_options(gan)),
    }


def projection_residual(gan: GAN, **generator_options: Any) -> dict[str, nn.Module]:
    """The networks of SAGAN (Zhang et al. 2019): residual, with a projection discriminator. `generator_options` as of
    nets.gan.residual.Generator."""
    channels, size = doubled_side(gan)
    trunk = residual.Trunk(channels, size, gan.config.width, attention_side(gan))
    head = functools.partial(residual.Pooled, dim=trunk.channels)
    options = {"condition": "project", "num_classes": gan.num_classes, **critic_options(gan)}
    return {
        "generator": residual_generator(gan, **generator_options),
        "discriminator": Critic(trunk, head, **options),
    }


def residual_generator(gan: GAN, **options: Any) -> residual.Generator:
    """Takes the class where the family is conditional."""
    channels, size = doubled_side(gan)
    classes = gan.num_classes if gan.conditional else 0
    sizes = (channels, size, gan.config.latent_dim, gan.config.width, classes)
    return residual.Generator(*sizes, attention_at=attention_side(gan), **options)


def attention_side(gan: GAN) -> int | None:
    """The side of the maps that attend. Raises SamplerError of one that was asked for and that no net has."""
    asked, (_, size) = gan.config.attention_at, doubled_side(gan)
    sides = [4 * 2**k for k in range(doublings(size) + 1)]
    if "attention_at" in gan.config.model_fields_set and asked is not None and asked not in sides:
        name, known = family_name(type(gan)), ", ".join(map(str, sides))
        raise SamplerError(f"{name}: attention_at: no map has a side of {asked}; expected one of {known}, or none")
    return asked


def critic_options(gan: GAN) -> dict[str, Any]:
    """The arguments of a `Critic` that remedies decide."""
    config = gan.config
    return {"minibatch_std": config.minibatch_std, "minibatch_discrimination": config.minibatch_discrimination}


def doubled_side(gan: GAN) -> tuple[int, int]:
    """Channels and side of a GAN's images. Raises SamplerError unless they are square with a side of 8, 16, 32, ..."""
    name, shape = family_name(type(gan)), gan.data.shape
    refuse_unless_square(shape, name)
    try:
        doublings(shape[1])
    except ValueError as error:
        raise SamplerError(f"{name}: {error}") from None
    return shape[0], shape[1]
