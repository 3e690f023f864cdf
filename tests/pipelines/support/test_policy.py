"""Who reigns, as a function of figures: guards, intervals, and what is said about it."""

from dataclasses import replace

import pytest

from components.errors import ConfigError, InputError
from components.metrics.figures import Definition, Figure, definitions, named
from components.metrics.intervals import Interval
from pipelines.support import policy as policies
from pipelines.support.candidates import Candidate
from pipelines.support.params import PromoteConfig, parse
from pipelines.support.policy import decide, refuse_unknown_figures

HIGHER = {"label_agreement", "recall", "classes_hit", "label_entropy", "toy_score"}
NAMED = {"withdrawn", "unmeasurable", "collapsed"}
INTERVALS = {"frechet_distance": lambda value: (0.8 * value, 1.2 * value)}


def figure(name: str, value: float | tuple[float, Interval]) -> Figure:
    """`value` may bring its interval."""
    better = None if name == "colour" else "higher" if name in HIGHER else "lower"
    definition = Definition(
        name=name, label=name, explanation="", kind="score", better=better, labelled=name == "label_agreement"
    )
    alone, interval = value if isinstance(value, tuple) else (value, None)
    return definition.figure(alone, interval or INTERVALS.get(name, lambda _: None)(alone))


def candidate(sampler="ldm", number=0, frechet=1.0, **more) -> Candidate:
    values = {"frechet_distance": frechet, "ms_per_image": 10.0, "ms_single": 30.0, "label_agreement": 0.99}
    values |= {name: value for name, value in more.items() if name not in NAMED}
    return Candidate(
        sampler=sampler,
        number=number,
        content=f"{sampler}{number}",
        settings={"num_inference_steps": number + 1},
        figures=named(*(figure(name, value) for name, value in values.items() if value is not None)),
        **{name: more[name] for name in NAMED & more.keys()},
    )


def reigning(sampler="old", **more) -> Candidate:
    return replace(candidate(sampler, **more), version="3")


def policy(metric="frechet_distance", **guards) -> PromoteConfig:
    return PromoteConfig(metric=metric, guards=guards)


def objections(one: Candidate, config: PromoteConfig) -> list[str]:
    return policies.objections(one, config, definitions([one.figures, candidate().figures]))


POLICY = policy(ms_per_image={"at_most": 50}, label_agreement={"at_least": 0.95})
GAN = candidate("dcgan", frechet=0.1, label_agreement=None, ms_per_image=None)


def test_the_lowest_metric_wins_where_nobody_reigns():
    decision = decide([candidate(number=0, frechet=2), candidate(number=1, frechet=1)], None, POLICY)
    assert decision.winner.number == 1 and not decision.stays
    assert decision.why.startswith("lowest frechet_distance") and "nobody reigned" in decision.why


def test_a_sampler_without_a_figure_cannot_meet_a_bound_on_it():
    without = replace(candidate("dcgan", frechet=0.1), figures=named(figure("frechet_distance", 0.1)))
    assert decide([without, candidate(frechet=2)], None, POLICY).winner.sampler == "ldm"
    assert decide([without, candidate(frechet=2)], None, PromoteConfig()).winner.sampler == "dcgan"


def test_a_sampler_that_nobody_asks_for_classes_is_not_held_to_figures_of_labels():
    config = policy(label_agreement={"at_least": 0.95}, recall={"at_least": 0.5})
    gan = candidate("dcgan", frechet=0.1, label_agreement=None, recall=0.9)
    assert decide([gan, candidate(recall=0.9)], None, config).winner is gan
    poor = candidate("dcgan", frechet=0.1, label_agreement=None, recall=0.4)
    collapsed = candidate("dcgan", frechet=0.1, label_agreement=None, recall=0.9, collapsed="collapsed: draws 2")
    for one in (poor, collapsed):
        assert decide([one, candidate(recall=0.9)], None, config).winner.sampler == "ldm"


def with_pixels(number: int, frechet: float, pixels: float, **more) -> Candidate:
    return candidate(number=number, frechet=frechet, pixels=(pixels, (0.9 * pixels, 1.1 * pixels)), **more)


def test_a_second_opinion_is_told_and_decides_only_where_agreement_is_required():
    candidates = [with_pixels(0, 1.0, 5.0), with_pixels(1, 2.0, 4.0), with_pixels(2, 3.0, 4.6)]
    told = PromoteConfig(second_opinion={"metric": "pixels"})
    decision = decide(candidates, None, told)
    assert decision.winner.number == 0 and decision.why.endswith("pixels prefers ldm #1 (4 against 5)")
    required = PromoteConfig(second_opinion={"metric": "pixels", "required": True})
    decision = decide(candidates, None, required)
    assert decision.winner.number == 1 and "ldm #0 is passed over: pixels prefers ldm #1" in decision.why
    assert decision.why.endswith("; pixels agrees")
    near = [with_pixels(0, 1.0, 4.4), with_pixels(1, 2.0, 4.0)]  # 4 lies within 3.96 to 4.84
    assert decide(near, None, required).winner.number == 0
    champion = reigning(frechet=9.0, pixels=(1.0, (0.9, 1.1)))
    assert decide(near, champion, told).winner.number == 0
    assert decide(near, champion, required).stays


