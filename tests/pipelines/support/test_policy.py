"""Who reigns, as a function of figures: guards, intervals, and what is said about it."""

import pytest

from components.errors import InputError
from pipelines.support.params import PromoteConfig
from pipelines.support.policy import decide, objections


def candidate(sampler="ldm", number=0, frechet=1.0, **figures) -> dict:
    return {
        "sampler": sampler,
        "number": number,
        "content": f"{sampler}{number}",
        "settings": {"num_inference_steps": number + 1},
        "frechet_distance": frechet,
        "frechet_interval": [0.8 * frechet, 1.2 * frechet],
        "ms_per_image": 10.0,
        "ms_single": 30.0,
        "label_agreement": 0.99,
        **figures,
    }


POLICY = PromoteConfig(max_ms_per_image=50, min_label_agreement=0.95)
GAN = candidate("dcgan", frechet=0.1, label_agreement=None)


def test_the_lowest_metric_wins_where_nobody_reigns():
    decision = decide([candidate(number=0, frechet=2), candidate(number=1, frechet=1)], None, POLICY)
    assert decision.winner["number"] == 1 and not decision.stays
    assert "nobody reigned" in decision.why


def test_a_sampler_without_a_figure_cannot_meet_a_bound_on_it():
    assert decide([GAN, candidate(frechet=2)], None, POLICY).winner["sampler"] == "ldm"
    assert decide([GAN, candidate(frechet=2)], None, PromoteConfig()).winner["sampler"] == "dcgan"


@pytest.mark.parametrize(
    ("guard", "figures"),
    [
        ({"max_ms_per_image": 9}, {}),
        ({"max_ms_per_image": 20, "batch_size": 1}, {}),
        ({"min_label_agreement": 1.0}, {}),
        ({"min_recall": 0.5}, {"recall": 0.4}),
        ({"min_classes_hit": 10}, {"classes_hit": 9.0}),
        ({"min_label_entropy": 0.9}, {"label_entropy": 0.2}),
        ({"max_memorised": 0.1}, {"memorised": 0.2}),
        ({}, {"withdrawn": "ann, yesterday: ugly"}),
        ({}, {"unmeasurable": "cannot be measured any more"}),
        ({}, {"collapsed": "collapsed: draws 20% of the classes"}),
    ],
)
def test_each_guard_refuses_with_its_name_and_passes_without(guard, figures):
    (reason,) = objections(candidate(**figures), PromoteConfig(**guard))
    assert not guard or next(iter(guard)) in reason
    assert objections(candidate(recall=0.6, classes_hit=10.0, label_entropy=1.0, memorised=0.0), PromoteConfig()) == []


def test_a_collapsed_sampler_may_be_let_through():
    assert objections(candidate(collapsed="collapsed: draws 20%"), PromoteConfig(refuse_collapsed=False)) == []


@pytest.mark.parametrize(
    "bound", [{"min_recall": 0.4}, {"max_memorised": 0.4}, {"max_ms_per_image": 10.0}, {"min_label_agreement": 0.99}]
)
def test_a_figure_at_its_bound_passes(bound):
    assert objections(candidate(recall=0.4, memorised=0.4), PromoteConfig(**bound)) == []


def test_nobody_passes_tells_why_for_each():
    with pytest.raises(InputError, match=r"ldm #0: 60\.0 ms .*; dcgan #0: has no label agreement"):
        decide([candidate(ms_per_image=60), GAN], None, POLICY)


@pytest.mark.parametrize(("frechet", "stays"), [(0.79, False), (0.81, True), (0.99, True), (1.5, True)])
def test_a_challenger_must_be_below_the_champions_interval(frechet, stays):
    reigning = {**candidate("old", frechet=1.0), "version": "3"}  # interval 0.8 to 1.2
    decision = decide([candidate(frechet=frechet)], reigning, POLICY)
    assert decision.stays == stays
    assert decision.winner["sampler"] == ("old" if stays else "ldm")


def test_a_minimum_improvement_lies_beyond_the_interval():
    policy = PromoteConfig(min_improvement=0.1)  # below 0.8 - 0.1
    reigning = {**candidate("old", frechet=1.0), "version": "3"}
    assert decide([candidate(frechet=0.75)], reigning, policy).stays
    assert not decide([candidate(frechet=0.69)], reigning, policy).stays


def test_another_metric_has_its_own_interval():
    kid = {"kid": -0.5, "kid_interval": [-0.6, -0.4]}
    reigning = {**candidate("old", frechet=1.0, **kid), "version": "3"}
    policy = PromoteConfig(metric="kid")
    assert decide([candidate(frechet=0.1, kid=-0.55, kid_interval=[-1, 0])], reigning, policy).stays
    assert not decide([candidate(frechet=9.0, kid=-0.65, kid_interval=[-1, 0])], reigning, policy).stays


def test_a_champion_that_fails_the_guards_falls_to_whoever_passes():
    reigning = {**candidate("old", frechet=0.1, label_agreement=0.5), "version": "3"}
    decision = decide([candidate(frechet=5)], reigning, POLICY)
    assert decision.winner["sampler"] == "ldm"
    assert "v3" not in decision.why and "old #0, which reigned, is out: label agreement 0.500" in decision.why


def test_the_champion_stays_where_no_challenger_passes():
    reigning = {**candidate("old"), "version": "3"}
    assert decide([candidate(ms_per_image=60)], reigning, POLICY).stays


def test_the_champion_is_a_candidate_itself():
    decision = decide([candidate(number=0), candidate(number=1, frechet=2)], {**candidate(), "version": "1"}, POLICY)
    assert decision.stays and decision.winner["version"] == "1"
