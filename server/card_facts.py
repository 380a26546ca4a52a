"""What is known of a study's model at the coordinator, as one table for people and programs.

Nothing is computed anew: the figures are those of the history, with their intervals where the
history has them. What only the sites know, such as the epsilon that each has spent, is not here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from common.backbones import Backbone
from common.held_out import HELD_OUT
from common.spread import spread
from common.study import Study
from server.history import RoundRecord

SPREAD_OF = ("auroc", "balanced_accuracy", "sensitivity", "specificity", "calibration_error")
"""Metrics whose worst site and spread are told."""
RULE = "youden"
"""The operating point that predictions are held to; see ``common/operating.py``."""
NOTICE = (
    "Not a medical device: the model has not been assessed for use in the care of patients, and "
    "must not inform it."
)


def facts_of(
    study: Study,
    records: Sequence[RoundRecord],
    number: int,
    votes: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Return what the history says of how a study's model came about and how well it does.

    Args:
        study: The study.
        records: Its history, in the order of the rounds.
        number: Rounds that the model at hand has been trained for.
        votes: What the members of an ensemble weigh in it, by task, where the model says it.
    """
    measured = next((record for record in reversed(records) if record.tasks), None)
    same = measured is not None and measured.model_round == number
    if measured is not None and measured.votes and votes:
        same = same and measured.votes == votes
    # Thresholds are of what was measured: heads, or normalisation to the images of a split, that
    # the model at hand does not have.
    alike = study.federation.personal == "none" and not study.evaluation.adapted
    return {
        "notice": NOTICE,
        "training": _training(study, records),
        "sites_seen": _sites(records),
        "declared": _last(records, "declared"),
        "each_image": _last(records, "each_image"),
        "figures": measured.tasks if measured else {},
        # The figures of a line are of the model that arrived in that round.
        "measured_round": measured.model_round if measured else None,
        "model_round": number,
        "measured_same": same,  # as the model at hand, not another of as many rounds
        "averaged": list(measured.averaged) if measured and same else [],
        "stopped": records[-1].stopped if records else "",
        # A threshold is good for the very model that it was chosen with.
        "operating": operating_of(study, measured) if measured and same and alike else {},
        "spread": _spread(measured.tasks) if measured else {},
        "privacy": privacy_of(study, records),
        "weights": weights_of(study),
    }


def operating_of(study: Study, measured: RoundRecord) -> dict[str, Any]:
    """Return temperature and operating points by task, as the sites' validation patients gave them.

    Where patients have several images, they are those at which each patient counts once. A task
    with a positive class has ``log_odds`` too: the threshold of ``RULE``, before the temperature.
    """
    found: dict[str, Any] = {}
    for name, task in study.tasks.items():
        told = measured.tasks.get(name, {}).get("test", {})
        counted = "patients" if "patients" in told else "images"
        told = told.get("patients", told)
        points, scaling = told.get("operating_points") or {}, told.get("temperature")
        chosen = points.get(task.positive) if task.positive else None
        if scaling or any(points.values()):
            found[name] = {
                "counted": counted,
                "temperature": scaling["value"] if scaling else None,
                "log_odds": chosen[RULE]["threshold"] if chosen else None,
                "rule": RULE if chosen else "",
                "scaling": scaling,
                "points": points,
            }
    return found


def privacy_of(study: Study, records: Sequence[RoundRecord]) -> dict[str, Any]:
    """Return what is promised and known of privacy; None for each kind that the study lacks."""
    site = None
    if study.privacy is not None:
        site = {
            "unit": "one training patient of one site",
            **study.privacy.model_dump(mode="json"),
            "spent": None,  # in each site's ledger, which never leaves it
        }
    central = None
    if study.central_privacy is not None:
        costs = [r.central_privacy for r in records if r.central_privacy]
        central = {
            "unit": "one site's change of the model",
            **study.central_privacy.model_dump(mode="json"),
            "spent": {k: costs[-1][k] for k in ("epsilon", "delta")} if costs else None,
            "rounds": len(costs),
        }
    return {"patients": site, "sites": central}


def weights_of(study: Study) -> dict[str, Any]:
    """Return where the backbone's weights began, and under which licence, as far as is known.

    Of an ensemble, a word of each member stands behind that of the one before.
    """
    if not study.ensemble:
        return _weights_of(study.backbone)
    found = [_weights_of(member.backbone) for member in study.members]
    named = [
        f"{m.backbone.name}: {one['source']}" for m, one in zip(study.members, found, strict=True)
    ]
    told: dict[str, Any] = {"source": "; ".join(named)}
    for key in ("sha256", "licence"):
        known = [one[key] or "not known" for one in found]
        told[key] = "; ".join(known) if any(one[key] for one in found) else None
    return told


def _weights_of(backbone: Backbone) -> dict[str, Any]:
    if backbone.weights == "none":
        return {"source": "random numbers", "sha256": None, "licence": None}
    if backbone.weights_file is not None:
        name, digest = backbone.weights_file.name, backbone.sha256
        return {"source": f"the file {name}", "sha256": digest, "licence": None}
    import timm  # noqa: PLC0415 - takes seconds, and this needs nothing but its list

    settings = timm.get_pretrained_cfg(backbone.name)
    hub = getattr(settings, "hf_hub_id", None)
    licence = getattr(settings, "license", None)
    where = f" ({hub})" if hub else ""
    return {"source": f"timm's weights{where}", "sha256": None, "licence": licence}


def _training(study: Study, records: Sequence[RoundRecord]) -> dict[str, Any]:
    """Return how the model was trained."""
    combined = [record for record in records if record.combined]
    return {
        "rounds_combined": len(combined),
        "strategy": study.federation.strategy,
        "weighting": study.federation.weighting,
        "normalisation": study.backbone.normalisation,
        "personal": study.federation.personal,
        **study.training.model_dump(mode="json"),
        "seconds": round(sum(record.seconds.get("total", 0.0) for record in records), 1),
    }


def _sites(records: Sequence[RoundRecord]) -> dict[str, dict[str, Any]]:
    """Return by site in how many rounds it answered, and how often and why it did not."""
    names = sorted({site for r in records for site in [*r.asked, *r.answered, *r.refused]})
    trained = [record for record in records if record.combined]
    return {
        site: {
            "rounds": sum(site in record.answered for record in trained),
            "refused": dict(Counter(r.refused[site] for r in records if site in r.refused)),
            "silent": sum(site in record.silent for record in records),
            "late": sum(record.late.count(site) for record in records),
            "audit_faults": sum(site in record.audit_faults for record in records),
        }
        for site in names
    }


def _last(records: Sequence[RoundRecord], name: str) -> dict[str, Any]:
    """Return what the last line that says something of a kind says."""
    said = (getattr(record, name) for record in reversed(records))
    return next((value for value in said if value), {})


def _spread(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spread over the sites of the metrics of ``SPREAD_OF``, by task and split."""
    found: dict[str, Any] = {}
    for task, splits in tasks.items():
        for split in HELD_OUT:
            sites = splits.get(split, {}).get("per_site", {})
            rows = {m: spread({s: of.get(m) for s, of in sites.items()}, m) for m in SPREAD_OF}
            if any(rows.values()):
                found.setdefault(task, {})[split] = {k: v for k, v in rows.items() if v}
    return found
