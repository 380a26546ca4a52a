"""What the hospital has agreed to: one coordinator, and studies by their digest.

Whom it has joined is pinned in ``coordinator.json`` (``client/pinned.py``), what it has approved
stands in ``approvals.json``. The vault follows no order that these two files do not cover.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from client import owned_files
from client.config import SiteConfig
from client.pinned import Pinned, load_pinned
from common.errors import DataError, EnrolmentError, VersionError
from common.study import Slug, Study
from common.versions import PROTOCOL

APPROVALS_FILE = "approvals.json"

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Approval(BaseModel):
    """One study that the hospital has approved, as it was when it did."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Slug
    at: AwareDatetime
    study: dict[str, Any]
    """All that was agreed, every default written out; the digest is over this."""


class _Approvals(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    studies: dict[_Digest, Approval] = {}


def approve(config: SiteConfig, study: Study, at: datetime) -> Approval:
    """Approve a study, just as it is: another digest is another study.

    Args:
        config: The hospital.
        study: What it has read and agrees to.
        at: The time, with its time zone.

    Raises:
        DataError: The hospital's list cannot be read or written.
    """
    entry = Approval(name=study.name, at=at.astimezone(UTC), study=json.loads(study.wire()))
    _write(config, {**approved(config), study.digest(): entry})
    return entry


def withdraw(config: SiteConfig, digest: str) -> bool:
    """Take an approval back; return whether there was one.

    Raises:
        DataError: The hospital's list cannot be read or written.
    """
    studies = approved(config)
    if studies.pop(digest, None) is None:
        return False
    _write(config, studies)
    return True


def approved(config: SiteConfig) -> dict[str, Approval]:
    """Return what the hospital has approved, by the studies' digests.

    Raises:
        DataError: The hospital's list cannot be read.
    """
    path = config.state / APPROVALS_FILE
    if not path.exists():
        return {}
    try:
        return _Approvals.model_validate_json(path.read_bytes()).studies
    except (OSError, ValidationError) as error:
        raise DataError(
            f"Cannot read the approved studies in {path}: {error}",
            remedy="Restore the file from a backup, or remove it and approve the studies again.",
        ) from error


def is_approved(config: SiteConfig, digest: str) -> bool:
    """Say whether the hospital has approved the study of this digest.

    Raises:
        DataError: The hospital's list cannot be read.
    """
    return digest in approved(config)


def load_pin(config: SiteConfig) -> Pinned:
    """Return whom the hospital joined, and check that this is the hospital that did.

    Raises:
        EnrolmentError: It has not joined, or under another name than ``site.toml`` gives.
        VersionError: It joined with software of another protocol.
    """
    pinned = load_pinned(config.state)
    if pinned is None:
        raise EnrolmentError(
            f"{config.name} has not joined a coordinator yet.",
            remedy="Ask the coordinator for a kit and run: rarefed-client join KIT",
        )
    if pinned.site != config.name:
        raise EnrolmentError(
            f"site.toml names this hospital {config.name}, but it joined as {pinned.site}.",
            remedy=f'Set name = "{pinned.site}" in site.toml, or join again.',
        )
    if pinned.protocol != PROTOCOL:
        raise VersionError(
            f"This hospital joined with protocol {pinned.protocol}; this software has {PROTOCOL}.",
            remedy="Install the coordinator's version of rarefed, or join again with a new kit.",
        )
    return pinned


def _write(config: SiteConfig, studies: Mapping[str, Approval]) -> None:
    content = _Approvals(studies=dict(studies)).model_dump_json(indent=2).encode()
    try:
        owned_files.make_private_folder(config.state)
        owned_files.put(config.state, APPROVALS_FILE, content + b"\n", mode=0o600)
    except OSError as error:
        raise DataError(
            f"Cannot write the approved studies to {config.state}: {error.strerror}.",
            remedy="Let the user who runs the client write to the folder 'state' of site.toml.",
        ) from error
