"""Hand a study's model on: the file, and what it is, how it came about and how well it does."""

import json
import shutil
from pathlib import Path
from typing import Any

from common.errors import FederationError, OutputError
from common.files import sha256_of, write_atomic, write_json
from common.study import Study
from common.versions import PROTOCOL, software_version
from server.checkpoint import MODEL
from server.history import HISTORY
from server.studies import StudyFolder, toml_text

CARD = "card.json"

_README = """\
# {study}: the model after {round} of {rounds} rounds

`{model}` (SHA-256 {sha256}) holds every array of the network {backbone}, with a head for each of
the tasks {tasks}. Safetensors: open it with any library that reads the format.

- `study.toml`: what the sites agreed on (digest {digest}).
- `history.jsonl`: one line a round: who answered, how the arriving model did on held-out patients.
- `card.json`: all this for a program.

State of the study when this was exported: {state}. Sites of the last round: {sites}.

The figures are of the sites' own held-out patients. The model is no medical device: it has not
been assessed for use in the care of patients.
"""


def export(folder: StudyFolder, out: Path) -> dict[str, Any]:
    """Write a study's model, study file, history and card into a new folder.

    Args:
        folder: The study.
        out: A folder that does not exist or is empty.

    Returns:
        The card.

    Raises:
        FederationError: The study has no model yet.
        OutputError: The folder is not empty, or cannot be written.
    """
    study = Study.load(folder.study_file)
    if not (folder.path / MODEL).is_file():
        raise FederationError(
            f"The study {folder.study_id} has no model yet.",
            remedy="Wait until it runs: rarefed-server status",
        )
    try:
        _make_empty(out)
        shutil.copyfile(folder.path / MODEL, out / MODEL)
        if (folder.path / HISTORY).is_file():
            shutil.copyfile(folder.path / HISTORY, out / HISTORY)
        weights = study.backbone.weights_file
        # The folder of the weights is the coordinator's own affair.
        text = toml_text(study, None if weights is None else weights.name)
        write_atomic(out / "study.toml", text.encode())
        card = _card(folder, study, out)
        write_json(out / CARD, card)
        write_atomic(out / "README.md", _readme(card, study).encode())
    except OSError as error:
        raise OutputError(
            f"Cannot write {out}: {error.strerror}.", remedy="Give a folder that can be written."
        ) from error
    return card


def _make_empty(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise OutputError(f"{out} is not empty.", remedy="Give a new folder, or an empty one.")


def _card(folder: StudyFolder, study: Study, out: Path) -> dict[str, Any]:
    progress = folder.progress()
    file = out / HISTORY
    records = (
        [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        if file.is_file()
        else []
    )
    measured = next((record for record in reversed(records) if record["tasks"]), None)
    return {
        "format": "rarefed-model",
        "study": study.name,
        "digest": study.digest(),
        "state": progress.state,
        "round": progress.round,
        "rounds": study.rounds,
        "sites": list(progress.sites),
        "model": MODEL,
        "sha256": sha256_of(out / MODEL),
        "backbone": study.backbone.name,
        "image_size": study.backbone.image_size,
        "tasks": {name: task.model_dump(mode="json") for name, task in study.tasks.items()},
        # The figures of a line are of the model that arrived in that round.
        "measured_round": measured["model_round"] if measured else None,
        "figures": measured["tasks"] if measured else {},
        "software": software_version(),
        "protocol": PROTOCOL,
    }


def _readme(card: dict[str, Any], study: Study) -> str:
    listed = {"tasks": ", ".join(study.tasks), "sites": ", ".join(card["sites"]) or "none"}
    return _README.format(**{**card, **listed})
