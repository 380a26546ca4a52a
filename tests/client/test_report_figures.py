"""Laws of ``client/report_figures``: a chart's lines are its curve, and its words say the same."""

import numpy as np
import pytest

from client.report_figures import HEIGHT, WIDTH, charts_of

NOTHING = {"n": [], "confidence": [], "accuracy": [], "interval": []}
ROC = {"false_positive_rate": [0.0, 0.0, 0.5, 1.0], "true_positive_rate": [0.0, 0.6, 1.0, 1.0]}


def figures(**classes: dict) -> dict:
    empty = {"roc": None, "precision_recall": None, "decision": None}
    return {
        "classes": {name: {**empty, **of} for name, of in classes.items()},
        "reliability": NOTHING,
    }


def points(text: str) -> np.ndarray:
    return np.array([pair.split(",") for pair in text.split()], float)


def test_nothing_known_is_nothing_drawn() -> None:
    """Without curves and bins there are no charts."""
    assert charts_of(figures(ill={}), {"ill": 0.0}) == []


def test_a_roc_curve_runs_from_corner_to_corner() -> None:
    """The y axis points up; steps stay steps; the words give the heights that the curve has."""
    (chart,) = charts_of(figures(ill={"roc": ROC}), {"ill": 0.5})
    chance, line = chart.lines
    drawn = points(line.points)
    assert drawn[0].tolist() == [0, HEIGHT]
    assert drawn[-1].tolist() == [WIDTH, 0]
    assert drawn[1].tolist() == [0, pytest.approx(0.4 * HEIGHT)]
    assert (chance.style, line.name) == ("rest", "ill")
    assert "0.64 at 0.05" in chart.text


def test_each_class_has_its_line() -> None:
    """Classes share the chart of the ROC and differ in style; each has a decision curve."""
    decision = {"probability": [0.1, 0.9], "net_benefit": [0.3, 0.2], "treat_all": [0.3, -4.0]}
    both = {"roc": ROC, "decision": decision}
    charts = charts_of(figures(a=both, b=both), {"a": 0.5, "b": 0.5})
    assert [chart.title for chart in charts] == ["ROC", "Decision curve: a", "Decision curve: b"]
    assert [line.style for line in charts[0].lines] == ["rest", "c0", "c1"]
    assert "at 1 of 2 thresholds, between 0.90 and 0.90" in charts[1].text


def test_lines_stay_within_the_drawing() -> None:
    """What treating everybody costs at high thresholds is cut off, not drawn over the page."""
    decision = {
        "probability": [0.1, 0.5, 0.9],
        "net_benefit": [0.3, 0.2, 0.1],
        "treat_all": [0.3, 0.0, -8.0],
    }
    (chart,) = charts_of(figures(ill={"decision": decision}), {"ill": 0.4})
    for line in chart.lines:
        assert points(line.points)[:, 1].min() >= 0
        assert points(line.points)[:, 1].max() <= HEIGHT


def test_reliability_has_a_dot_for_each_bin() -> None:
    """A dot stands at confidence and accuracy, with its interval where there is one."""
    bins = {
        "n": [4, 16],
        "confidence": [0.6, 0.9],
        "accuracy": [0.5, 1.0],
        "interval": [[0.2, 0.8], None],
    }
    (chart,) = charts_of({"classes": {}, "reliability": bins}, {})
    one, two = chart.dots
    assert (one.x, one.y) == (0.6 * WIDTH, 0.5 * HEIGHT)
    assert (one.low, one.high) == (pytest.approx(0.8 * HEIGHT), pytest.approx(0.2 * HEIGHT))
    assert (two.low, two.high) == (0, 0)
    assert one.radius < two.radius
    assert "said 0.60, right 0.50 of 4" in chart.text


def test_precision_is_told_beside_the_prevalence() -> None:
    """A precision says little without the share of cases that are of the class."""
    curve = {"recall": [0.5, 1.0], "precision": [1.0, 0.5]}
    (chart,) = charts_of(figures(ill={"precision_recall": curve}), {"ill": 0.25})
    assert "precision 0.60 at a recall of 0.9, where 0.25" in chart.text
