"""Which candidate reigns: the `promote` block of params.yaml as a function of figures.

A candidate is one sampler with one solver setting. The reigning champion stays unless it fails the guards, or a
challenger that passes them lies below its interval: figures within an interval of each other are not told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.errors import InputError
from pipelines.support.params import PromoteConfig

Candidate = dict[str, Any]  # one entry of a metrics file's `candidates`, with its `sampler`, `number` and `content`

_LEAST = {
    "min_label_agreement": "label_agreement",
    "min_recall": "recall",
    "min_classes_hit": "classes_hit",
    "min_label_entropy": "label_entropy",
}
_MOST = {"max_memorised": "memorised"}


@dataclass(frozen=True)
class Decision:
    winner: Candidate
    stays: bool  # the winner reigned before
    why: str


def label(candidate: Candidate) -> str:
    """A candidate's name for people: `ldm #0`; of a registered version that is no candidate, its version."""
    return f"{candidate['sampler']} #{candidate['number']}" if "number" in candidate else f"v{candidate['version']}"


def milliseconds(candidate: Candidate, policy: PromoteConfig) -> float:
    """Per image, at the batch size that the policy names."""
    return candidate["ms_single" if policy.batch_size == 1 else "ms_per_image"]


def objections(candidate: Candidate, policy: PromoteConfig) -> list[str]:
    """Why the guards refuse a candidate; empty if they do not."""
    if candidate.get("unmeasurable"):
        return [candidate["unmeasurable"]]
    reasons = [f"withdrawn by hand ({candidate['withdrawn']})"] if candidate.get("withdrawn") else []
    if policy.refuse_collapsed and candidate.get("collapsed"):
        reasons.append(candidate["collapsed"])
    slowest, taken = policy.max_ms_per_image, milliseconds(candidate, policy)
    if slowest is not None and taken > slowest:
        reasons.append(f"{taken:.1f} ms per image is over max_ms_per_image {slowest:g}")
    for guards, fails, beyond in ((_LEAST, float.__lt__, "under"), (_MOST, float.__gt__, "over")):
        for guard, figure in guards.items():
            bound, found = getattr(policy, guard), candidate.get(figure)
            if bound is not None and found is None:
                reasons.append(f"has no {figure.replace('_', ' ')}, so it cannot meet {guard}")
            elif bound is not None and fails(float(found), float(bound)):
                reasons.append(f"{figure.replace('_', ' ')} {found:.3f} is {beyond} {guard} {bound:g}")
    return reasons


def interval(candidate: Candidate, metric: str) -> list[float]:
    return candidate[f"{metric.removesuffix('_distance')}_interval"]


def threshold(reigning: Candidate, policy: PromoteConfig) -> float:
    """What a challenger's metric must lie below."""
    return interval(reigning, policy.metric)[0] - policy.min_improvement * abs(reigning[policy.metric])


def decide(candidates: list[Candidate], reigning: Candidate | None, policy: PromoteConfig) -> Decision:
    """`reigning` is the champion so far, measured by the same protocol; it may be one of the candidates. Raises
    InputError telling each candidate's objections if none passes and none reigns."""
    metric = policy.metric
    passing = [candidate for candidate in candidates if not objections(candidate, policy)]
    best = min(passing, key=lambda candidate: candidate[metric], default=None)
    against = [] if reigning is None else objections(reigning, policy)
    if best is None and (reigning is None or against):
        told = "; ".join(f"{label(c)}: {', '.join(objections(c, policy))}" for c in candidates)
        raise InputError(f"promote: no candidate passes the guards of params.yaml ({told})")
    if reigning is None:
        return Decision(best, False, f"lowest {metric} of {len(passing)} candidates that pass; nobody reigned")
    if against:
        return Decision(best, False, f"{label(reigning)}, which reigned, is out: {', '.join(against)}")
    if best is None or best["content"] == reigning["content"]:
        return Decision(reigning, True, f"no candidate that passes has a lower {metric}")
    bar = threshold(reigning, policy)
    if best[metric] < bar:
        return Decision(
            best, False, f"{metric} {best[metric]:.4g} is below {bar:.4g}, the bar that {label(reigning)} sets"
        )
    return Decision(
        reigning, True, f"{label(best)} is the best challenger; its {metric} {best[metric]:.4g} is not below {bar:.4g}"
    )
