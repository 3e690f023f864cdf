"""Which candidate reigns: the `promote` block of params.yaml as a function of figures.

The reigning champion stays unless it fails the guards, or a challenger that passes them lies beyond its interval:
figures within an interval of each other are not told apart. Which figures decide is the user's choice; each figure
says itself which way is better. Guards may be relative to what is known of the data, so that one policy suits any.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from components.errors import InputError
from components.metrics.classes import CLASSIFIER_ACCURACY, INCEPTION_SCORE, LABEL_AGREEMENT
from components.metrics.figures import Definition, Figures, definitions
from components.metrics.modes import CLASSES_HIT, LABEL_ENTROPY
from pipelines.support.candidates import Candidate
from pipelines.support.params import Bound, PromoteConfig

ASKED = {one.name for one in (LABEL_AGREEMENT, CLASSIFIER_ACCURACY)}  # figures of samplers that are asked for classes
OF_LABELS = ASKED | {one.name for one in (CLASSES_HIT, LABEL_ENTROPY, INCEPTION_SCORE)}  # of data that have some
CLASSES, REAL = "classes", "real"  # what a bound may be a share of, beside the judge's figures


@dataclass(frozen=True)
class Decision:
    winner: Candidate
    stays: bool  # the winner reigned before
    why: str


@dataclass(frozen=True)
class Yardsticks:
    """What bounds may be relative to: how many classes the data have, figures of the judge, and of real images."""

    num_classes: int
    judge: Figures
    real: Figures


def in_figures(policy: PromoteConfig, yardsticks: Yardsticks, candidates: Iterable[Candidate]) -> PromoteConfig:
    """The policy with all bounds as figures themselves, without those on labels where the data let nobody have them.
    Raises InputError of a bound relative to what is not known."""
    known = definitions(candidate.figures for candidate in candidates)
    guards = {
        name: _absolute(name, bound, yardsticks)
        for name, bound in policy.guards.items()
        if name in known or name not in OF_LABELS
    }
    return policy.model_copy(update={"guards": guards})


def _absolute(name: str, bound: Bound, yardsticks: Yardsticks) -> Bound:
    if bound.of is None:
        return bound
    known = {CLASSES: float(yardsticks.num_classes)} if yardsticks.num_classes else {}
    known |= {REAL: yardsticks.real[name].value} if name in yardsticks.real else {}
    known |= {figure.name: figure.value for figure in yardsticks.judge.values()}
    if bound.of not in known:
        expected = f"expected one of {', '.join(known)}" if known else "nothing is known of these data"
        raise InputError(f"params.yaml.promote.guards.{name}.of: no {bound.of!r} to compare with; {expected}")
    ends = {"at_least": bound.at_least, "at_most": bound.at_most}
    return Bound(**{key: None if share is None else share * known[bound.of] for key, share in ends.items()})


def refuse_unknown_figures(policy: PromoteConfig, candidates: Iterable[Candidate]) -> None:
    """Raises InputError of a metric or guard that no candidate was measured by, listing those there are, and of a
    metric that is better neither way."""
    known = definitions(candidate.figures for candidate in candidates)
    for key, name in [("metric", policy.metric), *(("guards", name) for name in policy.guards)]:
        if name not in known:
            raise InputError(f"params.yaml.promote.{key}: no figure {name!r}; expected one of {', '.join(known)}")
    if known[policy.metric].better is None:
        raise InputError(f"params.yaml.promote.metric: {policy.metric} is better neither higher nor lower")


def objections(candidate: Candidate, policy: PromoteConfig) -> list[str]:
    """Why a candidate may not reign; empty if it may."""
    if candidate.unmeasurable:
        return [candidate.unmeasurable]
    reasons = [f"withdrawn by hand ({candidate.withdrawn})"] if candidate.withdrawn else []
    if policy.refuse_collapsed and candidate.collapsed:
        reasons.append(candidate.collapsed)
    if policy.metric not in candidate.figures:
        reasons.append(f"has no {policy.metric}, which is promote.metric")
    for name, bound in policy.guards.items():
        reasons += _beyond(candidate, name, bound)
    return reasons


def _beyond(candidate: Candidate, name: str, bound: Bound) -> list[str]:
    figure = candidate.figures.get(name)
    if figure is None:
        return [] if name in ASKED else [f"has no {name}, so it cannot meet guards.{name}"]
    reasons = []
    if bound.at_least is not None and figure.value < bound.at_least:
        reasons.append(f"{name} {figure.value:.4g} is under at_least {bound.at_least:g}")
    if bound.at_most is not None and figure.value > bound.at_most:
        reasons.append(f"{name} {figure.value:.4g} is over at_most {bound.at_most:g}")
    return reasons


def cost(candidate: Candidate, metric: str) -> float:
    """The candidate's metric where lower is better, its negative where higher is."""
    figure = candidate.figures[metric]
    return figure.definition.cost(figure.value)


def bar(reigning: Candidate, policy: PromoteConfig) -> float:
    """The value that a challenger's metric must lie beyond: the better end of the champion's interval, or its value
    where it has none, and the least improvement beyond that."""
    figure = reigning.figures[policy.metric]
    ends = figure.interval or (figure.value,)
    margin = policy.min_improvement * abs(figure.value)
    return min(ends) - margin if figure.definition.better == "lower" else max(ends) + margin


def decide(candidates: list[Candidate], reigning: Candidate | None, policy: PromoteConfig) -> Decision:
    """Picks who reigns. `reigning` is the champion so far, measured by the same protocol; it may be one of the
    candidates. Expects a policy that `refuse_unknown_figures` let pass. Raises InputError telling each candidate's
    objections if none passes and none reigns."""
    metric = policy.metric
    passing = [candidate for candidate in candidates if not objections(candidate, policy)]
    best = min(passing, key=lambda candidate: cost(candidate, metric), default=None)
    against = [] if reigning is None else objections(reigning, policy)
    if best is None and (reigning is None or against):
        reasons = "; ".join(f"{one.name}: {', '.join(objections(one, policy))}" for one in candidates)
        raise InputError(f"promote: no candidate passes the guards of params.yaml ({reasons})")
    words = _words(definitions([one.figures for one in candidates])[metric])
    if reigning is None:
        return Decision(best, False, f"{words.best} {metric} of {len(passing)} candidates that pass; nobody reigned")
    if against:
        return Decision(best, False, f"{reigning.name}, which reigned, is out: {', '.join(against)}")
    if best is None or best.content == reigning.content:
        return Decision(reigning, True, f"no candidate that passes has a {words.better} {metric}")
    value, limit, direction = best.figures[metric].value, bar(reigning, policy), best.figures[metric].definition
    if direction.cost(value) < direction.cost(limit):
        why = f"{metric} {value:.4g} is {words.beyond} {limit:.4g}, the bar that {reigning.name} sets"
        return Decision(best, False, why)
    why = f"{best.name} is the best challenger; its {metric} {value:.4g} is not {words.beyond} {limit:.4g}"
    return Decision(reigning, True, why)


@dataclass(frozen=True)
class _Words:
    best: str
    better: str
    beyond: str


def _words(definition: Definition) -> _Words:
    return _Words("lowest", "lower", "below") if definition.better == "lower" else _Words("highest", "higher", "above")
