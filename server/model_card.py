"""The model card: what a study's model is, how it came about, and what it must not be used for.

The headings are those of Mitchell et al. 2019, "Model Cards for Model Reporting"
(doi:10.1145/3287560.3287596).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.held_out import HELD_OUT
from common.study import Study
from server.card_figures import attention, bullets, figures, operating, table
from server.history import MEMBERS

MODEL_CARD = "MODEL_CARD.md"
_UNKNOWN = "not known here"


def markdown(card: Mapping[str, Any], study: Study) -> str:
    """Return the model card in Markdown.

    Args:
        card: What ``server.export`` writes as ``card.json``.
        study: The study.
    """
    parts = [
        f"# Model card: {card['study']}",
        f"**{card['notice']}**",
        "## Model details",
        _details(card, study),
        "## Intended use",
        _use(card),
        "## Factors",
        _factors(card),
        "## Metrics",
        _metrics(card),
        "## Evaluation data",
        _data(card, HELD_OUT),
        "## Training data",
        _data(card, ("train",)),
        _preparation(study),
        "## Quantitative analyses",
        figures(card, study),
        operating(card),
        attention(card),
        "## Ethical considerations",
        _privacy(card["privacy"]),
        "## Caveats and recommendations",
        _caveats(card, study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _details(card: Mapping[str, Any], study: Study) -> str:
    return bullets(
        [
            *_network(card, study),
            *_ending(card, study),
            *_votes(card, study),
            *_trained(card, study),
            f"rarefed {card['software']}, protocol {card['protocol']}.",
            *_onnx(card),
        ]
    )


def _network(card: Mapping[str, Any], study: Study) -> list[str]:
    """Return what network it is, and how its file is told from others."""
    tasks, own = ", ".join(card["tasks"]), study.federation.personal == "head"
    heads = f"without the heads of {tasks}" if own else f"one linear head for each of {tasks}"
    heads += " in each of them, whose probabilities are averaged" if study.ensemble else ""
    return [
        (
            f"Network: {card['backbone']}, {heads}; "
            f"images of {card['image_size']} x {card['image_size']} pixels."
        ),
        (
            f"`{card['model']}`, SHA-256 {card['sha256']}; digest of its arrays, which predictions "
            f"name: {card['arrays_sha256']}; study digest {card['digest']}."
        ),
        (
            f"After {card['round']} of {card['rounds']} rounds ({card['state']}), of which "
            f"{card['training']['rounds_combined']} were combined from the sites' changes."
        ),
    ]


def _trained(card: Mapping[str, Any], study: Study) -> list[str]:
    """Return from which weights it began, and how it was trained."""
    training, weights = card["training"], card["weights"]
    licence = weights["licence"] or "not known here: it is that of their source"
    digest = f" with the SHA-256 {weights['sha256']}" if weights["sha256"] else ""
    begun = (
        "random numbers"
        if all(member.backbone.weights == "none" for member in study.members)
        else f"{weights['source']}{digest}; licence of these weights: {licence}"
    )
    return [
        f"Weights began as: {begun}.",
        (
            f"Strategy {training['strategy']}, weighting by {training['weighting']}; at each site "
            f"and round {training['local_epochs']} local epochs of {training['optimizer']}, loss "
            f"{training['loss']}, layers trained: {training['train']}; batch normalisation: "
            f"{training['normalisation']}."
        ),
    ]


def _onnx(card: Mapping[str, Any]) -> list[str]:
    onnx = card.get("onnx")
    if not onnx:
        return []
    given = f" and {onnx['images']} given ones." if onnx["images"] else "."
    return [
        f"`{onnx['file']}`, SHA-256 {onnx['sha256']}: opset {onnx['opset']}; largest "
        f"difference of a logit from torch {onnx['largest_difference']:.1e}, on random images"
        + given
    ]


def _ending(card: Mapping[str, Any], study: Study) -> list[str]:
    """Return what is special in how the study ended: why early, and with which model."""
    told = [card["stopped"]] if card["stopped"] else []
    if averaged := card["averaged"]:
        told.append(f"The model is the mean of those after rounds {averaged[0]} to {averaged[-1]}.")
    if study.federation.keep == "best" and card["model_round"] < card["round"]:
        told.append(
            f"The model is that after round {card['model_round']}, the best on validation patients."
        )
    return told


def _votes(card: Mapping[str, Any], study: Study) -> list[str]:
    """Return what each member of an ensemble weighs, where the model says it."""
    names = [member.backbone.name for member in study.members]
    told = []
    for task, weights in card.get("votes", {}).items():
        shares = ", ".join(f"{n} {w:.3f}" for n, w in zip(names, weights, strict=True))
        measured = card["figures"].get(task, {}).get("validation", {})
        why = "" if MEMBERS in measured else ", for no scores of theirs were reported"
        told.append(f"{task}: in the mean of the probabilities the networks weigh {shares}{why}.")
    return told


def _use(card: Mapping[str, Any]) -> str:
    told = [
        f"{name}: tells {', '.join(task['classes'])} apart on {task['modality']} images"
        + (f", looking for {task['positive']}" if task["positive"] else "")
        for name, task in card["tasks"].items()
    ]
    return (
        "For research on the method, and on images like those of the sites below:\n\n"
        + bullets(told)
        + "\n\nOut of scope: any decision about a patient, other modalities and scanners than the "
        "sites', findings that are no class of a task, and people unlike the sites' patients."
    )


def _factors(card: Mapping[str, Any]) -> str:
    sites = ", ".join(card["sites_seen"]) or "none"
    return (
        f"Sites: {sites}. Each has scanners, patients and ways of labelling of its own, so figures "
        "are told site by site. Sex, age and scanner are known to the sites alone: their own "
        "reports have the figures of these groups."
    )


def _metrics(card: Mapping[str, Any]) -> str:
    number = card["measured_round"]
    if number is None:
        return "The model has not been measured."
    same = card["measured_same"]
    of = "this model" if same else f"the model after {number} rounds, not of the one exported"
    return (
        f"Each site measured {of} on its own held-out patients and sent sums and histograms, from "
        "which the figures were computed once. An interval in brackets holds 95 %. Figures that "
        "fewer patients stand behind than a site allows were suppressed there."
    )


def _data(card: Mapping[str, Any], splits: Sequence[str]) -> str:
    rows = [
        (site, task, split, found[split]["patients"], found[split]["images"])
        for site, tasks in sorted(card["declared"].items())
        for task, found in tasks.items()
        for split in splits
    ]
    if not rows:
        return f"Numbers of patients: {_UNKNOWN}."
    notes = [
        f"{site} does not know the patients of {', '.join(tasks)}: there each image counts as one."
        for site, tasks in sorted(card["each_image"].items())
    ]
    told = table(("site", "task", "split", "patients", "images"), rows)
    said = "As the sites stated them; a site may round to fives."
    return "\n\n".join([said, told, *([bullets(notes)] if notes else [])])


def _preparation(study: Study) -> str:
    lines = []
    for name, task in study.tasks.items():
        said = {
            "window": task.window,
            "slices": task.slices,
            "intensity": task.intensity if task.modality == "MR" else None,
            "preparation": task.preparation and task.preparation.model_dump(mode="json"),
            "augmentation": task.augmentation and task.augmentation.model_dump(mode="json"),
        }
        shown = [f"{key} {json.dumps(value)}" for key, value in said.items() if value is not None]
        lines.append(f"{name}: {task.modality}; {'; '.join(shown)}")
    return "What images go through:\n\n" + bullets(lines)


def _privacy(privacy: Mapping[str, Any]) -> str:
    lines = ["No image, label, name or patient key left a site; model numbers and sums did."]
    if site := privacy["patients"]:
        delta = site["delta"] or "1 / patients^1.1 of the site"
        lines.append(
            f"Differential privacy of each training patient at each site: epsilon at most "
            f"{site['epsilon']} at delta {delta}, gradients bounded at {site['clip_norm']}. What "
            "each site has spent stands in its own ledger and is not known here. The figures above "
            "are not covered by it."
        )
    else:
        lines.append("The study asks for no differential privacy of the training patients.")
    if central := privacy["sites"]:
        spent = central["spent"]
        told = (
            f"epsilon {spent['epsilon']:.3g} at delta {spent['delta']:.1g} after "
            f"{central['rounds']} combined rounds"
            if spent
            else "nothing was combined yet"
        )
        lines.append(
            f"Noise at the coordinator hides each site's change of the model "
            f"(multiplier {central['noise_multiplier']}): {told}. It does not cover the figures."
        )
    else:
        lines.append("The coordinator added no noise: it saw each site's change of the model.")
    return bullets(lines)


def _caveats(card: Mapping[str, Any], study: Study) -> str:
    lines = [
        f"{card['notice']}",
        (
            "No site outside the study has tested the model, unless a site below took no part in "
            "training. Test it on your own patients first: `rarefed-client evaluate`."
        ),
    ]
    if study.backbone.normalisation == "local":
        lines.append(
            "Batch normalisation stayed at each site: this file has that of the beginning, and its "
            "figures are of the sites' own versions. Elsewhere it does worse."
        )
    if study.federation.personal == "head":
        lines.append(
            "Each site kept its own heads: this file is a backbone alone and predicts nothing. Its "
            "figures are of the sites' own versions. It can be the weights of another study."
        )
    if study.evaluation.adapted:
        lines.append(
            "The sites measured it with batch normalisation re-estimated on the images of each "
            "split: of single images, with the statistics in this file, it says something else."
        )
    lines += [
        f"{name}: no temperature and no threshold are known; its probabilities may be too sure, "
        "and the class of highest probability is no operating point."
        for name in study.tasks
        if not card["operating"].get(name) and study.federation.personal == "none"
    ]
    lines += _failures(card)
    return bullets(lines)


def _failures(card: Mapping[str, Any]) -> list[str]:
    """Return what went wrong on the way, site by site."""
    lines = []
    for site, seen in card["sites_seen"].items():
        told = [f"refused {n} times ({why})" for why, n in seen["refused"].items()]
        told += [f"silent {seen['silent']} times"] if seen["silent"] else []
        told += [f"late {seen['late']} times"] if seen["late"] else []
        told += [f"audit log at odds {seen['audit_faults']} times"] if seen["audit_faults"] else []
        if told or seen["rounds"] < card["training"]["rounds_combined"]:
            rounds = f"in {seen['rounds']} of {card['training']['rounds_combined']} rounds"
            lines.append(f"{site}: {'; '.join([rounds, *told])}")
    return lines or ["Every site that was asked answered in every round."]
