"""Which temperature and threshold a prediction is made with: an export's, or the site's own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from client.benefit import TUNED
from client.config import SiteConfig
from client.evaluation import file_of
from client.final_model import FinalModel
from common.errors import WeightsError

CARD = "card.json"
RULE = "youden"
"""The operating point that is taken of the site's own; see ``common/operating.py``."""


class Operating(NamedTuple):
    """What turns logits into a probability to believe, and that into a class."""

    temperature: float = 1.0
    """Logits are divided by it."""
    log_odds: float | None = None
    """Of the positive class, before the division: from here on a case is positive."""
    rule: str = ""
    """How the log-odds were chosen, on validation patients."""
    known: bool = False
    """Whether a temperature was fitted."""

    @property
    def threshold(self) -> float | None:
        """The probability at the operating point; None where there is none."""
        return None if self.log_odds is None else float(expit(self.log_odds / self.temperature))


def operating_of(folder: Path, task: str) -> Operating:
    """Return what the card of an export says of a task's temperature and operating point.

    Args:
        folder: What ``rarefed-server export`` wrote; without a card nothing is known.
        task: Name of the task.

    Raises:
        WeightsError: The card cannot be read.
    """
    file = folder / CARD
    if not file.is_file():
        return Operating()
    try:
        said = json.loads(file.read_text("utf-8")).get("operating", {}).get(task) or {}
        return _checked(said.get("temperature"), said.get("log_odds"), said.get("rule"))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable(file, error, "Give a folder of export, as it came.") from error


def operating_of_site(config: SiteConfig, final: FinalModel, task: str) -> Operating:
    """Return what the site's own evaluation of this very network found, if it has made one.

    Where patients have several images, it is that at which each patient counts once. What was
    found with the statistics of the images measured is not of a single image, which has none.

    Raises:
        WeightsError: The file of ``rarefed-client evaluate`` cannot be read.
    """
    if final.study.evaluation.adapted:
        return Operating()
    files = (file_of(config, final.study, model) for model in ("", TUNED))
    found = (_found(file, final, task) for file in files if file.is_file())
    return next((one for one in found if one.known or one.rule), Operating())


def _found(file: Path, final: FinalModel, task: str) -> Operating:
    try:
        said = json.loads(file.read_text("utf-8"))
        if said["sha256"] != final.sha256 or task not in said["tasks"]:
            return Operating()
        found = said["tasks"][task]
        figures = found["of_patients"] or found["of_images"]
        temperature = (figures["temperature"] or {}).get("value")
        point = _point(figures["classes"], final.study.tasks[task].positive)
        return _checked(temperature, point, RULE if point is not None else "")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(file, error, "Make it anew: rarefed-client evaluate") from error


def _point(classes: Mapping[str, Any], positive: str | None) -> float | None:
    points = classes[positive]["operating_points"] if positive else None
    return float(points[RULE]["threshold"]) if points else None


def _checked(temperature: float | None, log_odds: float | None, rule: str | None) -> Operating:
    found = Operating(
        1.0 if temperature is None else float(temperature),
        None if log_odds is None else float(log_odds),
        str(rule or ""),
        temperature is not None,
    )
    if not (np.isfinite(found.temperature) and found.temperature > 0):
        raise ValueError(f"the temperature {found.temperature} is none")
    return found


def _unreadable(file: Path, error: Exception, remedy: str) -> WeightsError:
    return WeightsError(f"{file} cannot be read: {error}.", remedy=remedy)
