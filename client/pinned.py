"""Whom the vault obeys: the coordinator that the site has joined."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from common.enrolment import Hex64
from common.errors import EnrolmentError
from common.study import Slug

PINNED_FILE = "coordinator.json"


class Pinned(BaseModel):
    """Whom the vault obeys: fixed when the site joins, and until it leaves."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    coordinator: Slug
    """Name of the federation."""
    site: Slug
    """Name under which this hospital is enrolled; an order for another is refused."""
    order_key: Hex64
    """Ed25519 public key whose seal every order must bear."""
    protocol: int
    fingerprint: str
    """Of the authorities and the order key."""


def load_pinned(state: Path) -> Pinned | None:
    """Return whom the site has joined, or None.

    Args:
        state: The vault's folder, ``SiteConfig.state``.

    Raises:
        EnrolmentError: The file is there and cannot be read.
    """
    file = state / PINNED_FILE
    try:
        return Pinned.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise EnrolmentError(
            f"Cannot read {file}, which says whom this site has joined.",
            remedy="Run the command as the vault's user or as root. A damaged file is restored "
            "from a backup; without one, remove it and join with a new kit.",
        ) from error
