"""What no single key of ``[training]`` and of what follows the rounds shows to be wrong."""

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from common.faults import Fault, table
from common.phases import last_patience, last_phase_begins, lies_within
from common.schedule_faults import schedule_faults
from common.training import Training

_DEFAULTS: dict[str, Any] = Training().model_dump(mode="json")
"""What an order writes out: a key that means nothing there is a fault only with another value."""

_NEEDS = {
    "momentum": ("optimizer", ("sgd",)),
    "focal_gamma": ("loss", ("focal", "hybrid")),
    "hybrid_share": ("loss", ("hybrid",)),
}
"""Keys that mean nothing unless another has one of certain values."""

_NOT_PRIVATE: tuple[tuple[str, Any, str], ...] = (
    ("class_weights", "none", "weights that follow from the counts of the classes"),
    ("sampling", "shuffle", "drawing images by their class"),
    ("source_weighting", "none", "weights that follow from other patients' images"),
    ("distillation_weight", 0.0, "distillation"),
    ("phases", [], "phases"),
    ("unfreeze_every", None, "gradual unfreezing"),
    ("views", 0, "variations that anybody with the study's seed can draw again"),
    ("adversarial_weight", 0.0, "a discriminator of sites"),
)
"""What the accounting of a study with privacy does not cover, with the key's value without it."""

_ROBUST = ("fedmedian", "fedtrimmedavg", "krum")
"""Strategies that leave out in what a site differs from others, which is what a discriminator of
sites is made of."""


