"""What can be wrong with a study, found all at once and each with its remedy."""

import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from common.backbones import values_of_members
from common.ensemble_faults import at_member, ensemble_faults
from common.evaluation_faults import evaluation_faults
from common.faults import Fault, table
from common.federation import LEAST_SITES, MEAN_STRATEGIES, OPTION_RANGES, STRATEGY_OPTIONS
from common.training_faults import ending_faults, training_faults

_ADAPTIVE = {"target_quantile": 0.5, "clip_learning_rate": 0.2, "count_noise": None}
"""Keys of an adaptive bound, with their defaults."""

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: dict[str, Any]) -> tuple[Model | None, list[Fault]]:
    """Return the checked model, or None, and every fault of ``values``.

    Combinations are checked on the raw values wherever their parts are of the right type, so
    that one wrong key does not hide the faults of another.
    """
    checked, faults = with_right_keys(model, values)
    return checked, [*faults, *combination_faults(values, faults)]


def with_right_keys(model: type[Model], values: dict[str, Any]) -> tuple[Model | None, list[Fault]]:
    """Return the model, or None, and each key that is none or whose value is wrong by itself."""
    try:
        return model.model_validate_json(_as_json(values)), []
    except ValidationError as error:
        return None, [_fault(model, detail) for detail in error.errors(include_url=False)]


def combination_faults(values: dict[str, Any], told: Sequence[Fault]) -> list[Fault]:
    """Return what no single key of a study shows to be wrong, but of keys with a fault already."""
    found = {fault.where for fault in told}
    return [fault for fault in _all_combinations(values) if fault.where not in found]


def _as_json(values: dict[str, Any]) -> bytes:
    """TOML's own types (dates, infinities) become text, which the types below then refuse."""
    import json  # noqa: PLC0415 - only here, and its name would shadow nothing else

    return json.dumps(values, default=str).encode()


def _fault(model: type[BaseModel], detail: ErrorDetails) -> Fault:
    where = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] == "extra_forbidden":
        return Fault(where, "no such key", _nearest(model, detail["loc"]))
    if detail["type"] == "missing":
        return Fault(where, "this key is missing", "add it")
    value = detail["input"]
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
    message = detail["msg"].removeprefix("Value error, ")
    return Fault(where, f"{message[0].lower()}{message[1:]}{shown}", "correct the value")


