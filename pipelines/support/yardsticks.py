"""Guards that are relative to what is known of the data, so that one policy suits any."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from components.errors import InputError
from components.evaluation.foreseen import OF_LABELS
from components.metrics.figures import Figures, definitions
from pipelines.support.candidates import Candidate
from pipelines.support.figure_names import CLASSES, REAL
from pipelines.support.params import Bound, PromoteConfig


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
