"""Intervals of a site's own figures: a bootstrap over patients.

Images of one patient resemble one another, so whole patients are drawn, with replacement and with
all their images (for clustered test data Obuchowski 1997 makes the same choice of the unit). The
ends are those of BCa (Efron 1987; Efron and Tibshirani 1993, section 14.3): percentiles of the
draws, moved for their bias and skewness. On simulated scores of 40 patients with an AUROC of 0.96
plain percentiles held the truth in 84 of 100 intervals, BCa in 89; at 0.86 in 90 and 94.

What a bootstrap cannot know is not given: with fewer than ``LEAST_PATIENTS`` patients of a class
there is no interval of what counts that class; where all draws give the same, a proportion of 0 or
1 has Wilson's interval of as many patients, and anything else has none. The calibration error of a
draw is larger than that of the patients, for the reason for which theirs is larger than the truth;
its percentiles are reflected at the figure (Davison and Hinkley 1997, section 5.2).

Shapes: N images (or patients' cases), P patients, D draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from client.weighted_metrics import NAMES, Cases, metrics_of
from common.intervals import LEVEL, wilson
from common.ranking import Floats, Ints

DRAWS = 2000
LEAST_PATIENTS = 5
"""Patients of a class below which draws say little: one in a hundred lacks all of four."""
_MOST_GROUPS = 500
"""Leavings-out of patients, at most."""
_AT_A_TIME = 2_000_000
"""Numbers in a matrix of weights, to bound memory."""
_DEFINED = 0.9
"""Share of the draws that must define a figure; else the draws are of another one."""
_OF_ALL = ("accuracy", "brier", "calibration_error", "loss")
"""Metrics that need no class in particular."""


@dataclass(frozen=True)
class Estimate:
    """One figure with its interval."""

    value: float | None
    """None where it is not defined."""
    low: float | None
    high: float | None
    """Ends of the interval; None where there is none."""
    reason: str = ""
    """Why something is None, or how the interval was made if not from draws."""


def intervals(cases: Cases, *, seed: int, draws: int = DRAWS) -> dict[str, Estimate]:
    """Return every metric with its interval of 95 %.

    Args:
        cases: What a model says, and what is true.
        seed: Of the draws.
        draws: How many.
    """
    if not len(cases.labels):
        return dict.fromkeys(NAMES, Estimate(None, None, None, "there are no patients"))
    values = metrics_of(cases, np.ones((1, len(cases.labels))))
    drawn = _drawn([cases], draw_patients(cases, seed=seed, draws=draws))[0]
    without = _drawn([cases], _without_each(cases))[0]
    return {
        name: _estimate(name, float(values[name][0]), drawn[name], without[name], cases)
        for name in NAMES
    }


def differences(one: Cases, other: Cases, *, seed: int, draws: int = DRAWS) -> dict[str, Estimate]:
    """Return ``one`` minus ``other`` in every metric, with the interval of the paired difference.

    Both are asked on the same draws, so what makes patients easy or hard falls out.

    Args:
        one: What a model says.
        other: What another model says of the same patients, in the same order.
        seed: Of the draws.
        draws: How many.

    Raises:
        ValueError: They are not of the same patients.
    """
    if not (np.array_equal(one.labels, other.labels) and np.array_equal(one.owners, other.owners)):
        raise ValueError("two models can be compared on the same patients alone")
    if not len(one.labels):
        return dict.fromkeys(NAMES, Estimate(None, None, None, "there are no patients"))
    weights = np.ones((1, len(one.labels)))
    values = [metrics_of(model, weights) for model in (one, other)]
    drawn = _drawn([one, other], draw_patients(one, seed=seed, draws=draws))
    without = _drawn([one, other], _without_each(one))

    apart = _differ_by(one, other)

    def minus(found: Sequence[Mapping[str, Floats]], name: str) -> Floats:
        return found[0][name] - found[1][name]

    return {
        name: _estimate(
            name,
            float(minus(values, name)[0]),
            minus(drawn, name),
            minus(without, name),
            one,
            paired=True,
        )
        if apart.get(name, LEAST_PATIENTS) >= LEAST_PATIENTS or np.isnan(minus(values, name)[0])
        else Estimate(
            float(minus(values, name)[0]),
            None,
            None,
            f"the models differ on fewer than {LEAST_PATIENTS} patients",
        )
        for name in NAMES
    }


def _differ_by(one: Cases, other: Cases) -> dict[str, int]:
    """Return on how many patients the two differ, by each metric that is counted.

    Draws of a single such patient all lie on one side of no difference, whatever the truth.
    """
    apart = one.logits.argmax(axis=1) != other.logits.argmax(axis=1)
    ill = one.labels == one.positive
    by_name = dict.fromkeys(("accuracy", "balanced_accuracy", "precision", "f1"), apart)
    by_name |= {"sensitivity": apart & ill, "specificity": apart & ~ill}
    if one.positive is None:
        by_name = dict.fromkeys(by_name, apart)
    return {name: len(np.unique(one.owners[which])) for name, which in by_name.items()}


def _drawn(models: Sequence[Cases], weights: Ints) -> list[dict[str, Floats]]:
    """Return the metrics of each model, (D,) each, from how often each patient counts, (D, P)."""
    step = max(1, _AT_A_TIME // len(models[0].labels))
    found = []
    for cases in models:
        parts = [
            metrics_of(cases, weights[start : start + step, cases.owners])
            for start in range(0, len(weights), step)
        ]
        found.append({name: np.concatenate([part[name] for part in parts]) for name in NAMES})
    return found


def _without_each(cases: Cases) -> Ints:
    """Return (G, P): each patient in turn is left out, of many patients one in G at a time.

    What is left out together changes a figure by the sum of what each would, so that sums of
    squares and cubes, which are all that is asked of them, stay what they are on average.
    """
    n = int(cases.owners.max()) + 1
    groups = min(n, _MOST_GROUPS)
    weights: Ints = (np.arange(n) % groups != np.arange(groups)[:, np.newaxis]).astype(np.int64)
    return weights


def draw_patients(cases: Cases, *, seed: int, draws: int) -> Ints:
    """Return how often each patient is drawn, (D, P); P of them each time.

    A draw without a class that the patients have would leave other metrics than theirs: it is
    drawn again. With ``LEAST_PATIENTS`` of a class that concerns less than one in a hundred.

    Args:
        cases: Whose patients are drawn.
        seed: Of the draws.
        draws: How many.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    present = np.unique(cases.labels)
    member = np.zeros((int(cases.owners.max()) + 1, len(present)), bool)
    member[cases.owners, np.searchsorted(present, cases.labels)] = True
    needed = member[:, member.sum(axis=0) >= LEAST_PATIENTS]
    n, kept = len(member), np.zeros((0, len(member)), np.int64)
    while len(kept) < draws:
        weights = rng.multinomial(n, np.full(n, 1 / n), size=draws)
        whole = ((weights @ needed.astype(np.int64)) > 0).all(axis=1)
        kept = np.concatenate([kept, weights[whole]])[:draws]
    return kept


