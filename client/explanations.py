"""Explains a site's held-out cases: overlays and a file of scalars, both for the hospital's eyes.

Nothing is sent. What a policy might ever let out stands apart, under ``reportable``: means over
patients and how many stand behind them, and none over fewer than the site's minimum.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from client.attention_warnings import mean_shares, warnings_of
from client.cam_layers import cam_layer
from client.config import Limits, SiteConfig
from client.explain import Method
from client.explained_case import Asked, Case, explained_case
from client.faithfulness import randomised
from client.final_model import FinalModel
from client.manifest import Row
from client.owned_files import make_private_folder
from client.prepared import deal
from client.suppression import stated
from common.errors import EmptyManifestError, ImageError, TaskWithoutSiteError
from common.files import write_atomic, write_json

EXPLANATIONS = "explanations.json"
OWNER_ONLY = 0o600


def explain_site(
    config: SiteConfig,
    final: FinalModel,
    task: str,
    out: Path,
    *,
    method: Method,
    cells: int,
    count: int,
    device: torch.device,
    log: logging.Logger,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Explain test cases of a task, and write overlays and scalars into a folder.

    A row that cannot be read, or whose mask does not fit, is left out: the site's log says why.

    Args:
        config: The hospital.
        final: The network.
        task: Which task; the site has it.
        out: The folder, for its owner alone.
        method: Which formula.
        cells: Cells of a side that the maps have at least.
        count: How many rows at most.
        device: Where the network is.
        log: The site's own.
        progress: Called with the rows that are done and the rows in all.

    Returns:
        What ``explanations.json`` says.

    Raises:
        TaskWithoutSiteError: The site or the study has no such task.
        EmptyManifestError: There is no test row that can be explained.
        DataError: As ``prepared.deal``.
        OSError: A file cannot be written.
    """
    rows = chosen_rows(_test_rows(config, final, task), count)
    asked = _asked(final, task, method, cells, device)
    make_private_folder(out)
    cases = _explained(rows, asked, out, log, progress)
    if not cases:
        raise EmptyManifestError(
            f"No test row of {task} can be explained.",
            remedy=f"The site's log says why: {config.state / 'site.log'}.",
        )
    found = _said(final, asked, cases, len(rows) - len(cases), config.limits)
    write_json(out / EXPLANATIONS, found, mode=OWNER_ONLY)
    return found


def _explained(
    rows: Sequence[Row],
    asked: Asked,
    out: Path,
    log: logging.Logger,
    progress: Callable[[int, int], None] | None,
) -> list[Case]:
    """Write an overlay of each row that can be explained, and return the cases."""
    cases = []
    for number, row in enumerate(rows, 1):
        try:
            case, picture = explained_case(row, asked)
        except ImageError as error:
            log.warning("line %d of %s is not explained: %s", row.line, asked.name, error.message)
        else:
            name = f"case-{number:04}.png"
            write_atomic(out / name, picture, mode=OWNER_ONLY)
            cases.append(dataclasses.replace(case, overlay=name))
        if progress is not None:
            progress(number, len(rows))
    return cases


def chosen_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Return so many rows, of as many patients and classes as can be, the same ones each time.

    Keyed hashes put the patients into an order that says nothing of them. All of them come once
    before any comes twice, and the classes take turns.
    """
    seen: dict[str, int] = {}
    turns: dict[int, int] = {}
    keyed = []
    for row in sorted(rows, key=lambda row: (row.patient, row.line)):
        again = seen.get(row.patient, 0)
        seen[row.patient] = again + 1
        keyed.append((again, row))
    keyed.sort(key=lambda pair: pair[0])  # stable
    ordered = []
    for again, row in keyed:
        turn = turns.get(row.label, 0)
        turns[row.label] = turn + 1
        ordered.append((again, turn, row))
    ordered.sort(key=lambda place: place[:2])
    return [row for _, _, row in ordered[:count]]


def reportable(cases: Sequence[Case], limits: Limits) -> dict[str, Any]:
    """Return the means that enough patients stand behind, and the names of those withheld.

    Each patient counts once, with the mean of the patient's cases.
    """
    by_name: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        for name, value in case.scalars().items():
            by_name.setdefault(name, {}).setdefault(case.patient, []).append(value)
    enough = {n: of for n, of in by_name.items() if len(of) >= limits.minimum_patients}
    return {
        "minimum_patients": limits.minimum_patients,
        "means": {name: _mean(of, limits) for name, of in sorted(enough.items())},
        "withheld": sorted(by_name.keys() - enough.keys()),
    }


def _mean(values: Mapping[str, Sequence[float]], limits: Limits) -> dict[str, float]:
    return {
        "mean": fmean(fmean(of) for of in values.values()),
        "patients": stated(len(values), limits),
        "images": stated(sum(map(len, values.values())), limits),
    }


def _test_rows(config: SiteConfig, final: FinalModel, task: str) -> Sequence[Row]:
    both = sorted(set(final.tasks) & set(config.data))
    if task not in both:
        raise TaskWithoutSiteError(
            f"{config.name} has no images of {task}, or the network no trained head for it.",
            remedy=f"Give one of {', '.join(both)}." if both else "Give a study of this site.",
        )
    rows = deal(final.study, config)[task].rows["test"]
    if not rows:
        raise EmptyManifestError(
            f"{config.name} has no test rows of {task}.",
            remedy="Raise split.test in the study, or add patients to the manifest.",
        )
    return rows


def _asked(final: FinalModel, task: str, method: Method, cells: int, device: torch.device) -> Asked:
    size = final.study.backbone.image_size
    return Asked(
        model=final.model,
        other=randomised(final.model, final.study.seed),
        layer=cam_layer(final.model.backbone, size, device, cells),
        name=task,
        task=final.study.tasks[task],
        size=size,
        method=method,
        device=device,
    )


def _said(
    final: FinalModel, asked: Asked, cases: Sequence[Case], left_out: int, limits: Limits
) -> dict[str, Any]:
    return {
        "notice": "Not a medical device. For the hospital's eyes: it may not leave the site.",
        "study": final.study.name,
        "digest": final.study.digest(),
        "model_round": final.model_round,
        "model_sha256": final.sha256,
        "task": asked.name,
        "method": asked.method,
        "layer": asked.layer.name,
        "grid": list(asked.layer.grid),
        "split": "test",
        "left_out": left_out,
        "warnings": warnings_of(mean_shares([case.attention for case in cases])),
        "cases": [case.as_json() for case in cases],
        "reportable": reportable(cases, limits),
    }
