"""Conditions of a request: cut and moved whole, and refused by what a sampler accepts, at one place for all of them."""

import pytest
import torch

from components.errors import SamplerError
from components.families import family_class, family_names
from components.families.base import Sampler
from components.sampling.requests import BLEND, Blend, Conditions, Request, Source, Takes, refuse_unfit
from tests.components.families.contract import fast
from tests.components.helpers import build

SEEDS = torch.tensor([1, 2])
GIVEN = {
    "label": torch.tensor([0, 1]),
    "prompt": ("a", "b"),
    "negative_label": torch.tensor([1, 0]),
    "negative_prompt": ("c", "d"),
}


def families():
    return [name for name in family_names() if issubclass(family_class(name), Sampler)]


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("condition", [*GIVEN, "source", BLEND])
def test_every_sampler_refuses_what_it_does_not_accept(name, condition):
    sampler = build(name)
    blend = Blend(SEEDS, torch.zeros(2)) if condition == BLEND else None
    given = {**GIVEN, "source": Source(torch.zeros(2, *sampler.row_shape), 0.5)}
    needed = {"label": GIVEN["label"]} if sampler.conditional and sampler.needs_class else {}
    told = {**needed, condition: given[condition]} if condition in given else needed
    request = Request(SEEDS, sampler.Settings(), Conditions(**told), blend)
    if condition in sampler.accepts:
        sampler.trajectory(request)
        return
    for way in (sampler.trajectory, sampler.sample):
        with pytest.raises(SamplerError, match=f"^{condition}: this sampler"):
            way(request)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"label": torch.tensor([0, 3])}, r"label: expected class numbers 0 to 2, found \[0, 3\]"),
        ({"label": torch.tensor([-1, 0])}, "label: expected class numbers 0 to 2"),
        ({"prompt": ("a",)}, "prompt: expected one for each of 2 seeds, found 1"),
        ({"source": Source(torch.zeros(2, 1, 8, 8), 0.5)}, "source: expected images 1x16x16, found 1x8x8"),
    ],
)
def test_values_that_do_not_fit_are_refused(conditions, message):
    request = Request(SEEDS, None, Conditions(**conditions))
    with pytest.raises(SamplerError, match=message):
        refuse_unfit(request, Takes({"label", "prompt", "source"}, "images", (1, 16, 16), 3))


@pytest.mark.parametrize("name", [name for name in families() if build(name).conditional])
def test_a_request_without_classes_is_drawn_or_refused_in_a_line(name):
    sampler = build(name)
    blends = [None, Blend(SEEDS, torch.zeros(2), label=torch.tensor([0, 1]))]
    for blend in blends[: 1 + (BLEND in sampler.accepts)]:
        request = Request(SEEDS, sampler.Settings(**fast(name)), blend=blend)
        if not sampler.needs_class:
            assert len(sampler.sample(request)) == 2
            continue
        with pytest.raises(SamplerError, match="^label: this sampler draws no [a-z]+ without a class; expected one"):
            sampler.trajectory(request)


def test_rows_are_taken_in_any_order():
    source = Source(torch.zeros(2, 1, 16, 16), 0.5)
    request = Request(SEEDS, None, Conditions(**GIVEN, source=source), Blend(SEEDS, torch.zeros(2), prompt=("e", "f")))
    taken = request.take([1, 1, 0])
    assert taken.seeds.tolist() == [2, 2, 1]
    assert taken.conditions.prompt == ("b", "b", "a") and taken.blend.prompt == ("f", "f", "e")
    assert len(taken.conditions.source) == 3 and taken.conditions.source.strength == 0.5
