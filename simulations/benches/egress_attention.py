"""What can be wrong with the sums of attention in a reply."""

from typing import Any

import numpy as np

from client.attention_suppression import Looked
from common.attention import ATTENTION, FIGURES
from common.messages import Reply
from simulations.benches.egress_cases import (
    CLASSES,
    Case,
    Mutation,
    attention_table,
    good_case,
    pick,
    pixels,
    study_of,
    with_attention,
    with_changes,
    word,
)


def unasked_attention(rng: np.random.Generator, case: Case) -> Case:
    """Give sums where the order, the study or the hospital does not ask for them."""
    if case.order.kind != "evaluate":
        return case._replace(reply=with_attention(rng, case.reply, case.own), bypass=True)
    if rng.integers(2):
        return case._replace(
            limits=case.limits.model_copy(update={"attention": "keep"}), bypass=True
        )
    study = study_of(private=case.order.study.privacy is not None)
    values = study.model_dump(mode="json", exclude={"evaluation"})
    study = type(study).parse(values)
    case = case._replace(order=case.order._replace(study=study), bypass=True)
    return with_changes(case, digest=study.digest())


def bad_attention(rng: np.random.Generator, case: Case) -> Case:
    """Spoil the sums: their type, their shape, or a number."""
    case = _evaluated(case)
    task = str(pick(rng, CLASSES))
    table = np.array(case.reply.metrics[task, ATTENTION]["sums"])
    row = int(rng.integers(len(FIGURES)))
    odd: list[Any] = [
        table.astype(np.float32), table[:, :2], table.T, pixels(rng), word(rng), None,
        np.ma.masked_array(table, mask=True), table.tolist(),
    ]  # fmt: skip
    for column, value in ((0, -1.0), (0, 12.5), (1, np.nan), (1, 25.5), (2, np.inf), (2, -1e-9)):
        spoilt = table.copy()
        spoilt[row, column] = value
        odd.append(spoilt)
    return _with_table(case, task, {"sums": pick(rng, odd)})


def attention_of_few(rng: np.random.Generator, case: Case) -> Case:
    """Let a site honestly look at so few patients, or at all but so few, that it shows them."""
    case = _evaluated(case)
    task, few = str(pick(rng, CLASSES)), int(rng.integers(1, 5))
    row = int(rng.integers(len(FIGURES)))
    names = [f"{task}-{p}" for p in range(24)]
    behind = list(case.own.looked[task])
    behind[row] = frozenset(names[:few] if rng.integers(2) else names[few:])
    return _measured(rng, case, task, tuple(behind))._replace(bypass=True)


def attention_of_others(rng: np.random.Generator, case: Case) -> Case:
    """State another number of patients than were looked at, or of a task that was not."""
    case = _evaluated(case)
    task = str(pick(rng, CLASSES))
    if rng.integers(2):
        looked = {name: who for name, who in case.own.looked.items() if name != task}
        return case._replace(own=case.own._replace(looked=looked))
    counts = [len(patients) for patients in case.own.looked[task]]
    counts[int(rng.integers(len(counts)))] -= 7
    return _with_table(case, task, attention_table(rng, counts))


def attention_alone(rng: np.random.Generator, case: Case) -> Case:
    """Give sums of a task whose metrics of the test images are not in the reply."""
    case = _evaluated(case)
    task = str(pick(rng, CLASSES))
    left = {k: v for k, v in case.reply.metrics.items() if k[0] != task or k[1] == ATTENTION}
    return with_changes(case, metrics=left)._replace(bypass=True)


def _evaluated(case: Case) -> Case:
    """Return a good reply to the study's last order, in place of one to another order."""
    private = case.order.study.privacy is not None
    return (
        case
        if case.order.kind == "evaluate"
        else good_case("evaluate", case.limits, private=private)
    )


def _with_table(case: Case, task: str, arrays: Any) -> Case:
    reply: Reply = case.reply
    return with_changes(case, metrics={**reply.metrics, (task, ATTENTION): arrays})


def _measured(
    rng: np.random.Generator, case: Case, task: str, behind: tuple[frozenset[str], ...]
) -> Case:
    """Return the case of a site that has looked at these patients."""
    looked: Looked = {**case.own.looked, task: behind}
    arrays = attention_table(rng, [len(patients) for patients in behind])
    return _with_table(case, task, arrays)._replace(own=case.own._replace(looked=looked))


MUTATIONS: tuple[Mutation, ...] = (
    unasked_attention,
    bad_attention,
    attention_of_few,
    attention_of_others,
    attention_alone,
)
