"""Curves of a report as lines of SVG: the page draws them, in its own colours, light and dark.

Every chart has a sentence that says the same without a picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT = 300, 220
"""Of the area of a plot, in units of the drawing."""
_HALVES = tuple((value, f"{value:g}") for value in (0.0, 0.25, 0.5, 0.75, 1.0))
_READ_AT = (0.05, 0.1, 0.2)
_LOWEST = -0.05  # of net benefit: below, a decision is plainly worse than none


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    style: str
    """``c0`` and so on for the classes, ``rest`` for what they are compared with."""
    points: str
    """As SVG's ``polyline`` takes them."""


class Dot(NamedTuple):
    """A point with its interval."""

    x: float
    y: float
    low: float
    high: float
    radius: float


class Chart(NamedTuple):
    """A chart, ready to be drawn."""

    title: str
    x_name: str
    y_name: str
    x_ticks: Sequence[tuple[float, str]]
    """Where, in units of the drawing, and what stands there."""
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    dots: Sequence[Dot]
    text: str
    """What the chart shows, in words."""


class _Axes(NamedTuple):
    low: float
    high: float

    def x(self, value: float) -> float:
        return round(WIDTH * value, 2)

    def y(self, value: float) -> float:
        return round(HEIGHT * (self.high - value) / (self.high - self.low), 2)

    def points(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in zip(xs, ys, strict=True))


_UNIT = _Axes(0.0, 1.0)


def charts_of(figures: Mapping[str, Any], prevalence: Mapping[str, float]) -> list[Chart]:
    """Return every chart that a task's figures can have.

    Args:
        figures: One of ``local_figures.Figures``, as JSON has it.
        prevalence: Share of the cases that are of each ranked class.
    """
    classes = figures["classes"]
    found = [
        _roc({name: one["roc"] for name, one in classes.items() if one["roc"]}),
        _precision_recall(
            {n: one["precision_recall"] for n, one in classes.items() if one["precision_recall"]},
            prevalence,
        ),
        _reliability(figures["reliability"]),
        *(_decision(name, one["decision"]) for name, one in classes.items() if one["decision"]),
    ]
    return [chart for chart in found if chart is not None]


def _unit_chart(
    title: str, names: tuple[str, str], lines: Sequence[Line], dots: Sequence[Dot], text: str
) -> Chart:
    x_ticks = [(_UNIT.x(value), label) for value, label in _HALVES]
    y_ticks = [(_UNIT.y(value), label) for value, label in _HALVES]
    return Chart(title, *names, x_ticks, y_ticks, lines, dots, text)


def _roc(curves: Mapping[str, Any]) -> Chart | None:
    if not curves:
        return None
    told, lines = [], [Line("chance", "rest", _UNIT.points((0, 1), (0, 1)))]
    for number, (name, curve) in enumerate(curves.items()):
        xs, ys = curve["false_positive_rate"], curve["true_positive_rate"]
        lines.append(Line(name, f"c{number % 6}", _UNIT.points(xs, ys)))
        read = ", ".join(f"{_highest(xs, ys, at):.2f} at {at:g}" for at in _READ_AT)
        told.append(f"{name}: true positive rate {read}")
    text = f"By false positive rate, {'; '.join(told)}."
    return _unit_chart("ROC", ("false positive rate", "true positive rate"), lines, (), text)


def _highest(xs: Sequence[float], ys: Sequence[float], at: float) -> float:
    """Return the height of a rising curve at a place, at a step the upper end."""
    reached = [y for x, y in zip(xs, ys, strict=True) if x <= at]
    return max(float(np.interp(at, xs, ys)), max(reached, default=0.0))


def _precision_recall(curves: Mapping[str, Any], prevalence: Mapping[str, float]) -> Chart | None:
    if not curves:
        return None
    told, lines = [], []
    for number, (name, curve) in enumerate(curves.items()):
        xs, ys = curve["recall"], curve["precision"]
        lines.append(Line(name, f"c{number % 6}", _UNIT.points(xs, ys)))
        told.append(
            f"{name}: precision {float(np.interp(0.9, xs, ys)):.2f} at a recall of 0.9, where "
            f"{prevalence[name]:.2f} of the cases are of the class"
        )
    names = ("recall", "precision")
    return _unit_chart("Precision and recall", names, lines, (), "; ".join(told) + ".")


def _reliability(bins: Mapping[str, Any]) -> Chart | None:
    if not bins["n"]:
        return None
    most = max(bins["n"])
    dots = []
    for n, x, y, ends in zip(*(bins[k] for k in ("n", "confidence", "accuracy", "interval")),
                             strict=True):  # fmt: skip
        low, high = ends or (y, y)
        radius = round(2.5 + 4 * float(np.sqrt(n / most)), 2)
        dots.append(Dot(_UNIT.x(x), _UNIT.y(y), _UNIT.y(low), _UNIT.y(high), radius))
    told = "; ".join(
        f"said {x:.2f}, right {y:.2f} of {n}"
        for n, x, y in zip(bins["n"], bins["confidence"], bins["accuracy"], strict=True)
    )
    line = Line("perfectly calibrated", "rest", _UNIT.points((0, 1), (0, 1)))
    names = ("highest probability", "share that is right")
    return _unit_chart("Reliability", names, [line], dots, f"By bin: {told}.")


def _decision(name: str, curve: Mapping[str, Any]) -> Chart | None:
    if not curve["probability"]:
        return None
    xs, net, everybody = (curve[k] for k in ("probability", "net_benefit", "treat_all"))
    axes = _Axes(_LOWEST, max(0.1, 1.05 * max(*net, *everybody)))
    lines = [
        Line("nobody", "rest", axes.points((0, 1), (0, 0))),
        Line("everybody", "all", axes.points(*_above(xs, everybody))),
        Line("model", "c0", axes.points(*_above(xs, net))),
    ]
    steps = np.linspace(0, axes.high / 1.05, 4)
    useful = [x for x, y, z in zip(xs, net, everybody, strict=True) if y > max(z, 0.0)]
    where = (
        f"at {len(useful)} of {len(xs)} thresholds, between {min(useful):.2f} and {max(useful):.2f}"
        if useful
        else "at no threshold"
    )
    return Chart(
        f"Decision curve: {name}",
        "threshold probability",
        "net benefit",
        [(axes.x(value), label) for value, label in _HALVES],
        [(axes.y(float(value)), f"{value:.2f}") for value in steps],
        lines,
        (),
        f"The net benefit is above those of treating everybody and nobody {where}.",
    )


def _above(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the points of a curve that lie within the drawing."""
    kept = [(x, y) for x, y in zip(xs, ys, strict=True) if y >= _LOWEST]
    return [x for x, _ in kept], [y for _, y in kept]
