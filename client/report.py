"""Gathers what the clinician's page shows: figures, where the network looks, cases, opinions.

Everything here stays at the site. The page itself is made in ``client/report_page.py``.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import torch

from client.attention_warnings import Share, is_wrong, mean_shares, warnings_of
from client.cam_layers import Layer, cam_layer
from client.config import SiteConfig, site_key
from client.evaluation import Models, evaluate_site
from client.explanations import chosen_rows
from client.feedback import KeptOpinion, case_id
from client.local_figures import TaskFigures
from client.localisation import Localisation
from client.manifest import Row
from client.pictures import Facts
from client.prepared import deal
from client.report_cases import (
    Asked,
    Looked,
    Shown,
    gallery,
    look,
    overlay_of,
    picture_of,
    shown_rows,
)
from client.report_federation import Federation
from client.report_views import Attention, CaseView, Report, TaskView, Wanted
from common.errors import ImageError, StudyError
from common.study import Study

SAMPLE = 24
"""Test rows over which it is told where the network looks, whatever the outcome."""
RULE = "youden"
"""The operating point that outcomes are told by; see ``common/operating.py``."""


def gather(
    config: SiteConfig,
    study: Study,
    models: Models,
    wanted: Wanted,
    *,
    federation: Federation | None,
    opinions: Mapping[str, KeptOpinion],
    device: torch.device,
    log: logging.Logger,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure the site's held-out patients, and look at some of them.

    Args:
        config: The hospital.
        study: The study.
        models: The networks.
        wanted: What the page is to show.
        federation: As ``federation_of`` returns it.
        opinions: The newest of each case, by the case's name.
        device: Where the networks are.
        log: The site's own.
        progress: Called with a word on what is being done.

    Raises:
        RarefedError: As ``evaluation.evaluate_site``.
    """
    figures = evaluate_site(
        config,
        study,
        models,
        alone=wanted.alone,
        classical=wanted.classical,
        device=device,
        log=log,
        progress=progress,
    )
    dealt = deal(study, config)
    layer, why = _layer(models, study, device)
    tasks = {}
    for name, found in figures.tasks.items():
        progress(f"looking at cases of {name}")
        size = study.backbone.image_size
        asked = Asked(
            models.final.model, layer, name, study.tasks[name], size, wanted.method, device
        )
        threshold = threshold_of(found)
        scribe = _Scribe(config, asked, threshold, opinions, names=wanted.names)
        tasks[name] = _task(found, dealt[name].rows, scribe, wanted.cases, log, why)
    return Report(figures, federation, tasks, wanted.method, wanted.names)


def threshold_of(figures: TaskFigures) -> float | None:
    """Return the probability of the positive class at the operating point; None without one."""
    if figures.positive is None:
        return None
    points = figures.of_images.classes[figures.positive].operating_points
    return None if points is None else float(points[RULE]["probability"])


def _layer(models: Models, study: Study, device: torch.device) -> tuple[Layer | None, str]:
    try:
        backbone = models.final.model.backbone
        return cam_layer(backbone, study.backbone.image_size, device), ""
    except StudyError as error:
        return None, error.message


@dataclass(frozen=True)
class _Scribe:
    """Makes views of one task's cases."""

    config: SiteConfig
    asked: Asked
    threshold: float | None
    opinions: Mapping[str, KeptOpinion]
    names: bool

    def view(self, one: Shown, sure: str, looked: Looked) -> CaseView:
        """Return a case as the page shows it."""
        manifest = self.config.data[self.asked.name].manifest
        name = case_id(site_key(self.config), self.asked.name, one.row, manifest.parent)
        return CaseView(
            id=name,
            shown=one,
            sure=sure,
            threshold=self.threshold,
            warnings=warnings_of(looked.attention),
            places=[place for place, share in looked.attention.items() if is_wrong(place, share)],
            groups=_groups(one, looked.facts),
            image=picture_of(looked),
            overlay=overlay_of(looked),
            empty=looked.attended is not None and not looked.attended.any(),
            marked=looked.mask is not None and bool(looked.mask.any()),
            mask_fault=bool(looked.mask_fault),
            localisation=looked.localisation,
            opinion=self.opinions.get(name),
            name=str(one.row.path) if self.names else "",
        )


class _Sampled(NamedTuple):
    """What is kept of a row of the sample; its image is not."""

    shown: Shown
    attention: Mapping[str, Share]
    localisation: Localisation | None


def _groups(one: Shown, facts: Facts) -> dict[str, str]:
    """Return what is known of a case; the manifest comes before the header."""
    said = {
        "scanner": one.row.scanner or facts.scanner,
        "sex": one.row.sex or facts.sex,
        "age": one.row.age or facts.age,
    }
    return {name: value for name, value in said.items() if value not in {"", "unknown"}}


def _task(
    figures: TaskFigures,
    dealt: Mapping[str, Sequence[Row]],
    scribe: _Scribe,
    count: int,
    log: logging.Logger,
    no_maps: str,
) -> TaskView:
    """Look at each row of the gallery and of the sample once."""
    rows = shown_rows(figures.cases, dealt["test"], scribe.asked.task, scribe.threshold)
    layer = scribe.asked.layer
    chosen = {one.row.line: (one, sure) for one, sure in gallery(
        rows, count, by_class=figures.positive is None
    )}  # fmt: skip
    sample = {row.line for row in chosen_rows([one.row for one in rows], SAMPLE)} if layer else ()
    views, sampled = {}, list[_Sampled]()
    for one in rows:
        line = one.row.line
        if line not in chosen and line not in sample:
            continue
        try:
            looked = look(one, scribe.asked)
        except ImageError as error:
            log.warning("line %d is not in the report: %s", line, error.message)
            continue
        if looked.mask_fault:
            log.warning("line %d has a mask of no use: %s", line, looked.mask_fault)
        if line in chosen:
            views[line] = scribe.view(one, chosen[line][1], looked)
        if line in sample:
            sampled.append(_Sampled(one, looked.attention, looked.localisation))
    return TaskView(
        figures=figures,
        threshold=scribe.threshold,
        layer=f"{layer.name}, {layer.grid[0]} x {layer.grid[1]}" if layer else "",
        no_maps=no_maps,
        attention=_attention(sampled) if sampled else None,
        cases=[views[line] for line in chosen if line in views],
        outcomes=_outcomes(rows),
        unread=len(chosen) - len(views),
        listed={name: (len({r.patient for r in own}), len(own)) for name, own in dealt.items()},
    )


def _outcomes(rows: Sequence[Shown]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in rows:
        found[one.outcome] = found.get(one.outcome, 0) + 1
    return found


def _attention(sampled: Sequence[_Sampled]) -> Attention:
    shares = [one.attention for one in sampled]
    means = mean_shares(shares)
    marks = [one.localisation for one in sampled if one.localisation is not None]
    return Attention(
        rows=len(sampled),
        patients=len({one.shown.row.patient for one in sampled}),
        places=means,
        warned={
            place: sum(place in own and is_wrong(place, own[place]) for own in shares)
            for place in means
        },
        warnings=warnings_of(means),
        localised=len(marks),
        localisation={
            name: fmean(float(getattr(mark, name)) for mark in marks)
            for name in Localisation._fields
        }
        if marks
        else {},
    )