def test_a_tie_break_chooses_among_what_the_metric_does_not_tell_apart():
    config = PromoteConfig(tie_break="ms_per_image")
    fast, slow, poor = (
        candidate("gan", 0, 1.15, ms_per_image=0.1),
        candidate("ldm", 1, 1.0, ms_per_image=20.0),
        candidate("gan", 2, 1.3, ms_per_image=0.01),
    )
    decision = decide([fast, slow, poor], None, config)
    assert decision.winner is fast
    assert "not told apart by frechet_distance: gan #0 (1.15, 0.1), ldm #1 (1, 20)" in decision.why
    assert decide([fast, slow, poor], None, PromoteConfig()).winner is slow
    champion = reigning(frechet=1.0, ms_per_image=20.0)
    decision = decide([fast], champion, config)
    assert decision.winner is fast and "0.1 is clearly better than 20" in decision.why
    assert decide([poor], champion, config).stays, "the metric tells them apart"
    assert decide([candidate("gan", 0, 1.1, ms_per_image=11.0)], champion, config).stays, "times vary"
    assert decide([fast], champion, PromoteConfig()).stays


def test_of_equal_tie_breaks_the_metric_decides_and_none_is_clearly_better():
    config = PromoteConfig(tie_break="memorised")
    worse, better = candidate("ldm", 0, 1.15, memorised=0.0), candidate("ldm", 1, 1.0, memorised=0.0)
    assert decide([worse, better], None, config).winner is better
    assert decide([worse], reigning(frechet=1.0, memorised=0.0), config).stays


def test_a_tie_break_costs_no_victory():
    """The fastest of those that the metric does not tell apart misses the champion's bar, which another one beats."""
    nearer, faster = candidate("ldm", 0, 9.0, ms_per_image=10.0), candidate("ldm", 1, 10.0, ms_per_image=9.0)
    champion = reigning(frechet=12.0)  # its bar is 9.6
    config = PromoteConfig(tie_break="ms_per_image")
    assert decide([nearer], champion, config).winner is nearer
    assert decide([nearer, faster], champion, config).winner is nearer
    assert decide([nearer, faster], None, config).winner is faster


@pytest.mark.parametrize(
    ("guards", "more"),
    [
        ({"ms_per_image": {"at_most": 9}}, {}),
        ({"ms_single": {"at_most": 20}}, {}),
        ({"label_agreement": {"at_least": 1.0}}, {}),
        ({"recall": {"at_least": 0.5}}, {"recall": 0.4}),
        ({"classes_hit": {"at_least": 10}}, {"classes_hit": 9.0}),
        ({"label_entropy": {"at_least": 0.9}}, {"label_entropy": 0.2}),
        ({"memorised": {"at_most": 0.1}}, {"memorised": 0.2}),
        ({"toy_score": {"at_least": 1, "at_most": 2}}, {"toy_score": 3}),
        ({}, {"withdrawn": "ann, yesterday: ugly"}),
        ({}, {"unmeasurable": "cannot be measured any more"}),
        ({}, {"collapsed": "collapsed: draws 20% of the classes"}),
    ],
)
def test_each_guard_refuses_with_its_name_and_passes_without(guards, more):
    (reason,) = objections(candidate(**more), policy(**guards))
    assert not guards or next(iter(guards)) in reason
    assert objections(candidate(recall=0.6, classes_hit=10.0, label_entropy=1.0, memorised=0.0), PromoteConfig()) == []


def test_a_collapsed_sampler_may_be_let_through():
    assert objections(candidate(collapsed="collapsed: draws 20%"), PromoteConfig(refuse_collapsed=False)) == []


@pytest.mark.parametrize(
    "guards",
    [
        {"recall": {"at_least": 0.4}},
        {"memorised": {"at_most": 0.4}},
        {"ms_per_image": {"at_most": 10.0}},
        {"label_agreement": {"at_least": 0.99}},
    ],
)
def test_a_figure_at_its_bound_passes(guards):
    assert objections(candidate(recall=0.4, memorised=0.4), policy(**guards)) == []


def test_where_nobody_passes_nobody_is_promoted_and_who_reigned_stays():
    out = [candidate(ms_per_image=60), GAN]
    decision = decide(out, None, POLICY)
    assert decision.winner is None and not decision.stays
    assert decision.why == "no candidate passes the guards of params.yaml"
    champion = reigning(frechet=1.0, ms_per_image=70)
    decision = decide(out, champion, POLICY)
    assert decision.winner is champion and decision.stays
    assert "no candidate passes" in decision.why
    assert "old #0 stays until one does, though it is out: ms_per_image 70 is over at_most 50" in decision.why
    assert decide(out, reigning(frechet=1.0), POLICY).stays


@pytest.mark.parametrize(("frechet", "stays"), [(0.79, False), (0.81, True), (0.99, True), (1.5, True)])
def test_a_challenger_must_be_below_the_champions_interval(frechet, stays):
    decision = decide([candidate(frechet=frechet)], reigning(frechet=1.0), POLICY)  # interval 0.8 to 1.2
    assert decision.stays == stays
    assert decision.winner.sampler == ("old" if stays else "ldm")


