"""The register of sites, ``sites.json``: which hospital is invited, enrolled or revoked.

Flower knows nodes and keys; the register knows which hospital a key belongs to, and who may
register one. It holds no code, only what verifies a proof made with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from common.enrolment import PublicKey
from common.errors import ServiceError
from common.file_lock import locked
from common.files import write_json
from common.study import Slug
from server.config import ServerConfig


class SiteEntry(BaseModel):
    """What the register says of one site."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    state: Literal["invited", "enrolled", "revoked"]
    verifier: str | None = None
    """Verifies the proof of the one request that is expected; None when none is."""
    expires: AwareDatetime | None = None
    """Until when the invitation holds."""
    public_key: PublicKey | None = None
    """The site's key. On an invited site: the key whose registration with Flower was begun."""
    former_keys: tuple[PublicKey, ...] = ()
    """Keys of the site that were revoked; Flower takes none of them again."""
    node_id: int | None = None
    """Flower's number of the site."""
    protocol: int | None = None
    software: str | None = None
    """What the site ran when it enrolled."""
    since: AwareDatetime
    """When the state was reached."""


_REGISTER = TypeAdapter(dict[Slug, SiteEntry])


def load_sites(config: ServerConfig) -> dict[str, SiteEntry]:
    """Return the register, by name of site.

    Raises:
        ServiceError: It cannot be read.
    """
    try:
        return _REGISTER.validate_json(config.sites_file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise ServiceError(
            f"The register of sites {config.sites_file} cannot be read.",
            remedy="Restore it from a backup; without one, no site is known any more.",
        ) from error


@contextmanager
def register(config: ServerConfig) -> Iterator[dict[str, SiteEntry]]:
    """Give the register, under a lock between processes; ``save_sites`` keeps what was changed."""
    with locked(config.folder / ".sites.lock"):
        yield load_sites(config)


def save_sites(config: ServerConfig, sites: dict[str, SiteEntry]) -> None:
    """Write the register; whoever calls this holds it with ``register``."""
    write_json(config.sites_file, _REGISTER.dump_python(sites, mode="json"), mode=0o600)
