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
- The states of an ensemble's members are of the same patients as the state of all of them together
  that counts each patient once. They leave beside that one or not at all, all or none. What the
  ensemble says of a patient is the mean of what its members say, so histograms of few patients can
  be put together: which score of one network belongs to which of another, though not whose they
  are. Merged bins prevent that (``histogram_patients``); where members are scored by their loss,
  all bins of theirs are merged.
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

Bins of histograms are merged (``client/merged_bins.py``) where the hospital asks for it. The losses
at several temperatures and the sums of squares are each one number over all images of a state, as
the sum of the losses is; but so many sums of so few images are equations that their log-odds can be
solved from, and rounding hardly hinders that: with four digits, those of six images are found to
0.08. Beside a full histogram, which tells log-odds to 1.5 %, they say nothing new. Where bins are
merged they stay here.

Correlations of the classes' rankings (``common/joint.py``) tell what histograms do not: how an
image's scores for several classes go together. Of K classes they are K (K - 1) numbers of two
digits, each over all images of the state. Of few images that narrows down which score of one class
belongs to which of another, and gives no score that the full histograms (``histogram_patients`` of
1) do not give already; so they leave beside those. Where bins are merged they stay here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby, product
from typing import Any, NamedTuple

from client.config import Limits
from client.merged_bins import Least, merged
from common import metrics, metrics_wire
from common.arrays import Arrays
from common.errors import ReplyError
from common.held_out import HELD_OUT, MEMBERS, OF_PATIENTS, SPLIT_OF, members_of
from common.messages import Order, Reply
from common.metrics import MetricState
from common.statements import Training, rounded

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
            states[key] = _coarsened(state, _least(order, key, limits, behind), limits)
    dropped = withheld(states, order, limits, behind)
    kept: dict[Key, Arrays] = {
        key: metrics_wire.to_arrays(states[key]) if key in states else arrays
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
    of_members = {key for key in states if key[1] in MEMBERS}
    whole = sorted(states.keys() - of_members)
    for _, piece in groupby(whole, key=lambda key: (key[0], SPLIT_OF[key[1]])):
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
    for _, piece in groupby(sorted(of_members), key=lambda key: key[0]):
        members = list(piece)
        if reason := _reason_of_members(members, states, order, limits, behind, kept):
            found |= dict.fromkeys(members, reason)
    return found


def _reason_of_members(
    members: Sequence[Key],
    states: Mapping[Key, MetricState],
    order: Order,
    limits: Limits,
    behind: Mapping[Key, Behind],
    kept: Iterable[Key],
) -> str:
    """Return why the states of one task's members may not leave; empty where they may."""
    task = members[0][0]
    several = (task, OF_PATIENTS["validation"])
    if (several if several in behind else (task, "validation")) not in kept:
        return "the state of all members together is not among them"
    if {name for _, name in members} != set(members_of(order.study)):
        return "the states of other members are not among them"
    if any(metrics.told(states[key]) or states[key].joint.any() for key in members):
        return "sums are told that no score needs"
    reasons = (_reason(key, states[key], order, limits, behind, ()) for key in members)
    return next((reason for reason in reasons if reason), "")


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
    if not _least(order, key, limits, behind).holds(state):
        return "a bin of a histogram has too few patients"
    if limits.histogram_patients > 1 and (metrics.told(state) or state.joint.any()):
        return "sums are told that bins could be solved from"
    if any(differ_by_few(behind[key], behind[other], limits) for other in kept):
        return "too few patients make the difference to another task"
    return ""


def _state_of(arrays: Arrays, order: Order, key: Key) -> MetricState | None:
    """Return a state of a reply; None if it is none, or of no task of the study."""
    task = order.study.tasks.get(key[0])
    if task is None:
        return None
    try:
        return metrics_wire.from_arrays(arrays, len(task.classes), task.positive_index)
    except (ReplyError, AttributeError, TypeError, ValueError):
        return None


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


def _least(order: Order, key: Key, limits: Limits, behind: Mapping[Key, Behind]) -> Least:
    positive = order.study.tasks[key[0]].positive_index
    return Least.of(behind[key].classes, positive, limits.histogram_patients)


def _coarsened(state: MetricState, least: Least, limits: Limits) -> MetricState:
    """Merge bins where the hospital asks for it, and leave out what would tell more than they."""
    return state if limits.histogram_patients == 1 else metrics.untold(merged(state, least))
