"""Figures that an evaluation can come to, known from its configuration alone, so that a policy is held against them
before anything is trained. What the data decide, such as whether they have classes, is left open here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from components.data.media import Medium, medium, medium_names
from components.evaluation.generation import MS_PER_IMAGE, MS_SINGLE, NETWORK_EVALUATIONS, PARAMETERS
from components.evaluation.protocol import EvaluateConfig
from components.evaluation.real_draws import HELD_OUT_DISTANCE, TRAINING_BIAS, TRAINING_DISTANCE
from components.evaluation.set_figures import CLIP_SCORE, LPIPS_DIVERSITY
from components.families.base import Judge, Sampler
from components.metrics.classes import CLASSIFIER_ACCURACY, INCEPTION_SCORE, JUDGE_ACCURACY, LABEL_AGREEMENT
from components.metrics.figures import Definition
from components.metrics.frechet import FRECHET_BALANCED, FRECHET_DISTANCE, FRECHET_INFINITY
from components.metrics.kernel import CMMD, KERNEL_DISTANCE
from components.metrics.likelihood import OF_LATENTS, OF_TOKENS, OF_VALUES
from components.metrics.modes import CLASS_IMBALANCE, CLASSES_HIT, LABEL_ENTROPY
from components.metrics.neighbours import COVERAGE, DENSITY, MEMORISED, PRECISION, RECALL
from components.metrics.principal import PIXEL_DISTANCE

OF_FEATURES = (
    *(FRECHET_DISTANCE, FRECHET_INFINITY, KERNEL_DISTANCE, CMMD),
    *(PRECISION, RECALL, DENSITY, COVERAGE, PIXEL_DISTANCE, MEMORISED),
)
OF_COSTS = (MS_PER_IMAGE, MS_SINGLE, NETWORK_EVALUATIONS, PARAMETERS)
OF_JUDGED_CLASSES = (LABEL_AGREEMENT, CLASSES_HIT, CLASS_IMBALANCE, FRECHET_BALANCED, LABEL_ENTROPY, INCEPTION_SCORE)
# names of those that only data with classes can have
OF_LABELS = frozenset(one.name for one in (*OF_JUDGED_CLASSES, CLASSIFIER_ACCURACY))
OF_REAL_DRAWS = (HELD_OUT_DISTANCE, TRAINING_DISTANCE, TRAINING_BIAS)


@dataclass(frozen=True)
class Foreseen:
    """Definitions by name. `of_sets`: of any set of rows, real ones too; `of_samplers`: of samples alone; `of_judge`:
    of the judge and the extractor themselves. `wanting`: by the name of a figure that is not measured, what would have
    to be configured. `open`: whether there may be others, by a judge, family or medium that does not say which."""

    of_sets: dict[str, Definition]
    of_samplers: dict[str, Definition]
    of_judge: dict[str, Definition]
    wanting: dict[str, str]
    open: bool

    @property
    def known(self) -> dict[str, Definition]:
        return self.of_sets | self.of_samplers


def foreseen(
    config: EvaluateConfig, judge: type[Judge] | None, samplers: Iterable[type[Sampler]], has_clip: bool
) -> Foreseen:
    """Of samplers of these families, by a judge of this one, None without a judge. `has_clip`: whether a CLIP is
    trained on the data's captions and given to evaluation."""
    samplers, wanting = tuple(samplers), {}
    of_sets = _named(OF_FEATURES, (CLASSIFIER_ACCURACY,))
    added = [_added(kind, Sampler) for kind in samplers]
    added += [_added(type(medium(name)), Medium) for name in medium_names()]
    judged = () if judge is None else _added(judge, Judge)
    for definitions, is_measured, wanted in (
        (OF_JUDGED_CLASSES, judge is not None, "evaluate/judge in inputs"),
        ((INCEPTION_SCORE,), judge is not None or config.extractor.name == "inception", ""),
        ((LPIPS_DIVERSITY,), bool(config.lpips), "evaluate.lpips"),
        ((CLIP_SCORE,), has_clip or bool(config.clip_score), "evaluate.clip_score or evaluate/clip in inputs"),
    ):
        if is_measured:
            of_sets |= _named(definitions)
        elif wanted:
            wanting |= {one.name: wanted for one in definitions}
    likely = list(_likelihoods(config, samplers))
    if not config.latent_likelihood:
        wanting |= {one.name: "evaluate.latent_likelihood: true" for one in OF_LATENTS}
    return Foreseen(
        of_sets | _named(judged or ()),
        _named(OF_COSTS, likely, *(one or () for one in added)),
        _named(OF_REAL_DRAWS, () if judge is None else (JUDGE_ACCURACY,)),
        {name: wanted for name, wanted in wanting.items() if name not in of_sets},
        None in (judged, *added),
    )


def _named(*groups: Iterable[Definition]) -> dict[str, Definition]:
    return {one.name: one for group in groups for one in group}


def _added(kind: type, base: type) -> tuple[Definition, ...] | None:
    """What `figures` of a family or medium adds to those of all; None where it does not say."""
    return () if kind.figures is base.figures else getattr(kind, "own_figures", ()) or None


def _likelihoods(config: EvaluateConfig, samplers: tuple[type[Sampler], ...]) -> Iterator[Definition]:
    if any(kind.likelihood is not Sampler.likelihood for kind in samplers):  # which of them, its data and config decide
        yield from (*OF_VALUES, *OF_TOKENS, *(OF_LATENTS if config.latent_likelihood else ()))
