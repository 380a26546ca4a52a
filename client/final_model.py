"""The network that a study ended with: what the site kept of it, or what the coordinator exported.

A site keeps the whole network as it was measured in the study's last exchange, with what is its own
(batch normalisation or heads that never left it). An export holds what all sites share.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from client.config import SiteConfig
from client.store import FINAL, FIRST, PERSONAL, SiteStore
from common.arrays import Array, Arrays, digest
from common.errors import FederationError, MissingFolderError, StudyMismatchError, WeightsError
from common.layout import without_discriminator
from common.models import FederatedModel, build_without_discriminator
from common.study import Study
from common.weights import layout_of, put

MODEL, STUDY_FILE = "model.safetensors", "study.toml"
"""Names in a folder that ``rarefed-server export`` wrote."""
_NOTES = "rarefed"
"""Entry of the model file's header that holds the coordinator's notes, as JSON."""
_EXPORT = "Give a folder that rarefed-server export wrote, as it came."


class FinalModel(NamedTuple):
    """A network, ready to be asked."""

    study: Study
    model: FederatedModel
    """In evaluation mode, on the device."""
    model_round: int
    """Rounds that it went through."""
    sha256: str
    """SHA-256 of its arrays; see ``common.arrays.digest``."""
    tasks: tuple[str, ...]
    """Tasks whose heads are trained; the others' are random."""


def final_model(config: SiteConfig, study: Study, *, device: torch.device) -> FinalModel:
    """Return the network that the site keeps of the study's last exchange, its own arrays in it.

    Args:
        config: The hospital.
        study: The study.
        device: Where the network is to run.

    Raises:
        FederationError: The site keeps none.
        OrderError: What it keeps is damaged.
        WeightsError: It does not fit the study's network.
    """
    kept = SiteStore(config.state, study.digest()).load_network(FINAL)
    if kept is None:
        raise FederationError(
            f"{config.name} keeps no final model of the study {study.name}.",
            remedy="A site keeps it when the study's last exchange is over. Until then, or where "
            "the site missed that exchange, use an export of the coordinator.",
        )
    return _ready(study, kept.arrays, kept.model_round, kept.tasks, device)


def first_model(config: SiteConfig, study: Study, *, device: torch.device) -> FinalModel:
    """Return the network as the study's first round found it; see ``final_model``."""
    kept = SiteStore(config.state, study.digest()).load_network(FIRST)
    if kept is None:
        raise FederationError(
            f"{config.name} does not know how the study {study.name} began.",
            remedy="A site that was not there in the first round can neither train alone from "
            "there, nor fit classifiers to that backbone's features.",
        )
    return _ready(study, kept.arrays, kept.model_round, kept.tasks, device)


def tuned_model(config: SiteConfig, study: Study, *, device: torch.device) -> FinalModel:
    """Return the network that the site trained further by itself; see ``client/personal.py``.

    Its tasks are those in which it was better than the final network. It is refused once the site
    keeps another final network than that one; see ``final_model``.
    """
    store = SiteStore(config.state, study.digest())
    kept, final = store.load_network(PERSONAL), store.load_network(FINAL)
    if kept is None:
        raise FederationError(
            f"{config.name} keeps no network of its own of the study {study.name}.",
            remedy="Make one with rarefed-client personalise; it is kept only where it is better "
            "on validation patients. Until then leave --personal out.",
        )
    if final is None or kept.trained_from != digest(without_discriminator(final.arrays)):
        raise FederationError(
            f"The network of its own that {config.name} keeps of the study {study.name} was "
            "trained from, and compared with, another final network than the site keeps now.",
            remedy="Make it anew with rarefed-client personalise, or leave --personal out.",
        )
    return _ready(study, kept.arrays, kept.model_round, kept.tasks, device)


def shared_model(config: SiteConfig, study: Study, *, device: torch.device) -> FinalModel | None:
    """Return the final network as a newcomer would get it: without what is this site's own.

    Normalisation that the sites keep to themselves is then that of the study's beginning.

    Args:
        config: The hospital.
        study: The study.
        device: Where the network is to run.

    Returns:
        The network, or None where there is one alone: the study leaves nothing local, or the
        sites share no heads, so that what they share tells no classes apart.

    Raises:
        RarefedError: As ``final_model``; an ``OrderError`` also where the base is gone.
    """
    final = final_model(config, study, device=device)
    local = layout_of(final.model, study).local
    if not local or study.federation.personal == "head":
        return None
    store = SiteStore(config.state, study.digest())
    base = store.load_base(store.base_digest())
    put(final.model, {name: base[name] for name in local})
    return final._replace(sha256=digest(_arrays_of(final.model)))


def exported_model(folder: Path, *, device: torch.device) -> FinalModel:
    """Return the network of a folder that ``rarefed-server export`` wrote.

    Args:
        folder: With ``study.toml`` and ``model.safetensors``.
        device: Where the network is to run.

    Raises:
        MissingFolderError: The folder, or one of the two files, is not there.
        StudyError: The study file is wrong.
        StudyMismatchError: The model is of another study than the study file.
        WeightsError: The model cannot be read, does not fit the study's network, or has no heads.
    """
    missing = [name for name in (STUDY_FILE, MODEL) if not (folder / name).is_file()]
    if missing:
        raise MissingFolderError(f"{folder} has no {' and no '.join(missing)}.", remedy=_EXPORT)
    study = Study.load(folder / STUDY_FILE)
    arrays, notes = _read(folder / MODEL)
    if notes.get("study_digest") != study.digest():
        raise StudyMismatchError(
            f"{folder / MODEL} is a model of another study than {folder / STUDY_FILE}.",
            remedy=_EXPORT,
        )
    if study.federation.personal == "head":
        raise WeightsError(
            f"{folder / MODEL} is a backbone alone: each site of {study.name} keeps its own heads.",
            remedy="Give the study instead, for the network that this site keeps.",
        )
    return _ready(study, arrays, _round_of(notes), tuple(study.tasks), device)


def _read(file: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the arrays of a coordinator's model, and what its header says of them."""
    try:
        with safe_open(file, framework="numpy") as opened:
            notes = json.loads((opened.metadata() or {})[_NOTES])
        _round_of(notes)
        return dict(load_file(file)), notes
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error}.", remedy=_EXPORT) from error


def _round_of(notes: Mapping[str, str]) -> int:
    """Return the rounds that a coordinator's model went through: all, or those to the best one."""
    return int(notes.get("model_round", notes["round"]))


def _ready(
    study: Study, arrays: Arrays, number: int, tasks: Collection[str], device: torch.device
) -> FinalModel:
    model, arrays = build_without_discriminator(study), without_discriminator(arrays)
    missing = sorted(model.state_dict().keys() - arrays.keys())
    fault = f"arrays that are missing: {', '.join(missing)}" if missing else ""
    try:
        put(model, arrays)
    except ValueError as error:
        fault = str(error)
    if fault:
        raise WeightsError(
            f"The model is none of the study {study.name}: {fault}.",
            remedy="Use the release of rarefed that the study ran with.",
        )
    model = model.to(device).to(memory_format=torch.channels_last)
    model.eval()
    return FinalModel(study, model, number, digest(arrays), tuple(tasks))


def _arrays_of(model: FederatedModel) -> dict[str, Array]:
    return {name: value.cpu().numpy() for name, value in model.state_dict().items()}
