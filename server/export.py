"""Hand a study's model on: the file, and what it is, how it came about and how well it does."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from common.arrays import digest
from common.errors import FederationError, OutputError
from common.files import replacing, sha256_of, write_atomic, write_json
from common.layout import votes_name, without_discriminator
from common.study import Study
from common.versions import PROTOCOL, software_version
from server import history
from server.card_facts import NOTICE, facts_of
from server.checkpoint import MODEL, model_round_of
from server.history import HISTORY
from server.model_card import MODEL_CARD, markdown
from server.studies import StudyFolder, toml_text

CARD = "card.json"

_README = """\
# {study}: the model after {model_round} of {rounds} rounds

`{model}` (SHA-256 {sha256}) holds every array of the network {backbone}, {heads}. Safetensors: open
it with any library that reads the format.

- `study.toml`: what the sites agreed on (digest {digest}).
- `history.jsonl`: one line a round: who answered, how the arriving model did on held-out patients.
- `MODEL_CARD.md`: what was trained where and on how many patients, figures, privacy, limits.
- `card.json`: all this for a program.

State of the study when this was exported: {state}. Sites of the last round: {sites}.

The figures are of the sites' own held-out patients. {notice}
"""


def export(
    folder: StudyFolder, out: Path, *, onnx: bool = False, images: Path | None = None
) -> dict[str, Any]:
    """Write a study's model, study file, history and cards into a new folder.

    Args:
        folder: The study.
        out: A folder that does not exist or is empty.
        onnx: Write the network as ONNX too.
        images: A NumPy file of prepared images on which ONNX is compared with torch.

    Returns:
        The card.

    Raises:
        FederationError: The study has no model yet.
        OutputError: The folder is not empty, or cannot be written; or ONNX cannot be written, and
            the folder has everything else then, unless it is for want of heads.
        WeightsError: The images are none, or the model does not fit the study's network.
    """
    study = Study.load(folder.study_file)
    if not (folder.path / MODEL).is_file():
        raise FederationError(
            f"The study {folder.study_id} has no model yet.",
            remedy="Wait until it runs: rarefed-server status",
        )
    if onnx:
        _check_heads(study)
        from server.onnx_export import check_packages  # noqa: PLC0415 - torch: several seconds

        check_packages()
    try:
        _make_empty(out)
        _hand_on(folder.path / MODEL, out / MODEL, study)
        if (folder.path / HISTORY).is_file():
            shutil.copyfile(folder.path / HISTORY, out / HISTORY)
        # The folder of the weights is the coordinator's own affair.
        text = toml_text(study.with_files(lambda file: Path(file.name)))
        write_atomic(out / "study.toml", text.encode())
        card = _card(folder, study, out)
        _write_cards(card, study, out)
        if onnx:
            card["onnx"] = _write_onnx(study, out, images)
            _write_cards(card, study, out)
    except OSError as error:
        raise OutputError(
            f"Cannot write {out}: {error.strerror}.", remedy="Give a folder that can be written."
        ) from error
    return card


def _check_heads(study: Study) -> None:
    """Refuse ONNX, which has the logits of every task, where each site keeps its own heads.

    Raises:
        OutputError: It does.
    """
    if study.federation.personal == "head":
        raise OutputError(
            f"The heads of {study.name} stay at its sites; what they share gives no logits.",
            remedy="Export without --onnx: the backbone, as weights for another study.",
        )


def _hand_on(source: Path, target: Path, study: Study) -> None:
    """Copy the model; without what tells the sites apart, which training alone needs.

    Where each site keeps its own heads it has none: the initial ones remain.
    """
    personal = study.federation.personal == "head"
    if not personal and not study.training.aligns:
        shutil.copyfile(source, target)
        return
    arrays = without_discriminator(load_file(source))
    if personal:
        arrays = {name: v for name, v in arrays.items() if not name.startswith("heads.")}
    with safe_open(source, framework="numpy") as opened, replacing(target) as temporary:
        save_file(arrays, temporary, metadata=opened.metadata())


def _write_cards(card: dict[str, Any], study: Study, out: Path) -> None:
    write_json(out / CARD, card)
    write_atomic(out / MODEL_CARD, markdown(card, study).encode())
    write_atomic(out / "README.md", _readme(card, study).encode())


def _write_onnx(study: Study, out: Path, images: Path | None) -> dict[str, Any]:
    """Write the network of ``out`` as ONNX beside it, and return what the card says of that."""
    from server.onnx_export import ONNX, export_onnx, load_images  # noqa: PLC0415 - torch
    from server.stored_model import load_model  # noqa: PLC0415 - torch

    given = None if images is None else load_images(images, study)
    model = load_model(study, out / MODEL)
    found = export_onnx(model, study, out / ONNX, given, model_sha256=sha256_of(out / MODEL))
    return {"file": ONNX, "sha256": sha256_of(out / ONNX), **found._asdict()}


def _make_empty(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise OutputError(f"{out} is not empty.", remedy="Give a new folder, or an empty one.")


def _card(folder: StudyFolder, study: Study, out: Path) -> dict[str, Any]:
    progress, arrays = folder.progress(), load_file(out / MODEL)
    names = {task: votes_name(task) for task in study.tasks}
    votes = {task: arrays[name].tolist() for task, name in names.items() if name in arrays}
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
        # What a prediction names: it stays the same however the file is written.
        "arrays_sha256": digest(arrays),
        "votes": votes,
        "backbone": study.network,
        "image_size": study.backbone.image_size,
        "tasks": {name: task.model_dump(mode="json") for name, task in study.tasks.items()},
        "software": software_version(),
        "protocol": PROTOCOL,
        **facts_of(study, history.load(out), model_round_of(out / MODEL), votes),
    }


def _readme(card: dict[str, Any], study: Study) -> str:
    tasks, sites = ", ".join(study.tasks), ", ".join(card["sites"]) or "none"
    heads = f"with a head for each of the tasks {tasks}"
    if study.federation.personal == "head":
        heads = f"without heads: each site keeps its own for the tasks {tasks}"
    return _README.format(**{**card, "heads": heads, "sites": sites, "notice": NOTICE})
