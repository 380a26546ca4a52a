"""What a network makes of validation patients in one place, as the coordinator would score it."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from client.dataset import Images
from client.evaluate import Measured
from common import metrics, scores, votes
from common.arrays import Array
from common.study import Study

ByTask = Mapping[str, Images]


def figures_of(
    measure: Callable[[str, Images], Measured], validation: Sequence[ByTask], study: Study
) -> dict[str, float]:
    """Return the validation figures of a network, as the coordinator makes them of sites' sums.

    Each patient counts once.

    Args:
        measure: From a task and images of it to what the network makes of them.
        validation: Validation images by task, of one site after the other.
        study: Its tasks, and which figure is compared.

    Returns:
        By task, the higher the better; without the tasks that have no patients who define it.
    """
    found: dict[str, float | None] = {}
    for name in study.tasks:
        if parts := [measure(name, own[name]) for own in validation if name in own]:
            found[name] = _score(parts, study, name)
    return scores.figures_of(study.federation, found)


def votes_of(
    measure_each: Callable[[str, Images], Sequence[Measured]],
    validation: Sequence[ByTask],
    study: Study,
) -> dict[str, Array]:
    """Return what the members of an ensemble are to weigh, as the coordinator finds it.

    Args:
        measure_each: From a task and images of it to what each member makes of them.
        validation: Validation images by task, of one site after the other.
        study: Its tasks, and which figure is compared.

    Returns:
        Arrays of the model by their names; members of a task without validation patients weigh the
        same.
    """
    found = {}
    for task in study.tasks:
        sites = [measure_each(task, own[task]) for own in validation if task in own]
        found[task] = [_score(of_member, study, task) for of_member in zip(*sites, strict=True)]
    return votes.arrays_of(study, found)


def _score(parts: Iterable[Measured], study: Study, task: str) -> float | None:
    """Return the figure that is compared, over the patients of all parts."""
    states = metrics.merge([of.each_patient_once for of in parts])
    told = metrics.compute(states, study.tasks[task].positive_index)
    return told[study.federation.score]
