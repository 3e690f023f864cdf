"""Figures known before anything is trained: every family says which it adds."""

from __future__ import annotations

import pytest

from components.evaluation.foreseen import foreseen
from components.evaluation.protocol import EvaluateConfig
from components.families import family_class, family_names
from components.families.base import Family, Judge, Sampler
from components.metrics.figures import named

KINDS = {name: family_class(name) for name in family_names()}
SAMPLERS = [kind for kind in KINDS.values() if issubclass(kind, Sampler)]


@pytest.mark.parametrize("judge", [kind for kind in KINDS.values() if issubclass(kind, Judge)])
def test_no_family_leaves_open_what_it_adds(judge):
    assert not foreseen(EvaluateConfig(), judge, SAMPLERS, False).open


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_family_that_validates_says_by_which_figures(name):
    kind = KINDS[name]
    assert kind.validate is Family.validate or kind.judged_figures or kind.checkpoint_figures


def test_what_is_not_configured_is_not_foreseen_and_is_told():
    plain = foreseen(EvaluateConfig(), None, [KINDS["dcgan"]], False)
    assert {"label_agreement", "lpips_diversity", "clip_score", "bits_per_dim"}.isdisjoint(plain.known)
    assert plain.wanting["label_agreement"] == "evaluate/judge in inputs"
    assert plain.wanting["lpips_diversity"] == "evaluate.lpips"
    whole = EvaluateConfig(lpips="alexnet.pth", latent_likelihood=True)
    told = foreseen(whole, KINDS["judge"], [KINDS["latent_diffusion"]], True)
    assert {"label_agreement", "lpips_diversity", "clip_score", "bits_per_latent"} <= told.known.keys()
    assert not told.wanting
    inception = EvaluateConfig(extractor={"name": "inception", "weights": "inception.pth"})
    assert "inception_score" in foreseen(inception, None, [], False).known


def test_a_family_that_does_not_say_leaves_it_open():
    class Toy(KINDS["dcgan"]):
        def figures(self, rows, real):
            return named()

    assert foreseen(EvaluateConfig(), None, [Toy], False).open