def test_a_minimum_improvement_lies_beyond_the_interval():
    config = PromoteConfig(min_improvement=0.1)  # below 0.8 - 0.1
    champion = reigning(frechet=1.0)
    assert decide([candidate(frechet=0.75)], champion, config).stays
    assert not decide([candidate(frechet=0.69)], champion, config).stays


def test_another_metric_has_its_own_interval():
    champion = reigning(frechet=1.0, kid=(-0.5, (-0.6, -0.4)))
    assert decide([candidate(frechet=0.1, kid=(-0.55, (-1, 0)))], champion, policy("kid")).stays
    assert not decide([candidate(frechet=9.0, kid=(-0.65, (-1, 0)))], champion, policy("kid")).stays


def test_a_metric_that_is_better_higher_is_won_by_the_highest():
    candidates = [candidate(number=0, recall=0.5), candidate(number=1, recall=0.7), candidate(number=2, recall=None)]
    decision = decide(candidates, None, policy("recall"))
    assert decision.winner.number == 1
    assert decision.why == "highest recall of 2 candidates that pass; nobody reigned"
    champion = reigning(recall=(0.6, (0.5, 0.72)))
    kept = decide(candidates, champion, policy("recall"))
    assert kept.stays and "its recall 0.7 is not above 0.72" in kept.why
    fallen = decide([candidate(recall=0.73)], champion, policy("recall"))
    assert not fallen.stays and "recall 0.73 is above 0.72" in fallen.why


def test_a_metric_without_an_interval_is_told_apart_at_its_value():
    champion = reigning(memorised=0.2)
    assert decide([candidate(memorised=0.2)], champion, policy("memorised")).stays
    assert not decide([candidate(memorised=0.19)], champion, policy("memorised")).stays


def test_a_figure_that_only_a_family_or_medium_knows_may_decide():
    candidates = [candidate(number=0, toy_score=1.0), candidate(number=1, toy_score=2.0), GAN]
    config = policy("toy_score", toy_score={"at_least": 0.5})
    refuse_unknown_figures(config, candidates)
    assert decide(candidates, None, config).winner.number == 1


def test_an_unknown_figure_is_refused_with_the_known_ones():
    candidates = [candidate(), GAN]
    known = "expected one of frechet_distance, ms_per_image, ms_single, label_agreement"
    with pytest.raises(InputError, match=f"promote.metric: no figure 'fid'; {known}"):
        refuse_unknown_figures(policy("fid"), candidates)
    with pytest.raises(InputError, match=f"promote.guards.speed: no figure 'speed'; {known}"):
        refuse_unknown_figures(policy(speed={"at_most": 1}), candidates)
    with pytest.raises(InputError, match=r"promote\.metric: colour is better neither higher nor lower"):
        refuse_unknown_figures(policy("colour"), [candidate(colour=3)])
    with pytest.raises(InputError, match=r"promote\.tie_break: no figure 'speed'"):
        refuse_unknown_figures(PromoteConfig(tie_break="speed"), candidates)
    with pytest.raises(InputError, match=r"promote\.second_opinion\.metric: no figure 'pixels'"):
        refuse_unknown_figures(PromoteConfig(second_opinion={"metric": "pixels"}), candidates)


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({"min_label_agreement": 0.95}, r"expected guards: {label_agreement: {at_least: 0\.95}}"),
        ({"max_memorised": 0.1}, r"expected guards: {memorised: {at_most: 0\.1}}"),
        ({"max_ms_per_image": 200}, r"expected guards: {ms_per_image: {at_most: 200}}"),
        ({"min_classes_hit": 10}, r"expected guards: {classes_hit: {at_least: 10}}"),
        ({"batch_size": 1}, r"expected guards: {ms_single: {at_most: \.\.\.}}"),
        ({"guards": {"recall": {}}}, r"promote\.guards\.recall: expected at_least, at_most or both"),
        ({"guards": {"recall": {"over": 1}}}, r"promote\.guards\.recall\.over: unknown key"),
    ],
)
def test_the_guards_of_before_are_refused_with_their_new_form(block, line):
    with pytest.raises(ConfigError, match=line):
        parse(PromoteConfig, block, "promote")


def test_a_champion_that_fails_the_guards_falls_to_whoever_passes():
    decision = decide([candidate(frechet=5)], reigning(frechet=0.1, label_agreement=0.5), POLICY)
    assert decision.winner.sampler == "ldm"
    assert "v3" not in decision.why and "old #0, which reigned, is out: label_agreement 0.5 is under" in decision.why


def test_the_champion_stays_where_no_challenger_passes():
    assert decide([candidate(ms_per_image=60)], reigning(), POLICY).stays


def test_the_champion_is_a_candidate_itself():
    champion = replace(candidate(), version="1")
    decision = decide([candidate(number=0), candidate(number=1, frechet=2)], champion, POLICY)
    assert decision.stays and decision.winner.version == "1"
