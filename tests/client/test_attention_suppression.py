"""Laws of which sums of attention leave a site."""

from collections.abc import Sequence

import numpy as np
import pytest

from client.attention_suppression import suppress_attention, withheld_attention
from client.config import Limits
from client.egress import release
from client.suppression import suppress
from common.attention import ATTENTION, FIGURES, from_arrays, means
from common.errors import EgressError
from common.messages import Reply
from simulations.benches.egress_cases import Case, attention_table, good_case

LIMITS = Limits(attention="report")
NAMES = [f"ct-{n}" for n in range(24)]
ILL = NAMES[1::2]


def case_of(limits: Limits = LIMITS, **behind: Sequence[str]) -> Case:
    """Return an honest reply to a last order, of task ct as told, of mr without sums."""
    case = good_case("evaluate", limits, private=False)
    looked = {"ct": tuple(frozenset(behind.get(figure, ())) for figure in FIGURES)}
    table = attention_table(np.random.default_rng(0), [len(of) for of in looked["ct"]])
    kept = {key: arrays for key, arrays in case.reply.metrics.items() if key[1] != ATTENTION}
    reply = case.reply._replace(metrics={**kept, ("ct", ATTENTION): table})
    return case._replace(reply=reply, own=case.own._replace(looked=looked))


def left(case: Case) -> Reply:
    """Return what leaves, after the door has looked at it too."""
    own = case.own
    reply = suppress(case.reply, case.order, case.limits, own.behind)
    reply = suppress_attention(reply, case.order, case.limits, own.behind, own.looked)
    return release(reply, case.order, case.limits, own)


def figures_of(case: Case) -> list[str]:
    arrays = left(case).metrics.get(("ct", ATTENTION))
    return [] if arrays is None else list(means(from_arrays(arrays)))


def test_enough_patients_leave_as_they_are() -> None:
    """All patients, or the ill ones, are reported already: nothing more is told by their number."""
    case = case_of(border=NAMES, pointing=ILL, energy=ILL)
    assert figures_of(case) == ["border", "pointing", "energy"]
    sent = left(case).metrics["ct", ATTENTION]["sums"]
    assert np.array_equal(sent, case.reply.metrics["ct", ATTENTION]["sums"])


@pytest.mark.parametrize("lacking", range(8))
def test_a_difference_of_few_patients_stays_at_home(lacking: int) -> None:
    """Patients without a figure are counted by subtraction: none, or at least the minimum."""
    assert figures_of(case_of(border=NAMES[lacking:])) == (
        ["border"] if lacking == 0 or lacking >= 5 else []
    )
    few = case_of(pointing=ILL[lacking:])
    assert figures_of(few) == (["pointing"] if lacking == 0 or 5 <= lacking <= 7 else [])


def test_a_difference_between_figures_counts_too() -> None:
    """Of two figures whose patients differ by few the first is reported, the other is not."""
    case = case_of(text=NAMES[:12], outside=NAMES[:10])
    assert figures_of(case) == ["text"]
    assert figures_of(case_of(text=NAMES[:12], outside=NAMES[2:12][::-1])) == ["text"]
    assert figures_of(case_of(text=NAMES[:12], outside=NAMES[6:20])) == ["text", "outside"]


def test_too_few_patients_stay_at_home() -> None:
    """Fewer than the minimum never leave; with none left the array is not sent."""
    assert figures_of(case_of(border=NAMES, text=NAMES[:4])) == ["border"]
    assert figures_of(case_of(border=NAMES, text=NAMES[:5])) == ["border", "text"]
    assert ("ct", ATTENTION) not in left(case_of(text=NAMES[:4])).metrics


def test_sums_follow_rounded_numbers() -> None:
    """The number is rounded to fives and the mean is what it was."""
    limits = LIMITS.model_copy(update={"patients": "rounded"})
    case = case_of(limits, border=NAMES, pointing=ILL)
    exact = means(from_arrays(case.reply.metrics["ct", ATTENTION]))
    found = means(from_arrays(left(case).metrics["ct", ATTENTION]))
    assert [found[name]["patients"] for name in ("border", "pointing")] == [25, 10]
    for name, of in found.items():
        assert of["mean"] == pytest.approx(exact[name]["mean"], rel=1e-12)


def test_no_sums_without_the_metrics_of_the_images() -> None:
    """Where the metrics of a task's test images were suppressed the sums stay too."""
    case = case_of(border=NAMES)
    few = case.limits.model_copy(update={"minimum_patients": 13})  # of 12 in each class
    assert left(case._replace(limits=few)).metrics == {}
    kept = {key: v for key, v in case.reply.metrics.items() if key != ("ct", "test")}
    bare = case.reply._replace(metrics=kept)
    with pytest.raises(EgressError, match="metrics of its images"):
        release(bare, case.order, case.limits, case.own)


def test_the_hospital_and_the_order_decide() -> None:
    """With ``keep``, or in reply to a training, the sums are taken out, and the door is shut."""
    case = case_of(border=NAMES)
    keep = case._replace(limits=case.limits.model_copy(update={"attention": "keep"}))
    assert figures_of(keep) == []
    for changed in (keep, case._replace(order=case.order._replace(kind="train"))):
        with pytest.raises(EgressError, match="not asked for"):
            release(changed.reply, changed.order, changed.limits, changed.own)
    tables = {"ct": from_arrays(case.reply.metrics["ct", ATTENTION])}
    found = withheld_attention(
        tables, case.reply.metrics, keep.order, keep.limits, case.own.behind, case.own.looked
    )
    assert list(found) == [("ct", "border")]


def test_the_door_counts_the_patients_itself() -> None:
    """A number other than of those who were looked at is held back, as is a table of nobody."""
    case = case_of(border=NAMES)
    for counts in ([19, 0, 0, 0, 0], [0] * 5):
        table = attention_table(np.random.default_rng(0), counts)
        spoilt = case.reply._replace(metrics={**case.reply.metrics, ("ct", ATTENTION): table})
        with pytest.raises(EgressError):
            release(spoilt, case.order, case.limits, case.own)
