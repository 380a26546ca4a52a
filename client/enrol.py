"""How a hospital joins a coordinator, takes over its new authority, and leaves.

The site's key is made here and never leaves. What the courier needs lies in its folder; whom the
vault obeys is pinned in the vault's own folder, where the courier cannot write.
"""

import json
import secrets
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import BaseModel

from client import owned_files
from client.config import SITE_FILE
from client.pinned import PINNED_FILE, Pinned, load_pinned
from client.trust import valid_now, vouched_for
from common.enrolment import Kit, Request, check_fingerprint, proof_of
from common.errors import DataError, EnrolmentError, KitError
from common.trust import authorities_of, fingerprint_of

AUTHORITY_FILE = "authority.pem"
CONNECTION_FILE = "connection.json"
NODE_KEY_FILE = "node.key"
NODE_PUBLIC_FILE = "node.pub"
SUPEREXEC_SECRET_FILE = "superexec.secret"  # noqa: S105 - a file's name
SECRET_BYTES = 32
CLOCK_TOLERANCE = timedelta(minutes=10)
"""How far a kit may seem to come from the future before this machine's clock is doubted."""

STARTER = """\
# This hospital's side of rarefed. Nothing in this file is ever sent.
# Every key is described in docs/site.md. Relative paths count from this folder.
name = "{site}"
device = "auto"          # "cpu", "cuda" or "auto": CUDA when it is there

# One table for each task of the study that this hospital has images for, under the study's name
# for the task. The manifest is a CSV table with the columns path, label and patient_id.
# Take away the three signs and put your own task and path:
#
# [data.TASK]
# manifest = "/data/ct/labels.csv"

# [limits]
# max_unreadable = 0.02  # share of a task's rows that may have errors
"""


class _Folders(NamedTuple):
    state: Path
    courier: Path
    name: str | None
    """The name in ``site.toml``, when there is one."""


def join(kit: Path, folder: Path, fingerprint: str | None = None) -> Path:
    """Join a coordinator: make the site's key, pin whom it trusts, and write its request.

    Nothing is written before everything is checked; the pin comes last, so that a join that was
    cut short can be repeated. An existing ``site.toml`` is not touched.

    Args:
        kit: The enrolment kit.
        folder: The hospital's folder; made when it is missing.
        fingerprint: What the coordinator told by another way; None if it was compared by eye.

    Returns:
        The request, ``courier/SITE.request.json``, which goes to the coordinator.

    Raises:
        KitError: The kit is malformed, expired or from the future, or not of this fingerprint.
        VersionError: The coordinator speaks another version of the protocol.
        EnrolmentError: The folder has joined already, is another site's, or cannot be written.
        DataError: The folder's ``site.toml`` cannot be read.
    """
    offered = Kit.load(kit)
    if fingerprint is not None:
        check_fingerprint(offered, fingerprint)
    _check_time(offered)
    folder = folder.absolute()
    folders = _folders(folder)
    _check_free(offered, folder, folders)
    with _writing(folder):
        owned_files.make_private_folder(folder)
        owned_files.make_private_folder(folders.state)
        owned_files.make_private_folder(folders.courier)
        public_key = _make_secrets(folders.courier)
        _write_connection(offered, folders.courier)
        request = _request(offered, public_key)
        path = owned_files.put(
            folders.courier, f"{offered.site}.request.json", _json(request), mode=0o600
        )
        if folders.name is None:
            starter = STARTER.format(site=offered.site).encode()
            owned_files.put(folder, SITE_FILE, starter, mode=0o644)
        owned_files.put(folders.state, PINNED_FILE, _json(_pin(offered)), mode=0o644)
    return path


def leave(folder: Path) -> Pinned:
    """Leave the coordinator: destroy the site's key, and let the vault obey nobody.

    Site key, ledger, logs and the studies' state stay. Approvals were given to this coordinator's
    studies and end with it; they and the pin are put aside under ``state/left/``.

    Returns:
        Whom the site has left; that coordinator should revoke it.

    Raises:
        EnrolmentError: The folder has joined nobody, or cannot be changed.
        DataError: The folder's ``site.toml`` cannot be read.
    """
    folder = folder.absolute()
    folders = _folders(folder)
    pinned = load_pinned(folders.state)
    if pinned is None:
        raise EnrolmentError(
            f"{folder} has joined no coordinator.", remedy="Give the hospital's folder."
        )
    secret = (NODE_KEY_FILE, SUPEREXEC_SECRET_FILE, f"{pinned.site}.request.json")
    with _writing(folder):
        for name in (*secret, NODE_PUBLIC_FILE, CONNECTION_FILE, AUTHORITY_FILE):
            owned_files.remove(folders.courier, name)
        aside = folders.state / "left" / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        aside.mkdir(mode=0o700, parents=True)
        for name in ("approvals.json", PINNED_FILE):  # the pin last: leave can be repeated
            if (folders.state / name).exists():
                (folders.state / name).rename(aside / name)
    return pinned


