"""Axes, the Pareto front, and drawings that name what they show."""

import re
import xml.etree.ElementTree as ET

import pytest

from components.evaluation.plots import Axis, Line, Point, curves, pareto_front, trade_off


def test_axes_hold_their_values_with_room():
    for values in ([1, 5, 9], [0.01, 3, 500], [-4, 2], [7], [0], [-3]):
        axis = Axis.around(values)
        assert all(0 < axis.place(value) < 1 for value in values)


def test_a_wide_span_of_positive_values_is_logarithmic():
    assert Axis.around([1, 100]).log
    assert not Axis.around([1, 10]).log and not Axis.around([0, 100]).log and not Axis.around([1, 100], log=False).log
    assert Axis(1, 100, True).place(10) == pytest.approx(0.5)


@pytest.mark.parametrize("ends", [(0, 10), (0.37, 0.42), (-3, 1e5), (0.02, 300), (90, 110)])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_round_within_the_axis_and_few(ends, log):
    if log and ends[0] <= 0:
        pytest.skip("no logarithm")
    axis = Axis(*ends, log)
    ticks = axis.ticks()
    assert len(ticks) <= 6 and all(ends[0] <= tick <= ends[1] for tick in ticks)
    assert len(ticks) >= 2 or log
    assert all(float(f"{tick:.3g}") == pytest.approx(tick) for tick in ticks)


def test_the_front_is_what_nothing_beats_in_both():
    places = [(1, 9), (2, 5), (2, 6), (3, 5), (4, 1), (5, 2)]
    front = pareto_front([Point(x, y, "a", "") for x, y in places])
    assert [(point.x, point.y) for point in front] == [(1, 9), (2, 5), (4, 1)]


def test_every_point_is_named_on_hover_and_escaped():
    points = [
        Point(1, 2, "gan", "gan <1>", "gan"),
        Point(50, 0.5, "ldm", "ldm & 2", ringed=True),
        Point(1, 2, "gan", "3"),
    ]
    svg = ET.fromstring(trade_off(points, "ms", "distance", (0.1, "floor")))
    assert [title.text for title in svg.iter("title")] == ["gan <1>", "ldm & 2", "3"]
    colours = [circle.get("fill") for circle in svg.iter("circle") if (circle.get("fill") or "none").startswith("#")]
    assert colours[0] == colours[2] != colours[1]
    assert len([circle for circle in svg.iter("circle") if circle.get("class") == "ring"]) == 1
    assert "floor" in "".join(svg.itertext())


def test_points_of_a_path_are_joined_by_rising_x_in_their_colour():
    points = [
        Point(8, 1, "student", "8 steps", path="student"),
        Point(4, 4, "teacher", "teacher"),
        Point(1, 3, "student", "1 step", path="student"),
        Point(2, 2, "student", "2 steps", path="student"),
    ]
    svg = ET.fromstring(trade_off(points, "evaluations", "distance"))
    (line,) = (line for line in svg.iter("polyline") if line.get("class") == "path")
    places = [tuple(map(float, place.split(","))) for place in line.get("points").split()]
    assert len(places) == 3 and places == sorted(places)
    assert [y for _, y in places] == sorted(y for _, y in places), "better is drawn lower"
    dots = {dot.get("cx"): dot.get("fill") for dot in svg.iter("circle") if dot.get("r") == "5.5"}
    assert {dots[str(x)] for x, _ in places} == {line.get("stroke")} and len(set(dots.values())) == 2


def test_lower_is_drawn_lower_and_later_to_the_right():
    svg = curves([Line("loss", [0, 10, 20], [4.0, 2.0, 1.0])], "step")
    places = [tuple(map(float, place.split(","))) for place in re.search('points="([^"]+)"', svg)[1].split()]
    assert places == sorted(places) and [y for _, y in places] == sorted(y for _, y in places)


def test_a_line_of_one_report_is_a_dot():
    assert "<circle" in curves([Line("loss", [5], [1.0])], "step")