def _nearest(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Name the key that was perhaps meant, or all that there are."""
    owner: Any = model
    for part in location[:-1]:
        fields = getattr(owner, "model_fields", {})
        if part in fields:
            owner = _section_of(fields[part].annotation)
    known = sorted(getattr(owner, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"remove it; known are {', '.join(known)}"


def _section_of(annotation: Any) -> Any:
    """The model inside ``dict[Slug, Task]``, or the annotation itself."""
    inner = [part for part in get_args(annotation) if hasattr(part, "model_fields")]
    return inner[0] if inner else annotation


def _all_combinations(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield what ``_combinations`` finds in the study, or in that of each member of an ensemble."""
    members = enumerate(values_of_members(values))
    found = [at_member(f, values, n) for n, alone in members for f in _combinations(alone)]
    yield from dict.fromkeys(found)  # what is wrong with each member alike is told once
    yield from ensemble_faults(values)


def _combinations(values: dict[str, Any]) -> Iterator[Fault]:
    """Yield what no single key shows to be wrong."""
    tasks = table(values, "tasks")
    for name, task in tasks.items():
        if isinstance(task, dict):
            yield from _task_faults(f"tasks.{name}", task)
    yield from _backbone_faults(values)
    yield from _strategy_faults(table(values, "federation"))
    yield from training_faults(values)
    yield from ending_faults(values)
    yield from evaluation_faults(values)
    bounded = table(values, "training").get("clip_norm") is not None
    if bounded and isinstance(values.get("privacy"), dict):
        remedy = "leave it out: privacy.clip_norm bounds the gradient of each patient"
        yield Fault("training.clip_norm", "a study with privacy bounds gradients twice", remedy)
    if isinstance(values.get("central_privacy"), dict):
        yield from _central_faults(values["central_privacy"], table(values, "federation"))
    split = table(values, "split")
    shares = [split.get("validation", 0.15), split.get("test", 0.25)]
    if all(isinstance(share, int | float) for share in shares) and sum(shares) >= 1:
        yield Fault("split", "validation and test leave nothing to train on", "make them smaller")


def _task_faults(where: str, task: dict[str, Any]) -> Iterator[Fault]:
    classes, positive = task.get("classes"), task.get("positive")
    if isinstance(classes, list):
        if len({str(name) for name in classes}) < len(classes):
            yield Fault(f"{where}.classes", "a class is named twice", "name each class once")
        if positive is not None and positive not in classes:
            known = ", ".join(map(str, classes))
            yield Fault(f"{where}.positive", f"{positive!r} is no class", f"use one of {known}")
        if positive is not None and len(classes) != 2:  # noqa: PLR2004 - two is two
            remedy = "leave 'positive' out for a multi-class task"
            yield Fault(f"{where}.positive", f"{len(classes)} classes have no positive one", remedy)
    if task.get("window") is not None and task.get("modality") in ("MR", "fundus", "OCT"):
        remedy = "leave it out: only CT is measured in Hounsfield units"
        yield Fault(f"{where}.window", f"a window means nothing on {task['modality']}", remedy)


def _backbone_faults(values: dict[str, Any]) -> Iterator[Fault]:
    backbone = table(values, "backbone")
    weights = backbone.get("weights", "pretrained")
    train = table(values, "training").get("train", "all")
    if backbone.get("normalisation") == "local" and train == "head":
        what = "a frozen backbone has none that a site could keep to itself"
        remedy = "let a part of the backbone train, or leave it out"
        yield Fault("backbone.normalisation", what, remedy)
    if not isinstance(weights, str):
        return
    if weights not in ("pretrained", "none") and not weights.endswith(".safetensors"):
        remedy = "use 'pretrained', 'none' or the path of a .safetensors file"
        yield Fault("backbone.weights", f"{weights!r} is none of the three forms", remedy)
    if backbone.get("sha256") and weights in ("pretrained", "none"):
        remedy = "leave it out, or give a weights file"
        yield Fault("backbone.sha256", "there is no weights file to compare with", remedy)
    if weights != "none":
        return
    if train != "all":
        remedy = "use pretrained weights, or train = 'all'"
        yield Fault("training.train", "a random backbone would stay frozen at random", remedy)
    if backbone.get("normalisation") == "frozen":
        remedy = "use pretrained weights, or normalisation = 'average'"
        yield Fault("backbone.normalisation", "random weights have no statistics to freeze", remedy)


def _strategy_faults(federation: dict[str, Any]) -> Iterator[Fault]:
    name, options = federation.get("strategy", "fedavg"), federation.get("options", {})
    if not isinstance(name, str):
        return
    if name not in STRATEGY_OPTIONS:
        close = difflib.get_close_matches(str(name), STRATEGY_OPTIONS, n=1)
        known = f"did you mean {close[0]!r}?" if close else f"use {', '.join(STRATEGY_OPTIONS)}"
        yield Fault("federation.strategy", f"there is no strategy {name!r}", known)
        return
    options = options if isinstance(options, dict) else {}
    for option, value in options.items():
        yield from _option_faults(name, option, value)
    quorum, least = federation.get("quorum", 2), LEAST_SITES.get(name, 1)
    malicious = options.get("num_malicious_nodes", 0)
    if name == "krum" and isinstance(malicious, int | float) and malicious > 0:
        least += 2 * math.ceil(min(malicious, 1000))  # n >= 2 f + 3, Blanchard et al. 2017
    if isinstance(quorum, int) and quorum < least:
        what = f"{name} means nothing with fewer than {least} sites"
        yield Fault("federation.quorum", what, f"set it to {least} or more")


def _central_faults(central: dict[str, Any], federation: dict[str, Any]) -> Iterator[Fault]:
    if federation.get("weighting", "patients") != "equal":
        what = "with central privacy no site may weigh more than another"
        yield Fault("federation.weighting", what, "set it to 'equal'")
    strategy = federation.get("strategy", "fedavg")
    if strategy in list(STRATEGY_OPTIONS) and strategy not in MEAN_STRATEGIES:
        what = f"one site can move the result of {strategy} further than central privacy hides"
        yield Fault("federation.strategy", what, f"use one of {', '.join(MEAN_STRATEGIES)}")
    fixed = central.get("clipping", "fixed") == "fixed"
    for key, default in _ADAPTIVE.items():
        if fixed and central.get(key, default) != default:
            remedy = "leave it out, or set central_privacy.clipping to 'adaptive'"
            yield Fault(f"central_privacy.{key}", "a fixed bound does not adapt", remedy)
    noise, count = central.get("noise_multiplier"), central.get("count_noise")
    if fixed or not isinstance(noise, int | float) or not isinstance(count, int | float):
        return
    if count <= noise / 2:  # Andrew et al. 2021, theorem 1: nothing is left for the changes
        what = f"so little noise on the count costs more than a noise multiplier of {noise:g}"
        yield Fault("central_privacy.count_noise", what, f"set it above {noise / 2:g}")


def _option_faults(strategy: str, option: str, value: Any) -> Iterator[Fault]:
    where, known = f"federation.options.{option}", STRATEGY_OPTIONS[strategy]
    if option not in known:
        remedy = f"use {', '.join(known)}" if known else "remove it"
        yield Fault(where, f"{strategy} has no such setting", remedy)
        return
    if not isinstance(value, int | float):
        return
    least, below = OPTION_RANGES[option]
    if not least <= value < below:
        remedy = f"use {least:g} or more, and less than {below:g}"
        yield Fault(where, f"{value} is out of range", remedy)
    elif option == "num_malicious_nodes" and value != int(value):
        yield Fault(where, f"{value} is no number of sites", "use a whole number")
