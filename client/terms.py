"""What it means to approve a study, in the words of the person who has to decide."""

from typing import Any

from client import training_terms
from client.config import SiteConfig
from common.study import Study

REPORTED = (
    "once: this site's name and software version",
    "once: for each task the patients and images in each split, and the unreadable images, counted",
    "once: the tasks whose patients are not known, so that each image counts as a patient",
    "each round: the change of every travelling array of the network, and what it weighs",
    "each round: the mean training loss, the number of steps, and the seconds it took",
    "each round: the held-out patients, counted, with a confusion matrix and sums over them",
    "each round: histograms of their predictions; of few images that is nearly the list of scores",
    "when something goes wrong: a code, and no text",
)
"""What leaves the site; ``docs/site.md`` says the same."""
NO_PRIVACY = (
    "none beyond this: the study asks for no differential privacy. Who has the changes of the "
    "network could learn something about single training images"
)
ATTENTION = (
    "at the end: where the network looks in test images, as means over patients; no map, no image"
)
"""Where the study asks for it and the hospital's limits let it go."""
LOSS = REPORTED[4]
NO_LOSS = "each round: the number of steps and the seconds it took; no loss, as no noise covers it"


def terms_of(study: Study, config: SiteConfig) -> dict[str, Any]:
    """Return all that a hospital agrees to, as JSON values.

    Args:
        study: The study.
        config: The hospital; its own limits are part of the terms.
    """
    backbone, training, split = study.backbone, study.training, study.split
    return {
        "study": study.name,
        "digest": study.digest(),
        "tasks": {
            name: {
                "modality": task.modality,
                "classes": task.classes,
                "data_here": name in config.data,
            }
            for name, task in study.tasks.items()
        },
        "network": study.network,
        "weights": ", ".join(
            file.name if (file := one.backbone.weights_file) else one.backbone.weights
            for one in study.members
        ),
        "image_size": backbone.image_size,
        "trained": training_terms.trained(study),
        "stays": training_terms.stays(study),
        "tells_sites_apart": training_terms.aligned(study),
        "images_from_elsewhere": training_terms.from_elsewhere(study),
        "validation_decides": training_terms.decided(study),
        "afterwards": training_terms.afterwards(study),
        "rounds": study.rounds,
        "most_trainings": study.rounds + config.limits.extra_rounds,
        "epochs_a_round": training.local_epochs,
        "batch_size": training.batch_size,
        "strategy": study.federation.strategy,
        "held_out": {"validation": split.validation, "test": split.test},
        "privacy": _privacy(study, config),
        "central_privacy": _central_privacy(study),
        "reported": _reported(study, config),
    }


def _reported(study: Study, config: SiteConfig) -> list[str]:
    lines = [NO_LOSS if study.privacy and line == LOSS else line for line in REPORTED]
    if study.evaluation.attention != "none" and config.limits.attention == "report":
        lines.insert(-1, ATTENTION)
    if study.federation.votes == "validation":
        lines.insert(-1, training_terms.MEMBERS)
    return lines


def _privacy(study: Study, config: SiteConfig) -> str:
    asked, limits = study.privacy, config.limits
    if asked is None:
        return NO_PRIVACY
    bounds = (asked.epsilon, limits.study_epsilon, limits.max_epsilon)
    epsilon = min(bound for bound in bounds if bound is not None)
    stated = [value for value in (asked.delta, limits.delta) if value is not None]
    delta = f"{min(stated):g}" if stated else "1 / patients^1.1"
    return (
        f"differential privacy for each training patient: epsilon {epsilon:g} at delta {delta} "
        f"over the whole study; of a step, a patient moves the sum of gradients by at most "
        f"{asked.clip_norm:g}. Held-out patients are not covered by noise"
    )


def _central_privacy(study: Study) -> str:
    """Return what the coordinator promises to do with the changes; nothing here can check it."""
    central = study.central_privacy
    if central is None:
        return "none: the coordinator adds no noise to what it makes of the sites' changes"
    bound = f"{central.clip_norm:g}"
    if central.clipping == "adaptive":
        bound += f" at first, then to what {central.target_quantile:.0%} of the sites keep to"
    return (
        f"the coordinator, which must be trusted for it, shortens each site's change to {bound}, "
        f"and adds noise of {central.noise_multiplier:g} times that to their sum in each round"
    )


def lines_of(terms: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the terms as names and texts, for a person."""
    tasks = [
        f"{name}: {task['modality']}, {', '.join(task['classes'])}"
        + ("" if task["data_here"] else " (no data here)")
        for name, task in terms["tasks"].items()
    ]
    held, size = terms["held_out"], terms["image_size"]
    rounds = f"{terms['rounds']} rounds of {terms['epochs_a_round']} epochs"
    return [
        ("study", terms["study"]),
        ("tasks", "\n".join(tasks)),
        ("network", f"{terms['network']}, on images of {size} x {size} pixels"),
        ("begins with", terms["weights"]),
        ("trains", terms["trained"]),
        ("stays here", terms["stays"]),
        ("training", f"{rounds}, batches of {terms['batch_size']}, by {terms['strategy']}"),
        ("limit here", f"{terms['most_trainings']} trainings in all"),
        ("held out", f"{held['validation']:.0%} validation, {held['test']:.0%} test patients"),
        ("images from elsewhere", terms["images_from_elsewhere"]),
        ("discriminator", terms["tells_sites_apart"]),
        ("validation figures decide", terms["validation_decides"]),
        ("commands here afterwards", terms["afterwards"]),
        ("privacy", terms["privacy"]),
        ("central noise", terms["central_privacy"]),
        ("reported", "\n".join(f"- {line}" for line in terms["reported"])),
        ("digest", terms["digest"]),
    ]
