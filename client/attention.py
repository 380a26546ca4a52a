"""What a study's sites may report of where the final network looks: sums over test patients.

The maps are those of ``rarefed-client explain``. They are made, measured and let go of one by one;
nothing of an image is kept.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from client.cam_layers import cam_layer
from client.config import Limits
from client.dataset import Images
from client.explained_case import Asked, look_at
from client.manifest import Row
from common.attention import COLUMNS, FIGURES, Table
from common.errors import ImageError, RarefedError
from common.models import FederatedModel
from common.study import Study

SCALARS: Mapping[str, tuple[str, str]] = {
    "border": ("border_attention", "border_area"),
    "text": ("text_attention", "text_area"),
    "outside": ("outside_attention", "outside_area"),
    "pointing": ("pointing", "chance"),
    "energy": ("energy", "area"),
}
"""Of each figure the scalar of a case, and that of a map that is the same everywhere."""


class Attention(NamedTuple):
    """Sums, and who stands behind them."""

    table: Table
    """As ``common/attention.py`` has it; exact."""
    patients: tuple[frozenset[str], ...]
    """Keyed hashes of the patients behind each figure, in the order of ``FIGURES``."""


def attentions(
    model: FederatedModel,
    images: Mapping[str, Images],
    study: Study,
    limits: Limits,
    *,
    device: torch.device,
    log: logging.Logger,
) -> dict[str, Attention]:
    """Measure where a network looks, task by task; one where that fails is left out.

    The metrics of a study's last exchange do not wait for this: whatever goes wrong is logged.
    """
    found = {}
    for name, of_task in images.items():
        try:
            found[name] = attention(model, of_task, name, study, limits, device=device, log=log)
        except RarefedError as error:
            log.error("%s: attention is not measured: %s", name, error)  # noqa: TRY400 - expected
        except Exception:
            log.exception("%s: attention is not measured", name)
    return found


def attention(
    model: FederatedModel,
    images: Images,
    name: str,
    study: Study,
    limits: Limits,
    *,
    device: torch.device,
    log: logging.Logger,
) -> Attention:
    """Measure where a network looks in a split's images.

    A row that cannot be read any more, or whose mask does not fit, is left out: the log says why.

    Args:
        model: The network on ``device``.
        images: Of the split; only where they came from is looked at, and they are read anew, since
            masks and the border are those of the image as it is.
        name: The task's.
        study: It names the method, and how many patients are looked at.
        limits: The hospital's.
        device: Where the network is.
        log: The site's own.

    Raises:
        DivergedError: The network gives no finite numbers.
        StudyError: The backbone has no layer with a grid.
    """
    method = study.evaluation.attention
    if method == "none":
        return attention_of({})
    asked = Asked(
        model=model,
        other=model,  # of the sanity check, which is not made here
        layer=cam_layer(model.backbone, study.backbone.image_size, device),
        name=name,
        task=study.tasks[name],
        size=study.backbone.image_size,
        method=method,
        device=device,
    )
    cases: dict[str, list[Mapping[str, float]]] = {}
    for row in chosen_rows(images, study.evaluation.attention_patients, limits):
        try:
            look = look_at(row, asked)
        except ImageError as error:
            log.warning("line %d of %s is not looked at: %s", row.line, name, error.message)
        else:
            cases.setdefault(row.patient, []).append(look.scalars())
    return attention_of(cases)


def chosen_rows(images: Images, most: int, limits: Limits) -> list[Row]:
    """Return the rows of so many patients at most, the same ones each time.

    They are those whose keyed hashes come first, which says nothing of a patient or a label. Where
    fewer than the hospital's minimum would be left over, more are, or nothing could be reported.
    """
    rows = {origin.row.line: origin.row for origin in images.origins}
    patients = sorted({row.patient for row in rows.values()})
    if 0 < len(patients) - most < limits.minimum_patients:
        most = max(0, len(patients) - limits.minimum_patients)
    chosen = set(patients[:most])
    return [row for row in rows.values() if row.patient in chosen]


def attention_of(cases: Mapping[str, Sequence[Mapping[str, float]]]) -> Attention:
    """Return the sums over patients of the means over each patient's cases.

    Args:
        cases: Scalars of the cases, by the patient's keyed hash.
    """
    table = np.zeros((len(FIGURES), len(COLUMNS)))
    behind = []
    for number, figure in enumerate(FIGURES):
        scalars = SCALARS[figure]
        known = {
            patient: np.array([[case[s] for s in scalars] for case in of if scalars[0] in case])
            for patient, of in cases.items()
        }
        # A share can be beyond 1 by the rounding of its sums.
        each = [values.mean(axis=0).clip(0, 1) for values in known.values() if len(values)]
        if each:
            table[number] = len(each), *np.sum(each, axis=0)
        behind.append(frozenset(patient for patient, values in known.items() if len(values)))
    return Attention(table, tuple(behind))
