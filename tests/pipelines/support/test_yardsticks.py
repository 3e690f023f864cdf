"""Guards relative to what is known of the data."""

import pytest

from components.errors import InputError
from components.metrics.figures import named
from pipelines.support.yardsticks import Yardsticks, in_figures
from tests.pipelines.support.test_policy import candidate, figure, policy

YARDSTICKS = Yardsticks(5, named(figure("judge_accuracy", 0.5)), named(figure("recall", 0.8)))


@pytest.mark.parametrize(
    ("name", "bound", "least"),
    [
        ("label_agreement", {"at_least": 0.9, "of": "judge_accuracy"}, 0.45),
        ("classes_hit", {"at_least": 0.8, "of": "classes"}, 4),
        ("recall", {"at_least": 0.5, "of": "real"}, 0.4),
        ("recall", {"at_least": 0.5}, 0.5),
    ],
)
def test_a_relative_bound_is_a_share_of_what_is_known_of_the_data(name, bound, least):
    measured = [candidate(classes_hit=5, recall=0.6)]
    (found,) = in_figures(policy(**{name: bound}), YARDSTICKS, measured).guards.items()
    assert found[0] == name and found[1].at_least == pytest.approx(least) and found[1].of is None


def test_guards_on_labels_hold_only_where_there_are_labels():
    unlabelled = [candidate(label_agreement=None, recall=0.6)]
    guards = policy(
        label_agreement={"at_least": 0.9, "of": "judge_accuracy"}, classes_hit={"at_least": 10}, recall={"at_least": 1}
    )
    assert list(in_figures(guards, Yardsticks(0, {}, {}), unlabelled).guards) == ["recall"]
    with pytest.raises(InputError, match=r"guards\.recall\.of: no 'judge' to .* expected one of classes, real"):
        in_figures(policy(recall={"at_least": 1, "of": "judge"}), YARDSTICKS, unlabelled)