def training_faults(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield which keys of ``[training]`` contradict each other, or the rest of the study."""
    training = table(values, "training")
    yield from _unused(training)
    yield from schedule_faults(table(training, "schedule"), values.get("rounds"))
    yield from _phase_faults(training, values.get("rounds"))
    if training.get("views"):
        yield from _views_faults(training, table(values, "tasks"))
    yield from _objective_faults(training, table(values, "backbone"))
    yield from _adversarial_faults(training, values)
    phased = training.get("phases") or training.get("unfreeze_every")
    if isinstance(values.get("central_privacy"), dict) and phased:
        yield from _noisy_faults(training)
    if isinstance(values.get("privacy"), dict):
        yield from _private_faults(training)


def ending_faults(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong with how a study ends."""
    federation, rounds = table(values, "federation"), values.get("rounds")
    last = federation.get("average_last", 1)
    if isinstance(last, int) and isinstance(rounds, int) and last > max(rounds, 1):
        yield Fault(
            "federation.average_last", f"there are {rounds} rounds", f"use {rounds} or less"
        )
    if last != 1 and federation.get("keep", "last") == "best":
        remedy = "use one of the two"
        yield Fault("federation.average_last", "the best round's model is kept instead", remedy)
    if federation.get("early_stopping") is not None and isinstance(rounds, int):
        yield from _stopping_faults(values, federation, rounds)
    if table(values, "split").get("validation") == 0:
        yield from _unscored_faults(values, federation)
    if federation.get("personal", "none") == "head":
        yield from _personal_faults(values)
    yield from _local_faults(values, federation)


def _stopping_faults(
    values: dict[str, Any], federation: dict[str, Any], rounds: int
) -> Iterator[Fault]:
    """Yield what is wrong with an early end: it has to be able to come."""
    patience = table(federation, "early_stopping").get("patience", 10)
    begins = _last_phase_begins(table(values, "training"))
    most = last_patience(rounds, begins)
    if isinstance(patience, int) and patience > most:
        remedy = f"use {most} or less" if most > 0 else "leave early_stopping out"
        what = f"{rounds} rounds end before {patience} of them are known to bring nothing"
        if begins > 1:
            what += f", counted from the last phase on, which begins with round {begins}"
        yield Fault("federation.early_stopping.patience", what, remedy)


def _unscored_faults(values: dict[str, Any], federation: dict[str, Any]) -> Iterator[Fault]:
    """Yield what hangs on validation scores that no round will have."""
    schedule = table(table(values, "training"), "schedule")
    asked = {
        "federation.keep": federation.get("keep") == "best",
        "federation.early_stopping": federation.get("early_stopping") is not None,
        "federation.votes": federation.get("votes") == "validation",
        "training.schedule.kind": schedule.get("kind") == "plateau",
    }
    for where in (key for key, is_asked in asked.items() if is_asked):
        yield Fault(where, "no patients are held out for it", "give split.validation a share")


def _last_phase_begins(training: dict[str, Any]) -> int:
    """Return the first round of the last phase, or the least that it can be; 1 of no right ones."""
    try:
        # How many stages there are tells the network alone, which has one at least.
        return last_phase_begins(Training.model_validate(training), stages=1)
    except ValidationError:
        return 1


def _unused(training: dict[str, Any]) -> Iterator[Fault]:
    for key, (other, wanted) in _NEEDS.items():
        found = training.get(other, _DEFAULTS[other])
        if training.get(key, _DEFAULTS[key]) != _DEFAULTS[key] and found not in wanted:
            what = f"it means nothing with {other} = {found!r}"
            remedy = f"leave it out, or use {' or '.join(map(repr, wanted))}"
            yield Fault(f"training.{key}", what, remedy)


def _phase_faults(training: dict[str, Any], rounds: Any) -> Iterator[Fault]:
    phases, every = training.get("phases") or [], training.get("unfreeze_every")
    if not phases and every is None:
        return
    where = "training.phases" if phases else "training.unfreeze_every"
    if phases and every is not None:
        yield Fault("training.unfreeze_every", "phases say what trains when", "use one of the two")
    if training.get("train", "all") == "head":
        yield Fault(where, "there is nothing more to train later", "use training.train = 'all'")
    if not isinstance(phases, list):
        return
    train = training.get("train", "all")
    for name in dict.fromkeys(str(p.get("train")) for p in phases if isinstance(p, dict)):
        if train != "head" and not lies_within(name, str(train)):
            what = f"{name!r} is more than training.train = {train!r}"
            yield Fault("training.phases.train", what, "let a phase train fewer layers")
    if not isinstance(rounds, int):
        return
    of_phases = [phase.get("rounds") for phase in phases if isinstance(phase, dict)]
    total = sum(number for number in of_phases if isinstance(number, int))
    if max(total, every if isinstance(every, int) else 0) >= max(rounds, 1):
        yield Fault(where, f"after them none of the {rounds} rounds is left", "make them shorter")


def _views_faults(training: dict[str, Any], tasks: dict[str, Any]) -> Iterator[Fault]:
    if not any(isinstance(table(tasks, name).get("augmentation"), dict) for name in tasks):
        remedy = "leave it out, or give a task an augmentation"
        yield Fault("training.views", "no task's images are varied", remedy)
    phases = training.get("phases")
    listed = phases if isinstance(phases, list) else []
    narrow = [p for p in listed if isinstance(p, dict) and p.get("train") != "all"]
    if training.get("train", "all") == "all" and not narrow and not training.get("unfreeze_every"):
        remedy = "leave it out, or have fewer layers train, or in fewer rounds"
        yield Fault("training.views", "nothing is frozen whose output could be kept", remedy)


def _objective_faults(training: dict[str, Any], backbone: dict[str, Any]) -> Iterator[Fault]:
    if training.get("label_smoothing") and training.get("loss") in ("focal", "hybrid"):
        what = "the focal loss is of one class an image, not of softened labels"
        yield Fault("training.label_smoothing", what, "use loss = 'cross_entropy'")
    if training.get("class_weights") == "balanced" and training.get("sampling") == "balanced":
        what = "images of rare classes are drawn more often already"
        yield Fault("training.class_weights", what, "use one of the two")
    near = [key for key in ("anchor_weight", "distillation_weight") if training.get(key)]
    for key in near:
        yield from _near_faults(key, training, backbone)
    if training.get("task_weight", 1.0) != 1.0 and not near:
        remedy = "leave it out, or set anchor_weight or distillation_weight"
        yield Fault("training.task_weight", "there is nothing that it weighs against", remedy)
    if training.get("layer_decay", 1.0) != 1.0 and training.get("train") == "head":
        yield Fault("training.layer_decay", "no layer of the backbone trains", "leave it out")
    floor = _DEFAULTS["layer_decay_floor"]
    decays = training.get("layer_decay", 1.0) != 1.0
    if training.get("layer_decay_floor", floor) != floor and not decays:
        yield Fault("training.layer_decay_floor", "rates do not decay", "set layer_decay below 1")


def _adversarial_faults(training: dict[str, Any], values: dict[str, Any]) -> Iterator[Fault]:
    """Yield why no discriminator could make the sites' features alike."""
    weight, sites = (f"training.adversarial_{key}" for key in ("weight", "sites"))
    most, federation = training.get("adversarial_sites"), table(values, "federation")
    if not training.get("adversarial_weight"):
        if most is not None:
            yield Fault(sites, "nothing is aligned", "leave it out, or set adversarial_weight")
        return
    if most is None:
        yield Fault(sites, "adversarial_weight needs it", "say how many sites may take part")
    quorum = federation.get("quorum", 2)
    if isinstance(most, int) and isinstance(quorum, int) and most < quorum:
        what = f"no more sites than that could take part, and the quorum is {quorum}"
        yield Fault(sites, what, f"use {quorum} or more")
    if training.get("train") == "head":
        yield Fault(weight, "features of a frozen backbone stay as they are", "leave it out")
    if federation.get("strategy", "fedavg") in _ROBUST:
        what = f"{federation['strategy']} leaves out in what one site differs from the others"
        yield Fault(weight, what, "leave it out, or use a strategy that takes the mean")
    if values.get("ensemble"):
        what = "the members of an ensemble have features of their own each"
        yield Fault(weight, what, "leave it out, or use one network")


def _near_faults(key: str, training: dict[str, Any], backbone: dict[str, Any]) -> Iterator[Fault]:
    """Yield why ``anchor_weight`` or ``distillation_weight`` cannot hold the backbone anywhere."""
    where = f"training.{key}"
    if training.get("train") == "head":
        yield Fault(where, "a frozen backbone stays where it began", "leave it out")
    if backbone.get("weights") == "none":
        what = "random weights are nothing to stay near"
        yield Fault(where, what, "use pretrained weights")
    if key == "distillation_weight" and _narrows(training):
        what = "stages that are frozen after they trained do not give the initial features"
        yield Fault(where, what, "let no phase train less than the one before it")
    if key == "anchor_weight" and training.get("optimizer") == "sgd":
        rate, momentum = (training.get(k, _DEFAULTS[k]) for k in ("backbone_lr", "momentum"))
        given = (training[key], rate, momentum)
        # An integer of the file may be longer than any number that its key takes.
        known = all(isinstance(v, int | float) and 0 <= v <= sys.float_info.max for v in given)
        # Polyak 1964: gradient descent with momentum m on a / 2 * ||w - w0||^2 converges for
        # 0 < a * lr < 2 * (1 + m).
        if known and given[0] * rate >= 2 * (1 + momentum):
            what = "times backbone_lr it is so much that every step of sgd would be too long"
            yield Fault(where, what, f"stay below {2 * (1 + momentum) / rate:g}")


def _noisy_faults(training: dict[str, Any]) -> Iterator[Fault]:
    if training.get("distillation_weight"):
        what = "the noise of central_privacy moves stages before a phase trains them"
        yield Fault("training.distillation_weight", what, "leave out the phases, or one of the two")


def _narrows(training: dict[str, Any]) -> bool:
    """Say whether a phase freezes what an earlier one trained."""
    phases = training.get("phases")
    listed = phases if isinstance(phases, list) else []
    said = [phase.get("train") for phase in listed if isinstance(phase, dict)]
    words = [word for word in (*said, training.get("train", "all")) if isinstance(word, str)]
    return not all(lies_within(earlier, later) for earlier, later in pairwise(words))


def _private_faults(training: dict[str, Any]) -> Iterator[Fault]:
    for key, plain, what in _NOT_PRIVATE:
        if training.get(key, plain) != plain:
            yield Fault(f"training.{key}", f"privacy does not cover {what}", "leave it out")


def _personal_faults(values: dict[str, Any]) -> Iterator[Fault]:
    if table(values, "training").get("train") == "head":
        remedy = "let a part of the backbone train, or share the heads"
        yield Fault("federation.personal", "nothing would be trained together", remedy)


def _local_faults(values: dict[str, Any], federation: dict[str, Any]) -> Iterator[Fault]:
    """Yield what cannot be where arrays stay at the sites: those are of the last round alone."""
    backbone = table(values, "backbone")
    local = [
        name
        for name, wanted, found in (
            ("local normalisation", "local", backbone.get("normalisation")),
            ("personal heads", "head", federation.get("personal")),
        )
        if found == wanted
    ]
    for key, plain in (("keep", "last"), ("average_last", 1)):
        if local and federation.get(key, plain) != plain:
            what = f"the sites keep {' and '.join(local)} of the last round alone"
            yield Fault(f"federation.{key}", what, "leave it out")
