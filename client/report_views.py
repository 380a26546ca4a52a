"""What the parts of a clinician's page are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from client.evaluation import LocalFigures
from client.explain import Method
from client.feedback import KeptOpinion
from client.local_figures import TaskFigures
from client.localisation import Localisation
from client.report_cases import Shown
from client.report_federation import Federation
from common.classical_names import Way


class CaseView(NamedTuple):
    """One case as the page shows it."""

    id: str
    shown: Shown
    sure: str
    threshold: float | None
    warnings: Sequence[str]
    places: Sequence[str]
    """The wrong places by name."""
    groups: Mapping[str, str]
    """Scanner, sex and age band, as far as they are known."""
    image: str
    overlay: str
    """Data URIs."""
    empty: bool
    """Whether the map is 0 everywhere."""
    marked: bool
    """Whether a clinician's mark is drawn."""
    mask_fault: bool
    localisation: Localisation | None
    opinion: KeptOpinion | None
    name: str
    """Of the file; empty unless names were asked for."""


@dataclass(frozen=True)
class Attention:
    """Where the network looks, over a sample of test rows that knows nothing of outcomes."""

    rows: int
    patients: int
    places: Mapping[str, Any]
    """Mean ``Share`` by place."""
    warned: Mapping[str, int]
    """Rows with a warning, by place."""
    warnings: Sequence[str]
    """Of the means."""
    localised: int
    """Rows whose mark could be compared."""
    localisation: Mapping[str, float]
    """Means of ``Localisation``; empty where nothing could be compared."""


@dataclass(frozen=True)
class TaskView:
    """One task's part of the page."""

    figures: TaskFigures
    threshold: float | None
    layer: str
    """Name and grid; empty where there are no maps."""
    no_maps: str
    """Why there are none."""
    attention: Attention | None
    cases: Sequence[CaseView]
    outcomes: Mapping[str, int]
    """Test rows by outcome, of which ``cases`` are some."""
    unread: int
    """Cases that could not be read again."""
    listed: Mapping[str, tuple[int, int]]
    """Patients and rows of the manifest by split."""


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    figures: LocalFigures
    federation: Federation | None
    tasks: Mapping[str, TaskView]
    method: Method
    named: bool


class Wanted(NamedTuple):
    """What the page is to show."""

    cases: int
    """Of each kind, at most."""
    method: Method
    alone: bool
    names: bool
    classical: Sequence[Way] = ()
