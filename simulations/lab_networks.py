"""Which networks of a lab's rows cannot be built: told before anything is trained."""

from collections.abc import Callable, Sequence

from common.errors import FederationError, RarefedError
from common.models import build_model
from common.study import Study
from common.weights import layout_of
from server.central_privacy import check_layout
from simulations.lab_rows import Line


def with_networks(planned: Sequence[Line], tell: Callable[[str], None]) -> list[Line]:
    """Return the lines of a lab, those whose network cannot be built with the reason.

    Each network is built once, with random weights.

    Args:
        planned: The lines.
        tell: Called with the name of each line that cannot apply, and why.

    Raises:
        FederationError: No line that trains can apply.
    """
    reasons: dict[str, str] = {}
    found = []
    for line in planned:
        study, reason = line.study, line.reason
        if study is not None and (line.classical is None or line.classical.features == "backbone"):
            digest = study.digest()
            if digest not in reasons:
                reasons[digest] = _fault_of(study)
            reason = reasons[digest]
        if reason:
            tell(f"{line.name} cannot apply: {reason}")
        found.append(line._replace(study=None if reason else study, reason=reason))
    if all(line.study is None for line in found):
        told = [f"  - {line.name}: {line.reason}" for line in found if line.reason]
        raise FederationError(
            "No row of the lab can apply:\n" + "\n".join(told), remedy="Correct the rows."
        )
    return found


def _fault_of(study: Study) -> str:
    """Return why the network of a study cannot be built; an empty text where it can."""
    try:
        model = build_model(study)
        if study.central_privacy is not None:
            check_layout(study, layout_of(model, study))
    except RarefedError as error:
        return f"{type(error).__name__}: {error.message}"
    return ""
