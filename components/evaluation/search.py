"""A small search for good solver settings by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

It knows neither sampler nor data: `score` measures one candidate. The search is a function of its seed and of the
scores, so where scores are reproducible, so is what it finds; milliseconds count only against a budget.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from components.config import nearest
from components.errors import ConfigError
from components.evaluation.protocol import SearchConfig

Settings = dict[str, object]


@dataclass(frozen=True)
class Trial:
    """`distance` on the validation images, lower is better; `ms_per_image` alone decides whether it is in budget."""

    settings: Settings
    distance: float
    ms_per_image: float
    in_budget: bool


def refuse_bad_space(space: dict[str, list], known: Collection[str], where: str) -> None:
    """Raises ConfigError of a setting that is none of `known`, or has neither two bounds nor values to choose among."""
    for name, values in space.items():
        if name not in known:
            told = f"{', '.join(sorted(known))}{nearest(name, sorted(known))}"
            raise ConfigError(f"{where}.{name}: no sampler's setting; expected one of {told}")
        pairs = values if _is_pairs(values) else [values]
        for pair in pairs:
            if not pair or (_is_range(pair) and pair[0] > pair[1]):
                raise ConfigError(f"{where}.{name}: expected [low, high], [[low, high], ...] or values, found {values}")


def _is_range(values: list) -> bool:
    return len(values) == 2 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _is_pairs(values: list) -> bool:
    return bool(values) and all(isinstance(value, list) and _is_range(value) for value in values)


def search(
    config: SearchConfig,
    known: Collection[str],
    start: Settings,
    score: Callable[[Settings], tuple[float, float]],
    seed: int,
    takes: Callable[[Settings], bool] = lambda settings: True,
) -> list[Trial]:
    """All trials in order, but for those of settings that the sampler does not take; none if it has none of the
    settings of the space. `known` are the names of the settings that it has, `start` is the candidate whose other
    settings are kept and which is tried first. `score` gives the distance and the milliseconds per image of
    settings."""
    space = {name: values for name, values in config.space.items() if name in known}
    if not config.trials or not space:
        return []
    import optuna  # half a second that only a search pays

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(dict(_first(space, start)), skip_if_exists=True)
    trials: list[Trial] = []

    def objective(trial) -> float:
        settings = {**start, **{name: _suggested(trial, name, values) for name, values in space.items()}}
        if not takes(settings):
            raise optuna.TrialPruned
        distance, ms_per_image = score(settings)
        in_budget = config.max_ms_per_image is None or ms_per_image <= config.max_ms_per_image
        trials.append(Trial(settings, distance, ms_per_image, in_budget))
        if not in_budget:
            raise optuna.TrialPruned
        return distance

    study.optimize(objective, n_trials=config.trials)
    return trials


def _first(space: dict[str, list], start: Settings) -> Iterator[tuple[str, object]]:
    """The start's values as trials know them, of settings whose space holds them."""
    for name, values in space.items():
        value = start.get(name)
        if _is_pairs(values):
            fits = isinstance(value, list | tuple) and len(value) == len(values)
            if fits and all(_holds(pair, one) for pair, one in zip(values, value, strict=True)):
                yield from ((f"{name}.{place}", one) for place, one in enumerate(value))
        elif _holds(values, value):
            yield name, value


def _holds(values: list, value: object) -> bool:
    if not _is_range(values):
        return value in values
    return isinstance(value, int | float) and not isinstance(value, bool) and values[0] <= value <= values[1]


def _suggested(trial, name: str, values: list) -> object:
    if _is_pairs(values):
        return sorted(_suggested(trial, f"{name}.{place}", pair) for place, pair in enumerate(values))
    if not _is_range(values):
        return trial.suggest_categorical(name, values)
    low, high = values
    whole = isinstance(low, int) and isinstance(high, int)
    return trial.suggest_int(name, low, high) if whole else trial.suggest_float(name, low, high)


def best(trials: list[Trial]) -> Trial | None:
    """The nearest within the budget; None if no trial is."""
    return min((trial for trial in trials if trial.in_budget), key=lambda trial: trial.distance, default=None)
