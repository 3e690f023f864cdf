"""Checkpoint validation of GANs: collapse, and a discriminator that knows its training images by heart."""

from __future__ import annotations

import pytest
import torch

from components.families import family_class
from components.metrics.figures import values
from components.metrics.modes import collapsed, overfitted
from tests.components.helpers import IMAGES, Rows, build


def validated(family, judge=True) -> dict[str, float]:
    judging = build("judge") if judge else None
    return values(family.validate(Rows(IMAGES, 60).columns, Rows(IMAGES, 40).columns, judging))


@pytest.mark.parametrize("name", ["dcgan", "wgan_gp", "cgan", "biggan", "bigbigan", "stylegan2", "r3gan"])
def test_every_variant_is_validated(name):
    figures = validated(build(name))
    assert {"classes_hit", "label_entropy", "recall", "ndb"} <= figures.keys()
    assert {"accuracy_train", "accuracy_held_out", "accuracy_fake"} <= figures.keys()
    assert all(isinstance(value, float) for value in figures.values())
    assert figures.keys() <= {one.name for one in family_class(name).judged_figures}
    assert "recall" not in validated(build(name), judge=False)


def test_a_generator_of_one_image_is_called_collapsed():
    family = build("dcgan")
    with torch.no_grad():
        for parameter in family.nets["generator"].parameters():
            parameter.zero_()
    figures = validated(family)
    assert figures["classes_hit"] == 1
    assert figures["recall"] == 0
    assert figures["ndb"] > 0.5
    assert collapsed(figures, 3).startswith("collapsed: draws 1 of 3")


def test_bigbigan_is_validated_by_what_its_discriminator_says_of_images_alone():
    family = build("bigbigan")
    with torch.no_grad():
        for column, score in enumerate(family.nets["discriminator"].scores):
            # codes and pairs pass for real whatever is shown
            score.bias.fill_(0.0 if column == 0 else 100.0)
    images = torch.rand(6, 1, 16, 16) * 2 - 1
    (scores,) = family.nets["discriminator"](family.critic_inputs(images, None)).scores
    assert torch.equal(family.image_scores(scores), scores[:, 0])
    assert float(family.image_scores(scores).abs().max()) < 50 < float(scores[:, 1:].min())


def test_a_discriminator_that_knows_its_images_by_heart_is_noticed():
    family = build("dcgan")
    train, held_out = Rows(IMAGES, 60).columns, {"image": 255 - Rows(IMAGES, 60).columns["image"]}
    known = {tuple(image.flatten()[:4].tolist()) for image in train["image"]}

    class ByHeart(torch.nn.Module):
        def forward(self, sample):
            from components.data.media.image import MEDIUM
            from components.nets.gan.critic import CriticOutput

            rows = [tuple(image.flatten()[:4].tolist()) in known for image in MEDIUM.to_stored(sample["images"])]
            return CriticOutput((torch.tensor(rows).float() * 2 - 1,), ())

    family.nets["discriminator"] = ByHeart()
    figures = values(family.validate(train, held_out, None))
    assert (figures["accuracy_train"], figures["accuracy_held_out"], figures["accuracy_fake"]) == (1, 0, 1)
    assert overfitted(figures).startswith("over-fitted")
