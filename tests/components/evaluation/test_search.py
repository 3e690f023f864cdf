"""The search for settings: it starts from a candidate, keeps a budget, and repeats itself."""

import pytest

from components.errors import ConfigError
from components.evaluation.protocol import SearchConfig
from components.evaluation.search import best, refuse_bad_space, search

SEARCH = SearchConfig(
    trials=25, space={"num_inference_steps": [2, 40], "guidance_scale": [0.0, 4.0], "solver": ["a", "b"], "ema": [0, 1]}
)
KNOWN = {"num_inference_steps", "guidance_scale", "solver", "interval"}
START = {"num_inference_steps": 40, "guidance_scale": 4.0, "solver": "a", "eta": 1}


def bowl(settings: dict) -> tuple[float, float]:
    """Best at 10 steps, guidance 1.5, solver b; slower with more steps."""
    steps, guidance = settings["num_inference_steps"], settings["guidance_scale"]
    return abs(steps - 10) / 10 + (guidance - 1.5) ** 2 + (settings["solver"] == "a"), 2.0 * steps


def test_the_search_starts_from_the_candidate_finds_better_and_repeats_itself():
    trials = search(SEARCH, KNOWN, START, bowl, seed=0)
    assert trials[0].settings == START
    assert best(trials).distance < 1.0 < trials[0].distance
    assert all(trial.settings["eta"] == 1 and "ema" not in trial.settings for trial in trials)
    assert search(SEARCH, KNOWN, START, bowl, seed=0) == trials


def test_what_is_over_the_budget_is_never_chosen():
    config = SEARCH.model_copy(update={"max_ms_per_image": 12.0})
    found = best(search(config, KNOWN, START, bowl, seed=0))
    assert found.ms_per_image <= 12 and found.settings["num_inference_steps"] <= 6
    assert best(search(config.model_copy(update={"max_ms_per_image": 1.0}), KNOWN, START, bowl, seed=0)) is None


def test_settings_that_a_sampler_does_not_take_are_not_tried():
    def takes(settings: dict) -> bool:
        return settings["guidance_scale"] <= 2

    trials = search(SEARCH, KNOWN, START, bowl, seed=0, takes=takes)
    assert 0 < len(trials) < 25 and all(takes(trial.settings) for trial in trials)
    assert search(SEARCH, KNOWN, START, bowl, seed=0, takes=lambda settings: False) == []


def test_a_setting_of_two_numbers_takes_two_ranges():
    config = SearchConfig(trials=8, space={"interval": [[0.0, 0.4], [0.3, 1.0]]})
    found = search(config, KNOWN, START, lambda settings: (sum(settings["interval"]), 1.0), seed=0)
    assert all(low <= high for low, high in (trial.settings["interval"] for trial in found))


@pytest.mark.parametrize("values", [[], [5, 1], [[0, 1], [2, 1]]])
def test_a_bad_range_is_refused(values):
    with pytest.raises(ConfigError, match=r"search\.space\.steps"):
        refuse_bad_space({"steps": values}, {"steps"}, "search.space")


def test_a_start_outside_the_space_is_no_fault_and_a_pair_inside_is_tried_first():
    space = {"num_inference_steps": [10, 25, 50], "guidance_scale": [0.0, 3.0], "interval": [[0.0, 0.4], [0.3, 1.0]]}
    config = SearchConfig(trials=3, space=space)
    start = {**START, "num_inference_steps": 20, "guidance_scale": None, "interval": [0.25, 0.75]}
    found = search(config, KNOWN, start, lambda settings: (1.0, 1.0), seed=0)
    assert len(found) == 3 and found[0].settings["interval"] == [0.25, 0.75]
    assert all(trial.settings["num_inference_steps"] in (10, 25, 50) for trial in found)