def renew_trust(folder: Path, bundle_pem: bytes) -> str:
    """Take over the coordinator's new authority, without enrolling again.

    Every authority of the bundle must be one that the site trusts already, or be signed by one,
    directly or through other certificates of the bundle (the coordinator's ``renewal.pem``).
    From then on the site trusts the bundle's authorities and no others.

    Args:
        folder: The hospital's folder.
        bundle_pem: PEM certificates: authorities signed by themselves, and cross certificates.

    Returns:
        The new fingerprint.

    Raises:
        KitError: The bundle is malformed, holds no valid authority, or one that nobody vouches
            for.
        EnrolmentError: The folder has joined nobody, or cannot be written.
    """
    folders = _folders(folder.absolute())
    pinned = load_pinned(folders.state)
    file = folders.courier / AUTHORITY_FILE
    if pinned is None or not file.is_file():
        raise EnrolmentError(
            f"{folder} has joined no coordinator.", remedy="Join first: rarefed-client join KIT"
        )
    trusted = authorities_of(file.read_text(encoding="ascii"))
    authorities = vouched_for(trusted, bundle_pem)
    pem = b"".join(item.public_bytes(Encoding.PEM) for item in authorities)
    fingerprint = fingerprint_of(pem.decode(), pinned.order_key)
    with _writing(folder):
        owned_files.put(folders.courier, AUTHORITY_FILE, pem, mode=0o644)
        renewed = pinned.model_copy(update={"fingerprint": fingerprint})
        owned_files.put(folders.state, PINNED_FILE, _json(renewed), mode=0o644)
    return fingerprint


def _check_time(kit: Kit) -> None:
    now = datetime.now(UTC)
    if kit.expires <= now:
        raise KitError(
            f"The kit expired on {kit.expires:%Y-%m-%d %H:%M} UTC.",
            remedy="Ask the coordinator for a new one. If that is not so, set this machine's "
            f"clock: it says {now:%Y-%m-%d %H:%M} UTC.",
        )
    if kit.issued > now + CLOCK_TOLERANCE:
        raise KitError(
            f"The kit was made on {kit.issued:%Y-%m-%d %H:%M} UTC, which is yet to come.",
            remedy=f"Set this machine's clock: it says {now:%Y-%m-%d %H:%M} UTC.",
        )
    if not all(valid_now(item) for item in authorities_of(kit.authority)):
        raise KitError(
            "An authority in the kit is not valid at present.",
            remedy="Compare this machine's clock; if it is right, ask the coordinator for a "
            "new kit.",
        )


def _check_free(kit: Kit, folder: Path, folders: _Folders) -> None:
    pinned = load_pinned(folders.state)
    if pinned is not None:
        raise EnrolmentError(
            f"{folder} has joined {pinned.coordinator} as {pinned.site} already.",
            remedy="To join anew, for another coordinator or with a new key, leave first: "
            "rarefed-client leave",
        )
    if folders.name not in {None, kit.site}:
        raise EnrolmentError(
            f"The kit is for the site {kit.site}, and {folder / SITE_FILE} is of {folders.name}.",
            remedy="Join in the right folder, or ask the coordinator for a kit of this name.",
        )


def _folders(folder: Path) -> _Folders:
    """Read three keys of ``site.toml``, which at joining time may lack its data yet."""
    file = folder / SITE_FILE
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _Folders(folder / "state", folder / "courier", None)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"Cannot read {file}: {error}.", remedy="Correct that line; see toml.io."
        ) from error
    found = [values.get(key, key) for key in ("state", "courier")] + [values.get("name")]
    if not all(isinstance(value, str) for value in found):
        raise DataError(
            f"In {file}, 'name' is missing, or it, 'state' or 'courier' is no text.",
            remedy="Give the site's name, as in the kit, and paths in quotes.",
        )
    return _Folders(folder / found[0], folder / found[1], found[2])


def _make_secrets(courier: Path) -> str:
    """Write the node's key and the runtime's secret; return the public key."""
    key = generate_private_key(SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    secret = secrets.token_bytes(SECRET_BYTES)  # Flower reads the file as raw bytes
    owned_files.put(courier, NODE_KEY_FILE, private, mode=0o600)
    owned_files.put(courier, NODE_PUBLIC_FILE, public + b"\n", mode=0o644)
    owned_files.put(courier, SUPEREXEC_SECRET_FILE, secret, mode=0o600)
    return public.decode()


def _write_connection(kit: Kit, courier: Path) -> None:
    connection = {"address": kit.address, "site": kit.site, "runtime_port": 0}
    authority = kit.authority.encode("ascii")
    owned_files.put(courier, AUTHORITY_FILE, authority, mode=0o644)
    text = json.dumps(connection, indent=2) + "\n"
    owned_files.put(courier, CONNECTION_FILE, text.encode(), mode=0o644)


def _request(kit: Kit, public_key: str) -> Request:
    proof = proof_of(kit.code, kit.site, public_key)
    return Request(site=kit.site, public_key=public_key, proof=proof)


def _pin(kit: Kit) -> Pinned:
    return Pinned(
        coordinator=kit.coordinator,
        site=kit.site,
        order_key=kit.order_key,
        protocol=kit.protocol,
        fingerprint=kit.fingerprint,
    )


def _json(document: BaseModel) -> bytes:
    return (document.model_dump_json(indent=2) + "\n").encode()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnrolmentError(
            f"Cannot write below {folder}: {error}.",
            remedy="Run the command as the user who owns the hospital's folder, or as root.",
        ) from error
