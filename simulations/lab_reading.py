"""Reads a lab file: all that is wrong with it is told at once, with its rows' studies."""

from pathlib import Path
from typing import Any

from common.errors import StudyError
from common.faults import Fault, table
from common.files import read_toml
from common.study_faults import with_right_keys
from simulations.lab import Lab, Loaded, combination_faults, quick_faults, refusal, with_quick
from simulations.lab_rows import row_faults

_READABLE = "Give the path of a TOML file, or the name of a lab; docs/lab.md describes both."
_PLACEHOLDERS: dict[str, Any] = {
    "name": "lab", "seeds": [0], "hospitals": {"folder": "."}, "quick": {},
}  # fmt: skip
"""What stands for a key that is wrong while rows are looked at, which do not depend on it."""


def load(
    file: Path, *, quick: bool = False, data: Path | None = None, weights: Path | None = None
) -> Loaded:
    """Read a lab file.

    Args:
        file: The lab file.
        quick: Put in what its table ``quick`` says.
        data: Folder of data sets.
        weights: Folder of weights files.

    Raises:
        StudyError: The file or its base study is missing or no TOML, or lists every fault with its
            remedy.
        MissingFolderError: ``weights`` is no folder.
    """
    values = read_toml(file, StudyError, remedy=_READABLE)
    faults: list[Fault] = []
    if quick:
        faults += quick_faults(values)
        values = with_quick(values)
    lab, wrong = with_right_keys(Lab, values)
    faults += wrong
    faults += [f for f in combination_faults(values) if f.where not in {g.where for g in faults}]
    sound = _sound(values, faults) if faults else lab
    if sound is not None:
        loaded = _loaded(sound, file, faults, data, weights)
        if loaded is not None:
            faults += row_faults(loaded, whole=not _is_wrong(("rows", "grid"), faults))
            if not faults:
                return loaded
    raise refusal(file.name, faults)


def _loaded(
    lab: Lab, file: Path, faults: list[Fault], data: Path | None, weights: Path | None
) -> Loaded | None:
    """Return the lab with its base study; where that cannot be read it is one fault of several."""
    try:
        base = _base(lab, file.parent)
    except StudyError as error:
        if not faults:
            raise
        faults.append(Fault("study", error.message.rstrip("."), error.remedy.rstrip(".")))
        return None
    return Loaded(lab, file.parent, base, data, weights)


def _base(lab: Lab, folder: Path) -> dict[str, Any]:
    """Return the base study's values; its name is the lab's by default."""
    if isinstance(lab.study, dict):
        return {"name": lab.name} | lab.study
    file = folder / lab.study
    values = read_toml(file, StudyError, remedy="Correct the key 'study' of the lab.")
    backbone = table(values, "backbone")
    weights = backbone.get("weights")
    if isinstance(weights, str) and weights.endswith(".safetensors"):
        values["backbone"] = backbone | {"weights": str(file.parent / weights)}
    return values


def _sound(values: dict[str, Any], faults: list[Fault]) -> Lab | None:
    """Return the lab without what is wrong with it; None where no row could be looked at."""
    kept = {key: values[key] for key in Lab.model_fields if key in values}
    for key in ("rows", "grid"):
        kept[key] = {
            name: of
            for name, of in table(values, key).items()
            if not _is_wrong((f"{key}.{name}",), faults)
        }
    kept |= {key: of for key, of in _PLACEHOLDERS.items() if _is_wrong((key,), faults)}
    return with_right_keys(Lab, kept)[0]


def _is_wrong(keys: tuple[str, ...], faults: list[Fault]) -> bool:
    """Say whether one of some keys, or something in it, has a fault."""
    return any(f"{fault.where}.".startswith(f"{key}.") for key in keys for fault in faults)
