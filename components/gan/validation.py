"""Checkpoint validation of GANs: modes that the generator drops, images that the discriminator learns by heart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from components.families.base import Judge
from components.metrics.figures import Definition, Figures, named
from components.metrics.modes import CLASSES_HIT, LABEL_ENTROPY, NDB, mode_coverage, ndb
from components.metrics.neighbours import RECALL, Inside, Manifold
from components.sampling.requests import Conditions, Request

if TYPE_CHECKING:
    from components.gan.base import GAN

ACCURACY_TRAIN, ACCURACY_HELD_OUT, ACCURACY_FAKE = (
    Definition(
        name=f"accuracy_{name}",
        label=f"discriminator on {which} images",
        explanation=f"the share of {which} images that the discriminator judges rightly",
        kind="share",
        better=None,
    )
    for name, which in (("train", "training"), ("held_out", "held-out"), ("fake", "generated"))
)
FIGURES = (ACCURACY_TRAIN, ACCURACY_HELD_OUT, ACCURACY_FAKE, CLASSES_HIT, LABEL_ENTROPY, RECALL, NDB)
_BINS = 50  # of NDB; at most a tenth of the real images, so that their shares mean something
_NEIGHBOURS = 5
_ROWS = 256  # at once, and the number of generated images


@torch.inference_mode()
def validate(
    family: GAN, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor] | None, judge: Judge | None
) -> Figures:
    """Figures of the family's weights; columns as in a data set. `judge` is a trained classifier of the classes.

    classes_hit and label_entropy of generated images, recall of held-out (else training) images, ndb, by the judge;
    accuracy_train, accuracy_held_out and accuracy_fake: the share of each that the discriminator judges rightly.
    """
    family.nets.eval()
    device = next(family.nets.parameters()).device
    labels = family.cycled_labels(_ROWS)
    fakes = family.sample(
        Request(torch.arange(_ROWS, device=device) + (1 << 40), family.Settings(), Conditions(label=labels))
    )
    figures = accuracies(family, fakes, labels, train, held_out)
    if judge is None:
        return figures
    classifier = judge.nets["classifier"].eval()
    reals = family.medium.rows(held_out or train).to(device)
    real_features, fake_features = features(classifier, reals), features(classifier, fakes)
    if judge.tells_classes:
        figures |= mode_coverage(classifier.logits(fake_features).argmax(1), len(judge.data.classes))
    real_features, fake_features = real_features.double().cpu(), fake_features.double().cpu()
    inside = Inside.of(fake_features, Manifold.of(real_features, _NEIGHBOURS), _NEIGHBOURS)
    bins = max(2, min(_BINS, len(real_features) // 10))
    return figures | named(
        RECALL.figure(inside.recalled().double().mean()),
        NDB.figure(ndb(real_features, fake_features, bins, torch.Generator().manual_seed(0))),
    )


def features(classifier, images: Tensor) -> Tensor:
    """The judge's features (N, D) of images (N, C, H, W)."""
    return torch.cat([classifier.features(part) for part in images.split(_ROWS)])


def accuracies(
    family: GAN,
    fakes: Tensor,
    labels: Tensor | None,
    train: Mapping[str, Tensor],
    held_out: Mapping[str, Tensor] | None,
) -> Figures:
    """Shares of training, held-out and generated images that the discriminator judges rightly. Where a loss gives
    scores no zero, that of training images and fakes lies halfway between their means."""
    real = scores(family, family.medium.rows(train)[:_ROWS], train.get("label"))
    fake = scores(family, fakes, labels)
    # `realness` may depend on means, so the rest is placed by the same ones
    zero = (real - family.loss.realness(real, fake)).mean()
    found = {ACCURACY_TRAIN: real > zero, ACCURACY_FAKE: fake <= zero}
    if held_out is not None:
        found[ACCURACY_HELD_OUT] = scores(family, family.medium.rows(held_out)[:_ROWS], held_out.get("label")) > zero
    return named(*(defined.figure(right.double().mean()) for defined, right in found.items()))


def scores(family: GAN, images: Tensor, labels: Tensor | None) -> Tensor:
    """Scores (N,) of images (N, C, H, W). Norms go by these images, as in a training step, and what a forward moves is
    thrown away."""
    images = images.to(next(family.nets.parameters()).device)
    inputs = family.critic_inputs(images, None if labels is None else labels[: len(images)].to(images.device))
    critic = family.nets["discriminator"]
    buffers = {name: value.clone() for name, value in critic.named_buffers()}
    (found,) = functional_call(critic.train(), buffers, (inputs,)).scores
    critic.eval()
    return family.image_scores(found)
