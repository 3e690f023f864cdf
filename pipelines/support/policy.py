"""Which candidate reigns: the `promote` block of params.yaml as a function of figures.

The reigning champion stays unless it fails the guards, or a challenger that passes them lies beyond its interval:
figures within an interval of each other are not told apart, and `tie_break` may choose among those. Which figures
decide is the user's choice; each figure says itself which way is better. Bounds are figures here; yardsticks.py makes
them so where they are relative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from components.metrics.figures import Definition, Figure, definitions
from pipelines.support import figure_names
from pipelines.support.candidates import Candidate
from pipelines.support.params import Bound, PromoteConfig

_CLEARLY = 2.0  # a tie-break: times vary by tens of percent on a machine that others use
_WHERE = "params.yaml.promote"
Definitions = Mapping[str, Definition]


@dataclass(frozen=True)
class Decision:
    """`winner`: None where no candidate passes and nobody reigned."""

    winner: Candidate | None
    stays: bool  # the winner reigned before
    why: str


def refuse_unknown_figures(policy: PromoteConfig, candidates: Iterable[Candidate]) -> None:
    """Raises ConfigError of a figure that the policy names and no candidate was measured by, listing those there are,
    and of one to compare by that is better neither way."""
    known = definitions(candidate.figures for candidate in candidates)
    figure_names.refuse_unknown(policy, known, _WHERE)
    figure_names.refuse_incomparable(policy, known, _WHERE)


def objections(candidate: Candidate, policy: PromoteConfig, defined: Definitions) -> list[str]:
    """Why a candidate may not reign; empty if it may. `defined`: all figures that any candidate was measured by."""
    if candidate.unmeasurable:
        return [candidate.unmeasurable]
    reasons = [f"withdrawn by hand ({candidate.withdrawn})"] if candidate.withdrawn else []
    if policy.refuse_collapsed and candidate.collapsed:
        reasons.append(candidate.collapsed)
    if policy.metric not in candidate.figures:
        reasons.append(f"has no {policy.metric}, which is promote.metric")
    for name, bound in policy.guards.items():
        reasons += _beyond(candidate, name, bound, defined)
    return reasons


def _beyond(candidate: Candidate, name: str, bound: Bound, defined: Definitions) -> list[str]:
    figure = candidate.figures.get(name)
    if figure is None:
        # nobody asked it for classes, so there is nothing that it could have got wrong
        spared = name in defined and defined[name].labelled
        return [] if spared else [f"has no {name}, so it cannot meet guards.{name}"]
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


def _ends(figure: Figure) -> tuple[float, float]:
    """The costs of the better and the worse end of a figure's interval; its own where it has none."""
    costs = [figure.definition.cost(end) for end in figure.interval or (figure.value,)]
    return min(costs), max(costs)


def bar(reigning: Candidate, policy: PromoteConfig) -> float:
    """The value that a challenger's metric must lie beyond: the better end of the champion's interval, or its value
    where it has none, and the least improvement beyond that."""
    figure = reigning.figures[policy.metric]
    limit = _ends(figure)[0] - policy.min_improvement * abs(figure.value)
    return limit if figure.definition.better == "lower" else -limit


def contradicted(candidate: Candidate, others: Iterable[Candidate], policy: PromoteConfig) -> Candidate | None:
    """Whom the second opinion prefers: the best of those that beat the candidate in it beyond its interval, if any."""
    if policy.second_opinion is None or policy.second_opinion.metric not in candidate.figures:
        return None
    name = policy.second_opinion.metric
    limit, _ = _ends(candidate.figures[name])
    better = [one for one in others if name in one.figures and cost(one, name) < limit]
    return min(better, key=lambda one: cost(one, name), default=None)


def tied(best: Candidate, candidates: Iterable[Candidate], metric: str) -> list[Candidate]:
    """The candidates that the metric does not tell apart from the best: those within its interval."""
    _, limit = _ends(best.figures[metric])
    return [one for one in candidates if cost(one, metric) <= limit]


def decide(candidates: list[Candidate], reigning: Candidate | None, policy: PromoteConfig) -> Decision:
    """Picks who reigns. `reigning` is the champion so far, measured by the same protocol; it may be one of the
    candidates. Expects a policy that `refuse_unknown_figures` let pass."""
    defined = definitions([*(one.figures for one in candidates), *([reigning.figures] if reigning else [])])
    passing = [candidate for candidate in candidates if not objections(candidate, policy, defined)]
    against = [] if reigning is None else objections(reigning, policy, defined)
    if not passing and reigning is None:
        return Decision(None, False, "no candidate passes the guards of params.yaml")
    if not passing and against:
        why = f"no candidate passes the guards of params.yaml; {reigning.name} stays until one does, though it is out"
        return Decision(reigning, True, f"{why}: {', '.join(against)}")
    rivals = passing if reigning is None or against else [*passing, reigning]
    best, note = _best(passing, rivals, policy, None if against else reigning)
    decision = _against_champion(best, passing, reigning, against, policy, _words(defined[policy.metric]))
    notes = [part for part in (note, _opinion(decision.winner, rivals, policy)) if part]
    return Decision(decision.winner, decision.stays, "; ".join([decision.why, *notes]))


