"""What an export says of all sites together, to stand beside one site's own figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import StudyMismatchError, WeightsError
from common.study import Study

CARD, HISTORY = "card.json", "history.jsonl"


class Federation(NamedTuple):
    """What an export says of all sites together."""

    model_round: int
    """Rounds of the model that the figures are of."""
    tasks: Mapping[str, Any]
    """Of test patients: ``pooled``, ``per_site``, ``intervals`` and perhaps ``patients``."""
    sha256: str | None = None
    """SHA-256 of its arrays; empty where they are not those of the export, None if not known."""


def federation_of(folder: Path, study: Study) -> Federation | None:
    """Return the figures of all sites together that an export has.

    Args:
        folder: What ``rarefed-server export`` wrote.
        study: The study that the figures should be of.

    Returns:
        None where it has no card and no history, or they have no figures.

    Raises:
        WeightsError: Card or history cannot be read.
        StudyMismatchError: The card is one of another study.
    """
    card, history = folder / CARD, folder / HISTORY
    sha256 = None
    try:
        if card.is_file():
            said = json.loads(card.read_text("utf-8"))
            if said["digest"] != study.digest():
                raise StudyMismatchError(
                    f"{card} is of another study.", remedy="Give a folder of export, as it came."
                )
            number, tasks = said.get("measured_round"), said.get("figures") or {}
            sha256 = str(said["arrays_sha256"]) if said["measured_same"] else ""
        elif history.is_file():
            lines = [json.loads(line) for line in history.read_text("utf-8").splitlines()]
            last = next((line for line in reversed(lines) if line["tasks"]), None)
            number, tasks = (last["model_round"], last["tasks"]) if last else (None, {})
        else:
            return None
        found = {name: splits["test"] for name, splits in tasks.items() if "test" in splits}
        for told in found.values():
            _check(told)
            _check(told.get("patients") or {"pooled": {}})
        return Federation(int(number), found, sha256) if found else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"The figures of {folder} cannot be read: {error}.",
            remedy="Give a folder of rarefed-server export, as it came.",
        ) from error


def _check(told: Mapping[str, Any]) -> None:
    """See that what the page shows of figures are numbers.

    Raises:
        TypeError, ValueError, KeyError, AttributeError: Something is none.
    """
    numbers = [value for value in told["pooled"].values() if value is not None]
    for ends in ((told.get("intervals") or {}).get("pooled") or {}).values():
        low, high = ends or (0.0, 0.0)
        numbers += [low, high]
    for of in ((told.get("attention") or {}).get("pooled") or {}).values():
        numbers += [of["mean"], of["even"], of["patients"]]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("a figure is no number")
