"""Metric states as the arrays that travel."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import metrics_faults as faults_of
from common.errors import ReplyError
from common.metrics import MAY_BE_UNTOLD, MetricState, told, untold, zero
from common.metrics_faults import Arrays
from common.ranking import Ints, ranked_classes

_ALWAYS = ("confusion", "calibration")
"""Arrays that travel as the state has them, beside those of ``MAY_BE_UNTOLD``."""


def to_arrays(state: MetricState) -> dict[str, NDArray[Any]]:
    """Return the wire form; a histogram as flat indices of its bins in use and their counts.

    The upper histogram is left out where it is the same, and what is not told or not known.
    """
    names = (*MAY_BE_UNTOLD, *_ALWAYS) if told(state) else _ALWAYS
    arrays = {
        "counts": np.array([state.n_patients, state.n_images], np.int64),
        "sums": np.array([state.loss_sum, state.brier_sum], np.float64),
        **{name: getattr(state, name) for name in names},
        **_sparse("histogram", state.histogram),
    }
    if not np.array_equal(state.histogram, state.histogram_upper):
        arrays |= _sparse("histogram_upper", state.histogram_upper)
    return arrays | ({"joint": state.joint} if state.joint.any() else {})


def from_arrays(arrays: Arrays, n_classes: int, positive: int | None) -> MetricState:
    """Return the state that a site sent, once nothing in it contradicts anything else.

    Raises:
        ReplyError: Lists every fault of names, types, shapes and values; only when there is
            none, every sum that does not agree with the others.
    """
    blank = zero(n_classes, positive)
    if arrays.keys().isdisjoint(MAY_BE_UNTOLD):
        blank = untold(blank)
    expected = to_arrays(blank)
    if upper := arrays.keys() & _sparse("histogram_upper", blank.histogram).keys():
        expected |= _sparse("histogram_upper", blank.histogram)
    if positive is None and "joint" in arrays:
        expected |= {"joint": blank.joint}
    misfits = faults_of.misfits(arrays, expected)
    # A blank stands in for what does not fit, so that the rest is still looked at.
    usable = expected | {name: arrays[name] for name in arrays.keys() - misfits.keys()}
    faults = [f"{name}: {what}" for name, what in misfits.items()]
    faults += faults_of.value_faults(usable, blank.histogram.size)
    if not faults:
        (n_patients, n_images), (loss, brier) = usable["counts"].tolist(), usable["sums"].tolist()
        blank.histogram.flat[usable["histogram_index"]] = usable["histogram_count"]
        name = "histogram_upper" if upper else "histogram"
        blank.histogram_upper.flat[usable[f"{name}_index"]] = usable[f"{name}_count"]
        state = replace(
            blank,
            n_patients=n_patients,
            n_images=n_images,
            loss_sum=loss,
            brier_sum=brier,
            **{
                name: usable[name]
                for name in (*MAY_BE_UNTOLD, *_ALWAYS, "joint")
                if name in expected
            },
        )
        faults = faults_of.sum_faults(state, ranked_classes(n_classes, positive))
    if faults:
        raise ReplyError(
            "The metrics in the reply are refused:\n" + "\n".join(f"  - {f}." for f in faults),
            remedy="Run the same release of rarefed at the site and at the coordinator.",
        )
    return state


def _sparse(name: str, histogram: Ints) -> dict[str, NDArray[Any]]:
    flat = histogram.ravel()
    used = np.flatnonzero(flat)
    return {f"{name}_index": used.astype(np.int32), f"{name}_count": flat[used].astype(np.int32)}
