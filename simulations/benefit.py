"""What each site gained by taking part: other models less its own, on its own test patients."""

from collections.abc import Mapping, Sequence
from typing import Any

from client.bootstrap import Estimate, differences
from common.seeds import stream
from common.study import Study
from simulations.matrix import (
    ALONE_AT_HOME,
    ENSEMBLE,
    GLOBAL,
    PERSONAL_AT_HOME,
    Row,
    plain,
)

JUDGED_BY = "auroc"
"""The metric that the sentence is about."""
GAINS, LOSES, UNKNOWN = "gains", "loses", "cannot be told"
COMPARED = {"alone": ALONE_AT_HOME, "ensemble": ENSEMBLE, "global": GLOBAL}
COMPARED |= {"personal": PERSONAL_AT_HOME}
"""Models as a site sees them, by the names of the matrix' rows."""


def of_task(
    study: Study, name: str, matrix: Mapping[str, Any], rows: Sequence[Row]
) -> dict[str, Any]:
    """Return each site's benefit, ready for JSON.

    Args:
        study: The study.
        name: The task.
        matrix: The task's, as ``simulations.matrix.of_task`` gives it.
        rows: Those that the matrix was made from.
    """
    cases = {row.model: row.cases for row in rows if row.site is None}
    figures = {row["model"]: row["per_site"] for row in matrix["rows"] if row["site"] is None}
    found = {}
    for site, counted in matrix["sites"].items():
        models = {model: row for model, row in COMPARED.items() if site in figures.get(row, {})}
        seed = stream(study.seed, site, "bootstrap", name)
        less = {
            f"{model} - alone": differences(cases[row][site], cases[ALONE_AT_HOME][site], seed=seed)
            for model, row in models.items()
            if model != "alone"
        }
        own = {model: figures[row][site] for model, row in models.items()}
        found[site] = {
            "patients": counted["patients"],
            "figures": own,
            "differences": {pair: plain(estimates) for pair, estimates in less.items()},
            "verdicts": {pair: verdict(of[JUDGED_BY]) for pair, of in less.items()},
            "sentence": _sentence(site, counted["patients"], own, less),
        }
    for site, why in matrix["left_out"].items():
        found[site] = {
            "patients": None,
            "figures": {},
            "differences": {},
            "verdicts": {},
            "sentence": f"{site}: what taking part gained cannot be told: {why}.",
        }
    return dict(sorted(found.items()))


def verdict(difference: Estimate) -> str:
    """Say what a difference of a metric of which more is better shows, if anything."""
    if difference.low is None or difference.high is None:
        return UNKNOWN
    if difference.low > 0:
        return GAINS
    return LOSES if difference.high < 0 else UNKNOWN


def _sentence(
    site: str,
    patients: int,
    figures: Mapping[str, Any],
    less: Mapping[str, Mapping[str, Estimate]],
) -> str:
    """Say in one sentence what the model that the site would use is worth to it."""
    model = "personal" if "personal" in figures else "global"
    difference = less[f"{model} - alone"][JUDGED_BY]
    found = verdict(difference)
    start = (
        f"{site}: whether taking part gains or loses cannot be told"
        if found == UNKNOWN
        else f"{site} {found} by taking part"
    )
    if difference.value is None:
        return f"{start}: of its {patients} test patients, {difference.reason}."
    one, other = (figures[which][JUDGED_BY]["value"] for which in (model, "alone"))
    said = f"AUROC {one:.3f} with the {model} model, {other:.3f} alone on its {patients} test"
    if difference.low is None or difference.high is None:
        return f"{start}: {said} patients; {difference.reason}."
    ends = f"{difference.low:+.3f} to {difference.high:+.3f}"
    holds = ", an interval that holds 0" if found == UNKNOWN else ""
    return f"{start}: {said} patients, a difference of {difference.value:+.3f} ({ends}{holds})."
