"""What a site keeps to itself because too few patients stand behind it.

What is reported, and what could be had from it by subtraction:

- A state of one task's validation or test patients: all figures of that split in one piece, with
  the number of images of each class. If a class has too few patients the whole state is left out,
  so that nothing in what is left completes it. No total over splits, over tasks or over classes is
  reported beside the states; what the coordinator pools, it pools from the states that came.
- Where patients have several images, a second state of the same split counts each patient once. The
  same patients stand behind both, so they are one piece: neither leaves if one has too few.
- With both, patients with images of more than one class can be counted, and those with images of
  one alone: their number is the difference of two others. Where it is too small the state of
  patients is left out; that of images says no more than it does where it is the only one.
- Two tasks may be put on the same patients. Where the patients of a class, or of all classes, of
  one task are among those of another, the difference of the two numbers counts the patients that
  the smaller lacks. If these are too few, one of the two states is left out.
- The numbers that the site declares: patients and images of each split, unreadable images, training
  patients over all tasks. They count no class, and complete no state that was left out. They follow
  ``limits.patients``, and not ``limits.minimum_patients``: weights need them.
- Rounds of the same data repeat the same numbers. After patients were added, the difference of two
  rounds counts those who came; and two studies that deal the held-out patients otherwise differ by
  some. Nothing here sees that, as it looks at one reply.

Rounding is for what is declared, and for the weights and steps that follow from it. Numbers within
a state are exact where it is reported at all: a state that did not agree with itself says nothing.

Histograms: a bin holds k patients for sure if it holds more images of a label than those k - 1
patients have together who have most of them. That can be told from the state itself, and is more
than needed where patients have many images.

The losses at several temperatures and the sums of squares are each one number over all images of a
state, as the sum of the losses is; but so many exact sums of so few images are equations that their
log-odds could be solved from. Beside a full histogram, which tells log-odds to 1.5 %, they say
nothing new. Where bins are merged they are rounded to four digits. They then tell how wide the
log-odds lie, and no longer where each one does: losses at neighbouring temperatures hardly differ,
so that what an image alone adds is lost in the rounding.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby, pairwise, product
from typing import Any, NamedTuple, Self

import numpy as np

from client.config import Limits
from common import metrics
from common.arrays import Array, Arrays
from common.errors import ReplyError
from common.held_out import HELD_OUT, SPLIT_OF
from common.messages import Order, Reply, Training, rounded
from common.metrics import MetricState
from common.ranking import BINS, Floats, Ints

Key = tuple[str, str]
"""A task, and the name of a state of one of its splits."""


class Behind(NamedTuple):
    """Who stands behind the figures of one state; known to the site alone."""

    classes: tuple[Mapping[str, int], ...]
    """For each class, how many images of it a patient has, by the patient's keyed hash; in a state
    of patients one, a patient's case."""


def behind_of(labels: Sequence[int], patients: Sequence[str], n_classes: int) -> Behind:
    """Return who stands behind the figures of N images.

    Args:
        labels: Index of each image's class, N integers in [0, n_classes).
        patients: Keyed hash of each image's patient, N of them.
        n_classes: Number of the task's classes.
    """
    classes: list[Counter[str]] = [Counter() for _ in range(n_classes)]
    for label, patient in zip(labels, patients, strict=True):
        classes[label][patient] += 1
    return Behind(tuple(classes))


def stated(count: int, limits: Limits) -> int:
    """Return a number of patients, images or steps as the site states it: as it is, or rounded."""
    return rounded(count) if limits.patients == "rounded" else count


def suppress(reply: Reply, order: Order, limits: Limits, behind: Mapping[Key, Behind]) -> Reply:
    """Return ``reply`` without the figures that too few patients stand behind.

    Bins of histograms are merged first, where the site demands it. What is of no known form stays
    as it is: ``client/egress.py`` holds it back.

    Args:
        reply: What the site would answer.
        order: What was asked.
        limits: The hospital's.
        behind: Who stands behind the states, by task and split.
    """
    if isinstance(reply.training, Training) and type(reply.training.steps) is int:
        # Steps count the images, in batches.
        steps = stated(reply.training.steps, limits)
        reply = reply._replace(training=reply.training.model_copy(update={"steps": steps}))
    reported: Any = reply.metrics  # of a known form or not
    if not isinstance(reported, Mapping):
        return reply
    states = {}
    for key in behind.keys() & reported.keys():
        if (state := _state_of(reported[key], order, key)) is not None:
            least = _Least.of(order, key, limits, behind[key])
            states[key] = _blurred(_merged(state, least), limits)
    dropped = withheld(states, order, limits, behind)
    kept: dict[Key, Arrays] = {
        key: metrics.to_arrays(states[key]) if key in states else arrays
        for key, arrays in reported.items()
        if key not in dropped
    }
    return reply._replace(metrics=kept)


