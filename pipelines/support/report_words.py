"""Numbers of the report as a person reads them."""

from __future__ import annotations

from components.metrics.figures import Definition, Figure

NONE = "\N{EN DASH}"  # in place of a figure


def number(value: float) -> str:
    """A number as a person reads it: three digits or so."""
    if isinstance(value, int) or value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def value_text(definition: Definition, value: float) -> str:
    """A figure's value as a person reads it: shares in percent, counts whole where they are, units behind."""
    if definition.kind == "share":
        return f"{100 * value:.1f}%"
    whole = definition.kind == "count" and value == int(value)
    text = number(int(value) if whole else value)
    return f"{text} {definition.unit}" if definition.unit else text


def figure(one: Figure | None) -> str:
    """A figure's value; a dash where there is none."""
    return NONE if one is None else value_text(one.definition, one.value)


def interval(one: Figure | None, between: str = f" {NONE} ") -> str:
    """A figure's interval; empty where there is none."""
    if one is None or one.interval is None:
        return ""
    return between.join(value_text(one.definition, end) for end in one.interval)


def duration(seconds: float | None) -> str:
    """As a person reads it: seconds, or minutes and seconds."""
    if seconds is None:
        return NONE
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