def patients_of_classes(cases: Cases) -> Ints:
    """Return the number of patients of each class, (K,)."""
    k = cases.logits.shape[1]
    pairs = np.unique(np.stack([cases.labels, cases.owners]), axis=1)
    return np.bincount(pairs[0], minlength=k)


def _too_few(name: str, cases: Cases) -> str:
    """Say why a metric has no interval; empty where it can have one."""
    counts, positive = patients_of_classes(cases), cases.positive
    if name in _OF_ALL:
        least = len(np.unique(cases.owners))
    elif positive is not None and name in {"sensitivity", "specificity"}:
        least = int(counts[positive if name == "sensitivity" else 1 - positive])
    else:
        present = counts[counts > 0]
        least = int(present.min())
    if least >= LEAST_PATIENTS:
        return ""
    return f"fewer than {LEAST_PATIENTS} patients of a class: too few for an interval"


def _estimate(
    name: str,
    value: float,
    drawn: Floats,
    without: Floats,
    cases: Cases,
    *,
    paired: bool = False,
) -> Estimate:
    """Return a figure, or a ``paired`` difference, and its interval where it can have one."""
    if np.isnan(value):
        return Estimate(None, None, None, "these patients leave it undefined")
    if reason := _too_few(name, cases):
        return Estimate(value, None, None, reason)
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < _DEFINED * len(drawn):
        return Estimate(value, None, None, "many draws leave it undefined")
    if np.ptp(defined) == 0 and paired:
        return Estimate(value, None, None, "no draw tells the two apart")
    if np.ptp(defined) == 0:
        return _without_width(name, value, cases)
    reflected = name == "calibration_error" and not paired
    ends = _reflected(value, defined) if reflected else _ends(value, defined, without)
    return Estimate(value, *ends)


def _ends(value: float, drawn: Floats, without: Floats) -> tuple[float, float]:
    """Return the ends of BCa; Efron and Tibshirani (1993), equations 14.9 to 14.15.

    Where all draws lie on one side of the figure, or the figure without a patient is not defined,
    what cannot be corrected is not: then the ends are plain percentiles, or corrected for bias.

    Args:
        value: The figure.
        drawn: (D,), not all the same.
        without: (G,), the figure without each patient.
    """
    level = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    below = float((drawn < value).mean() + (drawn == value).mean() / 2)
    if 0 < below < 1:
        away = without.mean() - without  # NaN if one is
        spread = float((away**2).sum()) ** 1.5
        skew = float((away**3).sum()) / (6 * spread) if spread > 0 else 0.0
        moved = ndtri(below) + ndtri(level)
        if np.all(skew * moved < 1):
            level = ndtr(ndtri(below) + moved / (1 - skew * moved))
    low, high = np.quantile(drawn, level).tolist()
    return low, high


def _reflected(value: float, drawn: Floats) -> tuple[float, float]:
    """Return the percentiles of the draws reflected at the figure, which lies within."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return max(min(2 * value - high, value), 0.0), min(max(2 * value - low, value), 1.0)


def _without_width(name: str, value: float, cases: Cases) -> Estimate:
    """Return Wilson's interval of a proportion that is 0 or 1; the draws all give the same."""
    n = _behind(name, cases)
    interval = wilson(value * n, n) if value in (0.0, 1.0) else None
    if interval is None:
        return Estimate(value, None, None, "every draw gives the same value")
    return Estimate(value, *interval, f"Wilson's interval of {n} patients")


def _behind(name: str, cases: Cases) -> int:
    """Return how many patients a proportion counts; 0 of what is no proportion of patients."""
    positive, predicted = cases.positive, cases.logits.argmax(axis=1)
    if name == "accuracy":
        counted = np.ones(len(cases.labels), bool)
    elif positive is None:
        return 0
    elif name in {"sensitivity", "specificity"}:
        counted = (cases.labels == positive) == (name == "sensitivity")
    elif name == "precision":
        counted = predicted == positive
    else:
        return 0
    return len(np.unique(cases.owners[counted]))