def withheld(
    states: Mapping[Key, MetricState], order: Order, limits: Limits, behind: Mapping[Key, Behind]
) -> dict[Key, str]:
    """Return which of the states may not leave together, and why; without those the rest may.

    Args:
        states: States by task and split, each a key of ``behind``.
        order: What was asked.
        limits: The hospital's.
        behind: Who stands behind them.
    """
    found: dict[Key, str] = {}
    kept: list[Key] = []
    for _, piece in groupby(sorted(states), key=lambda key: (key[0], SPLIT_OF[key[1]])):
        images, *patients = piece  # that of images is the first by name
        reasons = [
            reason
            for key in (images, *patients)
            if (reason := _reason(key, states[key], order, limits, behind, kept))
        ]
        if images[1] not in HELD_OUT:
            reasons.append("the state of its images is not among them")
        if reasons:
            found |= dict.fromkeys((images, *patients), reasons[0])
            continue
        kept.append(images)
        for key in patients:
            if _tell_few_apart(behind[images], behind[key], limits):
                found[key] = "too few patients make the difference to the state of their images"
            else:
                kept.append(key)
    return found


def _reason(
    key: Key,
    state: MetricState,
    order: Order,
    limits: Limits,
    behind: Mapping[Key, Behind],
    kept: Iterable[Key],
) -> str:
    """Return why a state may not leave beside those that are kept; empty where it may."""
    if _has_small_class(state, behind[key], limits):
        return "a class has too few patients"
    if not _Least.of(order, key, limits, behind[key]).holds(state):
        return "a bin of a histogram has too few patients"
    if not _is_blurred(state, limits):
        return "losses are told more exactly than bins are"
    if any(differ_by_few(behind[key], behind[other], limits) for other in kept):
        return "too few patients make the difference to another task"
    return ""


def _state_of(arrays: Arrays, order: Order, key: Key) -> MetricState | None:
    """Return a state of a reply; None if it is none, or of no task of the study."""
    task = order.study.tasks.get(key[0])
    if task is None:
        return None
    try:
        return metrics.from_arrays(arrays, len(task.classes), task.positive_index)
    except (ReplyError, AttributeError, TypeError, ValueError):
        return None


class _Least(NamedTuple):
    """Images that are surely of ``limits.histogram_patients`` patients."""

    by_label: Array
    """(C, 2): of the negatives and the positives of each ranked class."""
    of_all: int

    @classmethod
    def of(cls, order: Order, key: Key, limits: Limits, behind: Behind) -> Self:
        def least(classes: Iterable[int]) -> int:
            images: Counter[str] = sum((Counter(behind.classes[k]) for k in classes), Counter())
            return sum(heapq.nlargest(limits.histogram_patients - 1, images.values())) + 1

        every, positive = range(len(behind.classes)), order.study.tasks[key[0]].positive_index
        ranked = every if positive is None else (positive,)
        by_label = [[least(k for k in every if k != c), least((c,))] for c in ranked]
        return cls(np.array(by_label), least(every))

    def holds(self, state: MetricState) -> bool:
        """Say whether every bin in use holds enough."""
        by_label = self.by_label[..., np.newaxis]
        tables = (state.histogram, by_label), (state.histogram_upper, by_label)
        return all(
            bool(np.all((table == 0) | (table >= least)))
            for table, least in (*tables, (state.calibration[:, 0], self.of_all))
        )


def _has_small_class(state: MetricState, behind: Behind, limits: Limits) -> bool:
    """Say whether a class has too few patients; where one is enough, classes may be missing."""
    # Every patient has an image: as many images as patients must be there at least.
    images = state.confusion.sum(axis=1).tolist()
    patients = [len(group) for group in behind.classes]
    few: bool = min((*images, *patients)) < limits.minimum_patients
    return few and limits.minimum_patients > 1


def differ_by_few(one: Behind, other: Behind, limits: Limits) -> bool:
    """Say whether a number of one task, taken from one of another, leaves too few patients."""

    def counted(behind: Behind) -> list[frozenset[str]]:
        classes = [frozenset(group) for group in behind.classes if group]
        return [*classes, frozenset().union(*classes)]

    return any(
        0 < abs(len(a) - len(b)) < limits.minimum_patients and (a < b or b < a)
        for a, b in product(counted(one), counted(other))
    )


