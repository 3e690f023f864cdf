"""Plots as inline SVG: readable on light and dark pages, named on hover, and a function of their data alone.

Colours and letter sizes come from the page's style sheet, through the classes that are set here. matplotlib was tried:
four seconds of a core for forty curves, 11 kB each, in fixed colours and without names on hover. A library that draws
in the browser would need a script, which the page does without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito 2008: told apart with any colour vision, and on white as on black
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_LOG_FROM = 20  # an axis whose values span a larger ratio is logarithmic
Box = tuple[float, float, float, float]  # left, top, right, bottom
_PADDING = 0.06  # of an axis' length, on either side of its values


@dataclass(frozen=True)
class Point:
    """`name` is shown on hover, `mark` beside the point. Points of one `group` share a colour, those of one `path` a
    line."""

    x: float
    y: float
    group: str
    name: str
    mark: str = ""
    ringed: bool = False
    path: str = ""


@dataclass(frozen=True)
class Line:
    """`band`: the lower and the upper ends of an interval around it, as many as points; `faint`: beside the point."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """Places values between 0 and 1, linearly or by their logarithm."""

    low: float
    high: float
    log: bool

    @staticmethod
    def around(values: Sequence[float], log: bool | None = None) -> Axis:
        """An axis that holds all values with room around them. Without `log` their span decides."""
        low, high = min(values), max(values)
        log = (low > 0 and high / low >= _LOG_FROM) if log is None else log
        if log:
            room = max((high / low) ** _PADDING, 1.05)
            return Axis(low / room, high * room, True)
        room = _PADDING * (high - low) or abs(high) * _PADDING or 1.0
        return Axis(low - room, high + room, False)

    def place(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the axis, at most `most`."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(magnitude * m for m in (1, 2, 5, 10, 20) if (high - low) / (magnitude * m) <= most - 1)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1, 2, 5), (1, 3), (1,)):
        ticks = [part * 10.0**decade for decade in decades for part in parts]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: -(-len(ticks) // most)]


@dataclass(frozen=True)
class Frame:
    """The plot's box within its drawing: sizes in the drawing's own units, as the letters are."""

    x: Axis
    y: Axis
    width: int
    height: int
    left: int = 50
    right: int = 20
    top: int = 10
    bottom: int = 42

    def at(self, x: float, y: float) -> tuple[float, float]:
        across, down = self.width - self.left - self.right, self.height - self.top - self.bottom
        return round(self.left + self.x.place(x) * across, 1), round(self.top + (1 - self.y.place(y)) * down, 1)

    def axes(self, x_label: str, y_label: str) -> list[str]:
        """Grid lines, tick labels and the two titles."""
        parts = []
        base, end = self.height - self.bottom, self.width - self.right
        for tick in self.x.ticks():
            x, _ = self.at(tick, self.y.low)
            parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{self.top}" y2="{base}"/>')
            parts.append(f'<text x="{x}" y="{base + 16}" text-anchor="middle">{_label(tick)}</text>')
        for tick in self.y.ticks():
            _, y = self.at(self.x.low, tick)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{end}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{self.left - 6}" y="{y + 4}" text-anchor="end">{_label(tick)}</text>')
        middle, half = (self.left + end) / 2, (self.top + base) / 2
        parts.append(f'<text x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(x_label)}</text>')
        if y_label:
            turned = f'transform="rotate(-90 12 {half})"'
            parts.append(f'<text x="12" y="{half}" {turned} text-anchor="middle">{escape(y_label)}</text>')
        return parts

    def drawing(self, parts: Sequence[str], description: str) -> str:
        opening = f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(description)}">'
        return "\n".join([opening, *parts, "</svg>"])


def _label(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{round(value, 10):g}"


def pareto_front(points: Sequence[Point], higher_is_better: bool = False) -> list[Point]:
    """The points that no other beats in both x and y, by rising x. Lower is better in x, and in y unless it is said."""
    sign = -1 if higher_is_better else 1
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, sign * point.y)):
        if not front or sign * point.y < sign * front[-1].y:
            front.append(point)
    return front


def trade_off(
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    level: tuple[float, str] | None = None,
    higher_is_better: bool = False,
) -> str:
    """Every point, the Pareto front as a line of steps, and a dashed `level` (y, name) to compare with."""
    levels = [level[0]] if level is not None and level[0] > 0 else []
    ys = [point.y for point in points]
    frame = Frame(Axis.around([point.x for point in points]), Axis.around([*ys, *levels]), 520, 340)
    parts = frame.axes(x_label, y_label)
    if levels:
        _, y = frame.at(frame.x.low, level[0])
        parts.append(f'<line class="level" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="note" x="{frame.left + 6}" y="{y - 5}">{escape(level[1])}</text>')
    front = [frame.at(point.x, point.y) for point in pareto_front(points, higher_is_better)]
    steps = "".join(f"H{x}V{y}" for x, y in front[1:])
    parts.append(f'<path class="front" d="M{front[0][0]} {front[0][1]}{steps}"/>')
    groups = list(dict.fromkeys(point.group for point in points))
    parts += _paths(points, groups, frame)
    places = [frame.at(point.x, point.y) for point in points]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    for point, (x, y) in zip(points, places, strict=True):
        colour = COLOURS[groups.index(point.group) % len(COLOURS)]
        ring = f'<circle class="ring" cx="{x}" cy="{y}" r="10"/>' if point.ringed else ""
        dot = (
            f'<circle cx="{x}" cy="{y}" r="5.5" fill="{colour}"/><circle cx="{x}" cy="{y}" r="16" fill="transparent"/>'
        )
        parts.append(f'<g tabindex="0"><title>{escape(point.name)}</title>{ring}{dot}</g>')
        parts += _mark(point.mark, x, y, frame, taken)
    return frame.drawing(parts, f"{y_label} against {x_label}")


def _paths(points: Sequence[Point], groups: Sequence[str], frame: Frame) -> list[str]:
    """The lines through the points of a path, by rising x."""
    parts = []
    for path in dict.fromkeys(point.path for point in points if point.path):
        along = sorted((point for point in points if point.path == path), key=lambda point: point.x)
        places = " ".join("{},{}".format(*frame.at(point.x, point.y)) for point in along)
        colour = COLOURS[groups.index(along[0].group) % len(COLOURS)]
        parts.append(f'<polyline class="path" stroke="{colour}" points="{places}"/>')
    return parts


def _mark(mark: str, x: float, y: float, frame: Frame, taken: list[Box]) -> list[str]:
    """The text beside a point, at the first place where nothing is in the way; none if something is everywhere."""
    width = 7.5 * len(mark)
    corners = (
        (x + 10, y - 9),
        (x + 10, y + 18),
        (x - 10 - width, y - 9),
        (x - 10 - width, y + 18),
        (x - width / 2, y - 11),
    )
    for left, base in corners:
        box = (left, base - 11, left + width, base + 3)
        within = frame.left <= box[0] and box[2] <= frame.width and box[3] <= frame.height - frame.bottom
        if mark and within and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return [f'<text x="{left:.1f}" y="{base:.1f}">{escape(mark)}</text>']
    return []


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _band(line: Line, frame: Frame, colour: str) -> str:
    """The area between a line's lower and upper ends; of a single point a stroke."""
    low, high = line.band
    if len(line.xs) == 1:
        (x, bottom), (_, top) = frame.at(line.xs[0], low[0]), frame.at(line.xs[0], high[0])
        return f'<line x1="{x}" x2="{x}" y1="{bottom}" y2="{top}" stroke="{colour}" stroke-width="2"/>'
    corners = [*map(frame.at, line.xs, high), *reversed(list(map(frame.at, line.xs, low)))]
    places = " ".join(f"{x},{y}" for x, y in corners)
    return f'<polygon class="band" fill="{colour}" points="{places}"/>'