def _best(
    passing: list[Candidate], rivals: list[Candidate], policy: PromoteConfig, champion: Candidate | None
) -> tuple[Candidate | None, str]:
    """The best challenger, and what is to be said of how it was chosen. `champion`: who reigns by right."""
    metric, notes = policy.metric, []
    agreed = passing
    if policy.second_opinion is not None and policy.second_opinion.required:
        agreed = [one for one in passing if contradicted(one, rivals, policy) is None]
        first = min(passing, key=lambda one: cost(one, metric), default=None)
        if first is not None and first not in agreed:
            notes.append(f"{first.name} is passed over: {_opinion(first, rivals, policy)}")
    best = min(agreed, key=lambda one: cost(one, metric), default=None)
    if best is not None and policy.tie_break is None:
        level = [_with_time(one, metric) for one in tied(best, agreed, metric) if one is not best]
        notes += [f"{metric} does not tell it from {', '.join(level)}"] if level else []
    if best is None or policy.tie_break is None:
        return best, "; ".join(notes)
    among = [one for one in tied(best, agreed, metric) if policy.tie_break in one.figures]
    if champion is not None and _beats(best, champion, policy):  # a tie-break costs no victory
        among = [one for one in among if _beats(one, champion, policy)]
    chosen = min(among, key=lambda one: (cost(one, policy.tie_break), cost(one, metric)), default=best)
    if chosen is not best:
        told = ", ".join(f"{one.name} ({_value(one, metric)}, {_value(one, policy.tie_break)})" for one in among)
        notes.append(f"not told apart by {metric}: {told}; the best {policy.tie_break} of these challenges")
    return chosen, "; ".join(notes)


def _against_champion(
    best: Candidate | None,
    passing: list[Candidate],
    reigning: Candidate | None,
    against: list[str],
    policy: PromoteConfig,
    words: _Words,
) -> Decision:
    metric = policy.metric
    if reigning is None:
        chosen = "" if policy.tie_break is None else f", or within its interval and best {policy.tie_break},"
        return Decision(
            best, False, f"{words.best} {metric}{chosen} of {len(passing)} candidates that pass; nobody reigned"
        )
    if against and best is not None:
        return Decision(best, False, f"{reigning.name}, which reigned, is out: {', '.join(against)}")
    if best is None or best.content == reigning.content:
        return Decision(reigning, True, f"no candidate that passes has a {words.better} {metric}")
    value, limit = best.figures[metric].value, bar(reigning, policy)
    if _beats(best, reigning, policy):
        why = f"{metric} {value:.4g} is {words.beyond} {limit:.4g}, the bar that {reigning.name} sets"
        return Decision(best, False, why)
    if _breaks_tie(best, reigning, policy):
        why = f"{metric} does not tell {best.name} ({value:.4g}) from {reigning.name}, which reigned; "
        why += f"{_value(best, policy.tie_break)} is clearly better than {_value(reigning, policy.tie_break)}"
        return Decision(best, False, why)
    why = f"{best.name} is the best challenger; its {metric} {value:.4g} is not {words.beyond} {limit:.4g}"
    return Decision(reigning, True, why)


def _beats(challenger: Candidate, reigning: Candidate, policy: PromoteConfig) -> bool:
    """Whether it lies beyond the bar that the champion sets."""
    figure = challenger.figures[policy.metric]
    return figure.definition.cost(figure.value) < figure.definition.cost(bar(reigning, policy))


def _breaks_tie(challenger: Candidate, reigning: Candidate, policy: PromoteConfig) -> bool:
    """Whether the metric does not tell the two apart and the tie-break clearly prefers the challenger."""
    name = policy.tie_break
    if name is None or not {name} <= challenger.figures.keys() & reigning.figures.keys():
        return False
    ours, theirs = challenger.figures[name], reigning.figures[name].value
    better, worse = (ours.value, theirs) if ours.definition.better == "lower" else (theirs, ours.value)
    return bool(tied(reigning, [challenger], policy.metric)) and better < worse and better * _CLEARLY <= worse


def _opinion(candidate: Candidate, others: Iterable[Candidate], policy: PromoteConfig) -> str:
    """Whether the second opinion agrees with a choice, in words; empty where there is none."""
    if policy.second_opinion is None or policy.second_opinion.metric not in candidate.figures:
        return ""
    name = policy.second_opinion.metric
    preferred = contradicted(candidate, others, policy)
    if preferred is None:
        return f"{name} agrees"
    return f"{name} prefers {preferred.name} ({_value(preferred, name)} against {_value(candidate, name)})"


def _with_time(candidate: Candidate, metric: str) -> str:
    """A candidate's name with its metric and the first of its figures that is a time."""
    times = [name for name, figure in candidate.figures.items() if figure.definition.kind == "time" and name != metric]
    return f"{candidate.name} ({', '.join(_value(candidate, name) for name in [metric, *times[:1]])})"


def _value(candidate: Candidate, name: str) -> str:
    figure = candidate.figures[name]
    return f"{figure.value:.4g} {figure.definition.unit}".rstrip()


@dataclass(frozen=True)
class _Words:
    best: str
    better: str
    beyond: str


def _words(definition: Definition) -> _Words:
    return _Words("lowest", "lower", "below") if definition.better == "lower" else _Words("highest", "higher", "above")