def _tell_few_apart(images: Behind, patients: Behind, limits: Limits) -> bool:
    """Say whether the two states of a split count too few patients between them."""
    classes_of = Counter(chain.from_iterable(images.classes))
    mixed = sum(number > 1 for number in classes_of.values())
    return 0 < mixed < limits.minimum_patients or differ_by_few(images, patients, limits)


def _merged(state: MetricState, least: _Least) -> MetricState:
    """Merge neighbouring bins until each holds no image of a label, or enough of it.

    Where even all bins together do not, they are merged all the same, and the state is withheld.
    """
    if least.holds(state) or not np.array_equal(state.histogram, state.histogram_upper):
        return state
    pairs = [_spread(*row) for row in zip(state.histogram, least.by_label, strict=True)]
    lower, upper = (np.stack(side) for side in zip(*pairs, strict=True))
    calibration = _gathered(state.calibration, least.of_all)
    return replace(state, histogram=lower, histogram_upper=upper, calibration=calibration)


def _blurred(state: MetricState, limits: Limits) -> MetricState:
    """Round, where bins are merged, the sums that together would say more than the bins."""
    if limits.histogram_patients == 1:
        return state
    # Of squares the part by which images differ: rounding the whole could be more than that.
    alike = np.array([state.loss_sum, state.brier_sum]) ** 2 / max(state.n_images, 1)
    squares = alike + _four_digits(np.maximum(state.squares - alike, 0.0))
    return replace(state, squares=squares, scaled_loss=_four_digits(state.scaled_loss))


def _is_blurred(state: MetricState, limits: Limits) -> bool:
    blurred = _blurred(state, limits)
    # Adding and subtracting what images have alike moves squares by their own rounding.
    squares = np.allclose(state.squares, blurred.squares, rtol=1e-12, atol=0.0)
    return squares and np.array_equal(state.scaled_loss, blurred.scaled_loss)


def _four_digits(values: Floats) -> Floats:
    return np.array([float(f"{value:.3e}") for value in values])


def _spread(histogram: Ints, least: Array) -> tuple[Ints, Ints]:
    """Return the (2, BINS) counts of merged bins, once at their lowest and once at their highest.

    Merged bins reach half-way to their neighbours: their ends are no image's own bin.
    """
    used = np.flatnonzero(histogram.sum(axis=0))
    runs = _runs(histogram[:, used], least)
    lower, upper = np.zeros_like(histogram), np.zeros_like(histogram)
    for number, (first, last) in enumerate(runs):
        begin = (used[first - 1] + used[first]) // 2 + 1 if number else 0
        end = (used[last] + used[last + 1]) // 2 if number < len(runs) - 1 else BINS - 1
        if first == last:
            begin = end = used[first]
        counts = histogram[:, used[first] : used[last] + 1].sum(axis=1)
        lower[:, begin] += counts
        upper[:, end] += counts
    return lower, upper


def _gathered(calibration: Floats, least: int) -> Floats:
    """Merge bins of the calibration table; its error can only become smaller by that."""
    used = np.flatnonzero(calibration[:, 0])
    merged = np.zeros_like(calibration)
    for first, last in _runs(calibration[np.newaxis, used, 0], np.array([least])):
        merged[used[first]] = calibration[used[first] : used[last] + 1].sum(axis=0)
    return merged


def _runs(counts: Array, least: Array) -> list[tuple[int, int]]:
    """Cut bins into runs, from the lowest up, each as short as it can be.

    Args:
        counts: (L, U) counts of L labels in the U bins in use.
        least: (L,), what each run holds at least of each label that it holds at all.

    Returns:
        First and last bin of each run; what is left over at the end joins the runs before.
    """
    before = np.concatenate([np.zeros((len(counts), 1)), counts.cumsum(axis=1)], axis=1)

    def enough(begin: int, end: int) -> bool:
        held = before[:, end] - before[:, begin]
        return bool(np.all((held == 0) | (held >= least)))

    ends = [0]
    for end in range(1, counts.shape[1] + 1):
        if enough(ends[-1], end):
            ends.append(end)
    if ends[-1] < counts.shape[1]:
        last = counts.shape[1]
        while len(ends) > 1 and not enough(ends[-1], last):
            ends.pop()
        ends.append(last)
    return [(begin, end - 1) for begin, end in pairwise(ends)]
