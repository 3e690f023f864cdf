"""Figures: named, described once, as files keep them, and compared by the way that is better."""

import json

import pytest
import torch

from components.errors import ConfigError
from components.metrics.figures import (
    Definition,
    as_json,
    definitions,
    definitions_as_json,
    from_json,
    named,
    under,
    values,
)

LOSS = Definition(name="loss", label="loss", explanation="of nothing", kind="distance", better="lower", unit="nats")
SHARE = Definition(name="share", label="share", explanation="of nothing", kind="share", better="higher")


def test_what_is_absent_or_not_finite_has_no_name():
    found = named(LOSS.figure(torch.tensor(2.0)), None, SHARE.figure(float("inf")))
    assert values(found) == {"loss": 2.0}
    assert "share" not in found


def test_the_better_way_decides_what_costs_more():
    assert LOSS.cost(1.0) < LOSS.cost(2.0)
    assert SHARE.cost(0.9) < SHARE.cost(0.5)


def test_figures_come_back_from_a_file_whole_and_in_order():
    first = named(LOSS.figure(2.0, (1.0, 3.0)))
    second = named(SHARE.figure(0.5), LOSS.figure(1.0))
    stored = json.loads(json.dumps([as_json(first), as_json(second), definitions_as_json([first, second])]))
    defined = stored.pop()
    assert [one["name"] for one in defined] == ["loss", "share"], "each once"
    back = [from_json(one, defined, "p1", "file") for one in stored]
    assert back == [under("p1", first), under("p1", second)]
    assert list(back[1]) == ["loss", "share"]
    assert definitions(back) == {"loss": LOSS, "share": SHARE}


def test_a_malformed_definition_is_named():
    with pytest.raises(ConfigError, match=r"file\.definitions\.kind: "):
        from_json({"figures": {}, "intervals": {}}, [LOSS.model_dump() | {"kind": "mood"}], None, "file")
