"""Names of figures in params.yaml, held against those that trainings and evaluation can come to: what names another is
told before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from components.artifacts import run_folder
from components.config import nearest
from components.errors import ConfigError, SamplerError
from components.evaluation.foreseen import OF_LABELS, Foreseen, foreseen
from components.families import family_class
from components.families.base import JUDGE, Family, Sampler
from components.metrics.figures import Definition
from components.metrics.held_out import BITS
from pipelines.support import inputs

if TYPE_CHECKING:
    from components.training.loop import TrainingConfig
    from pipelines.support.params import Bound, Params, PromoteConfig

CLASSES, REAL = "classes", "real"  # what a bound may be a share of, beside the judge's figures


def check_policy(params: Params, where: str) -> None:
    """Raises ConfigError of a figure that the block `promote` names and that nothing configured can measure."""
    found, policy = _foreseen(params), params.promote
    if found is None:
        return
    if not found.open:
        refuse_unknown(policy, found.known, where, found.wanting, OF_LABELS)
    refuse_incomparable(policy, found.known, where)
    for name, bound in policy.guards.items():
        # a guard on labels is left out where the data have none
        if bound.of is not None and (name in found.known or name not in OF_LABELS):
            _check_share(name, bound, found, f"{where}.guards.{name}.of")


def check_keep_by(training: TrainingConfig, kind: type[Family], is_judged: bool, where: str) -> None:
    """Raises ConfigError of a figure to keep the best checkpoint by that none will have. `is_judged`: whether a judge
    validates them; a family that does not say what it adds then may add any."""
    adds_unsaid = kind.validate is not Family.validate and not kind.judged_figures
    if training.keep != "best" or (is_judged and adds_unsaid):
        return
    known = [*_comparable(() if kind.held_out is None else kind.held_out.definitions), *kind.checkpoint_figures]
    added = _comparable(kind.judged_figures)
    if issubclass(kind, Sampler) and kind.likelihood is not Sampler.likelihood:
        added += _comparable(BITS.definitions)  # as its config decides
    added = [name for name in added if name not in known]
    if training.keep_by not in (*known, *(added if is_judged else ())):
        expected = _expected(training.keep_by, [*known, *added])
        told = "" if is_judged or not added else f"; those from {added[0]} on need a {JUDGE} in inputs"
        raise ConfigError(f"{where}.keep_by: no figure {training.keep_by!r} of checkpoints; {expected}{told}")


def _comparable(definitions: Iterable[Definition]) -> list[str]:
    return [one.name for one in definitions if one.better is not None]


def _foreseen(params: Params) -> Foreseen | None:
    """None where the judge is a run that nothing says the family of."""
    given, judge = params.inputs_of("evaluate"), None
    if JUDGE in given:
        trained = inputs.model_at(params, given[JUDGE])
        try:
            family = params.models[trained].family if trained else run_folder.read_config(given[JUDGE]).family
        except SamplerError:
            return None
        judge = family_class(family)
    samplers = [family_class(block.family) for block in params.samplers.values()]
    return foreseen(params.evaluate, judge, samplers, inputs.CLIP in given)


def _check_share(name: str, bound: Bound, found: Foreseen, where: str) -> None:
    known = [CLASSES, *([REAL] if found.open or name in found.of_sets else []), *found.of_judge]
    if bound.of in known:
        return
    if bound.of == REAL:
        raise ConfigError(f"{where}: real rows have no {name}; expected one of {', '.join(known)}, or no key of")
    raise ConfigError(f"{where}: no {bound.of!r} to compare with; {_expected(bound.of, known)}")


def refuse_unknown(
    policy: PromoteConfig,
    known: Collection[str],
    where: str,
    wanting: Mapping[str, str] | None = None,
    spared: Collection[str] = (),
) -> None:
    """Raises ConfigError of a figure that the policy names and that is none of `known`. `wanting`: what would have to
    be configured for others; `spared`: guards that may name what is not known."""
    guards = [(f"guards.{name}", name) for name in policy.guards if name not in spared]
    for key, name in [*policy.compared.items(), *guards]:
        if name in (wanting or {}):
            raise ConfigError(f"{where}.{key}: {name!r} is not measured; expected {wanting[name]}, or another figure")
        if name not in known:
            raise ConfigError(f"{where}.{key}: no figure {name!r}; {_expected(name, known)}")


def refuse_incomparable(policy: PromoteConfig, known: Mapping[str, Definition], where: str) -> None:
    """Raises ConfigError of a figure to compare by that is better neither way."""
    for key, name in policy.compared.items():
        if name in known and known[name].better is None:
            raise ConfigError(f"{where}.{key}: {name} is better neither higher nor lower; expected a figure that is")


def _expected(name: str, known: Iterable[str]) -> str:
    known = list(dict.fromkeys(known))
    hint = "" if name in known else nearest(name, known)
    return f"expected one of {', '.join(known)}{hint}" if known else "there are none"