def curves(lines: Sequence[Line], x_label: str, level: float | None = None) -> str:
    """Lines over a common x, and a dashed `level` to compare with."""
    ys = [y for line in lines for ends in (line.ys, *(line.band or ())) for y in ends]
    ys += [] if level is None else [level]
    frame = Frame(Axis.around([x for line in lines for x in line.xs], log=False), Axis.around(ys), 310, 200)
    parts = frame.axes(x_label, "")
    if level is not None:
        _, y = frame.at(frame.x.low, level)
        parts.append(f'<line class="level" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y}" y2="{y}"/>')
    for number, line in enumerate(lines):
        if line.band is not None:
            parts.append(_band(line, frame, COLOURS[number % len(COLOURS)]))
        colour = COLOURS[number % len(COLOURS)]
        places = " ".join(f"{x},{y}" for x, y in map(frame.at, line.xs, line.ys))
        title = f"<title>{escape(line.name)}</title>"
        if len(line.xs) == 1:
            x, y = frame.at(line.xs[0], line.ys[0])
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}">{title}</circle>')
        else:
            kind = "curve faint" if line.faint else "curve"
            parts.append(f'<polyline class="{kind}" stroke="{colour}" points="{places}">{title}</polyline>')
    return frame.drawing(parts, ", ".join(line.name for line in lines))
