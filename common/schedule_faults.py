"""What no single key of ``[training.schedule]`` shows to be wrong."""

from collections.abc import Iterator
from typing import Any

from common.faults import Fault
from common.phases import last_patience
from common.training import Schedule

_DEFAULTS: dict[str, Any] = Schedule().model_dump(mode="json")
_OF_KIND = {
    "period": ("restarts", "step"),
    "growth": ("restarts",),
    "factor": ("step", "plateau"),
    "patience": ("plateau",),
    "floor": ("cosine", "restarts", "step", "plateau"),
}
"""Keys of a schedule, and the kinds that have them."""


def schedule_faults(schedule: dict[str, Any], rounds: Any) -> Iterator[Fault]:
    """Yield which keys of a schedule contradict each other, or cannot act in so many rounds."""
    kind = schedule.get("kind", "constant")
    for key, kinds in _OF_KIND.items():
        if schedule.get(key, _DEFAULTS[key]) != _DEFAULTS[key] and kind not in kinds:
            what = f"a schedule {kind!r} has none"
            remedy = f"leave it out, or use {' or '.join(kinds)}"
            if isinstance(kind, str):
                yield Fault(f"training.schedule.{key}", what, remedy)
    if kind in _OF_KIND["period"] and schedule.get("period") is None:
        yield Fault("training.schedule.period", f"{kind} needs it", "say how many rounds")
    if isinstance(rounds, int):
        yield from _late_faults(schedule, rounds)


def _late_faults(schedule: dict[str, Any], rounds: int) -> Iterator[Fault]:
    """Yield what would happen after the last round alone."""
    kind = schedule.get("kind")
    period, warmup = schedule.get("period"), schedule.get("warmup_rounds", 0)
    patience = schedule.get("patience", _DEFAULTS["patience"])
    if kind == "step" and isinstance(period, int | float) and period >= rounds:
        what = f"the first step would come after all {rounds} rounds"
        yield Fault("training.schedule.period", what, "make it shorter, or use another schedule")
    most = last_patience(rounds)
    if kind == "plateau" and isinstance(patience, int) and patience > most:
        remedy = f"use {most} or less" if most > 0 else "use another schedule"
        what = f"{rounds} rounds end before {patience} of them are known to bring nothing"
        yield Fault("training.schedule.patience", what, remedy)
    if isinstance(warmup, int | float) and warmup > max(rounds, 1):
        what = f"in {rounds} rounds the rates would never come to what the schedule says"
        yield Fault("training.schedule.warmup_rounds", what, f"use {max(rounds, 1)} or less")
