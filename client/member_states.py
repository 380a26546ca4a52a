"""How each member of an ensemble does by itself, of which the members' votes are made."""

import torch

from client.evaluate import evaluate_apart
from client.merged_bins import all_merged
from client.prepared import Prepared
from client.suppression import Key
from common import metrics, metrics_wire
from common.arrays import Array
from common.held_out import members_of
from common.messages import Order


def member_states(
    prepared: Prepared, order: Order, *, device: torch.device
) -> dict[Key, dict[str, Array]]:
    """Measure each member on every task's validation patients, where the order asks for that.

    There is one state for each: of patients where some have several images, else of images. It
    has no sums that single log-odds could be solved from, and histograms only where members are
    scored by their ranking: those of several networks, and of their mean, can be put together to
    which score of one belongs to which of another.

    Args:
        prepared: The study, its model as the order has it.
        order: What is asked.
        device: Where the arithmetic runs.
    """
    study, result = prepared.study, {}
    ranked = study.federation.score == "auroc"
    names = members_of(study) if order.kind == "evaluate" else ()
    for task, data in prepared.tasks.items() if names else ():
        each = evaluate_apart(
            prepared.model,
            data.splits["validation"],
            task,
            study.tasks[task],
            device=device,
            features=prepared.features.in_round(order.round),
            adapted=study.evaluation.adapted,
        )
        for name, found in zip(names, each, strict=True):
            state = found.each_patient_once
            state = metrics.untold(state if ranked else all_merged(state))
            result[task, name] = metrics_wire.to_arrays(state)
    return result
