"""What the members of an ensemble weigh, as their scores on the sites' validation patients say."""

from collections.abc import Mapping
from typing import Any

from common import metrics, votes
from common.arrays import Array, Arrays
from common.held_out import members_of
from common.layout import votes_group, votes_name
from common.study import Study
from server.history import MEMBERS, RoundRecord, figures
from server.ingress import States


def note(
    record: RoundRecord,
    study: Study,
    states: Mapping[str, States],
    current: Mapping[str, Arrays],
) -> None:
    """Note in a record how each member did by itself, and what it weighs in the measured model.

    Args:
        record: Of an exchange that only measures; its ``tasks`` are there.
        study: What was agreed.
        states: What the sites measured, by site, then by task and name of the state.
        current: The arrays of the measured model, by group.
    """
    names = members_of(study)
    for task, said in study.tasks.items() if names else ():
        record.votes[task] = current[votes_group(task)][votes_name(task)].tolist()
        each = [[of[task, name] for of in states.values() if (task, name) in of] for name in names]
        if all(each):
            pooled = [figures(metrics.merge(parts), said.positive_index) for parts in each]
            record.tasks[task]["validation"][MEMBERS] = pooled


def arrays_of(study: Study, tasks: Mapping[str, Any]) -> dict[str, Array]:
    """Return what each member is to weigh, as arrays of the model by their names.

    Args:
        study: What was agreed.
        tasks: Figures by task and split, as the record of the exchange that measured the model has
            them. Where no site told how the members did, all weigh the same.
    """
    members = {task: of.get("validation", {}).get(MEMBERS, ()) for task, of in tasks.items()}
    kind = study.federation.score
    return votes.arrays_of(study, {task: [o[kind] for o in of] for task, of in members.items()})
