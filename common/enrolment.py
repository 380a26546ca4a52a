"""What coordinator and site hand each other when a site joins: the kit, and the request.

The coordinator's kit says whom to call and whom to trust; it holds no secret of the site, only
a code that serves once. The site makes its own key and answers with a request: its public key,
and a proof that it holds the code. Neither file need be kept secret once the site is accepted.
"""

import hmac
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from common.addresses import Address, split_address
from common.errors import KitError, VersionError
from common.files import canonical_json, write_json
from common.study import Slug
from common.trust import authorities_of, fingerprint_of, self_signed
from common.versions import PROTOCOL, software_version

# What kit and request are made of is asked for here, wherever it is written down.
__all__ = [
    "Address",
    "Hex64",
    "Kit",
    "PublicKey",
    "Request",
    "check_fingerprint",
    "check_protocol",
    "proof_fits",
    "proof_of",
    "split_address",
    "verifier_of",
]

MAX_BYTES = 65_536
"""Largest kit or request that is read at all."""

_PURPOSE = "rarefed enrolment"


def _authority(value: str) -> str:
    for certificate in authorities_of(value):
        if not self_signed(certificate):
            raise ValueError("an authority in it is not signed by itself")
    return value


def _public_key(value: str) -> str:
    """Accept one spelling of a key only: a comment would make the same key look like another."""
    try:
        key = load_ssh_public_key(value.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("this is no OpenSSH public key") from error
    if not (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1)):
        raise ValueError(  # noqa: TRY004 - pydantic takes a ValueError as a fault
            "the key must lie on the curve NIST P-384"
        )
    if key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() != value:
        raise ValueError("give type and key alone, without comment")
    return value


def _order_key(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError("give 64 hexadecimal digits")
    return value


Hex64 = Annotated[str, AfterValidator(_order_key)]
PublicKey = Annotated[str, Field(max_length=1024), AfterValidator(_public_key)]
Software = Annotated[str, Field(pattern=r"^[A-Za-z0-9.+_-]{1,64}$")]


class _Document(BaseModel):
    """A JSON file that goes from one party to the other."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    what: ClassVar[str]

    protocol: int = PROTOCOL
    software: Software = Field(default_factory=software_version)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            KitError: The file cannot be read, is something else, or lists all faults.
            VersionError: The other party speaks another version of the protocol.
        """
        values = _json_object(path, cls.what)
        if values.get("format") != cls.model_fields["format"].default:
            raise KitError(
                f"{path} is no {cls.what} of rarefed.",
                remedy="A coordinator makes a kit with 'rarefed-server invite SITE', a site "
                "makes a request with 'rarefed-client join KIT'.",
            )
        check_protocol(values.get("protocol"), values.get("software"), what=cls.what)
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise _refusal(path, cls.what, error) from error

    def save(self, path: Path) -> None:
        """Write the file, for its owner alone (0600)."""
        write_json(path, self.model_dump(mode="json"), mode=0o600)


class Kit(_Document):
    """What a coordinator gives to a hospital that it invites."""

    what: ClassVar[str] = "enrolment kit"

    format: Literal["rarefed-kit"] = "rarefed-kit"
    coordinator: Slug
    """Name of the federation."""
    address: Address
    """Whom the site calls."""
    site: Slug
    """The name under which the site is invited."""
    authority: Annotated[str, AfterValidator(_authority)]
    """PEM certificates of the coordinator's authorities; nothing else is trusted."""
    order_key: Hex64
    """Ed25519 public key whose seal every order bears."""
    code: Hex64
    """Serves once, to prove that a request comes from who was given the kit."""
    issued: AwareDatetime
    expires: AwareDatetime

    @cached_property
    def fingerprint(self) -> str:
        """What both parties compare by another way, by telephone for one."""
        return fingerprint_of(self.authority, self.order_key)


class Request(_Document):
    """What a site answers: its public key, and the proof that it was given the kit."""

    what: ClassVar[str] = "enrolment request"

    format: Literal["rarefed-request"] = "rarefed-request"
    site: Slug
    public_key: PublicKey
    """OpenSSH text of the site's key (NIST P-384), without comment."""
    proof: Annotated[str, Field(pattern="^[0-9a-f]{128}$")]


def check_fingerprint(kit: Kit, expected: str) -> None:
    """Compare a kit with the fingerprint that a person was told; spaces and capitals do not count.

    Raises:
        KitError: They differ, or what was told is no whole fingerprint.
    """
    told = re.sub(r"[\s:-]", "", expected).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", told):
        raise KitError(
            "A fingerprint has 64 hexadecimal digits, and all of them are compared.",
            remedy="Give it whole, as 'rarefed-server invite' shows it.",
        )
    if not hmac.compare_digest(told, kit.fingerprint.replace(" ", "")):
        raise KitError(
            f"The kit's fingerprint is {kit.fingerprint}, which is not the one given: "
            "the kit may be forged.",
            remedy="Do not use the kit. Call the coordinator, and ask for it and for its "
            "fingerprint again.",
        )


def verifier_of(code: str) -> str:
    """Return what a coordinator keeps of a code: it verifies proofs and cannot make any.

    The code is the seed of an Ed25519 key, and this its public half (64 hexadecimal digits). A
    hash that verified an HMAC would itself serve to forge one.
    """
    public = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(code)).public_key()
    return public.public_bytes_raw().hex()


def proof_of(code: str, site: str, public_key: str) -> str:
    """Return the proof, 128 hexadecimal digits, that who holds ``code`` asks for this very key."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(code))
    return key.sign(_proved(site, public_key)).hex()


def proof_fits(verifier: str, request: Request) -> bool:
    """Whether the proof was made with the verifier's code, for this site and key."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(verifier)).verify(
            bytes.fromhex(request.proof), _proved(request.site, request.public_key)
        )
    except InvalidSignature:
        return False
    return True


def _proved(site: str, public_key: str) -> bytes:
    return canonical_json(
        {"purpose": _PURPOSE, "protocol": PROTOCOL, "site": site, "public_key": public_key}
    )


def check_protocol(protocol: object, software: object, *, what: str) -> None:
    """Refuse another version of the protocol than this installation's.

    Raises:
        VersionError: With what is to be updated, and where.
    """
    if protocol == PROTOCOL and not isinstance(protocol, bool):
        return
    newer = isinstance(protocol, int) and protocol > PROTOCOL
    where = "here" if newer else "where it was made, and have it made anew"
    raise VersionError(
        f"The {what} is of protocol {protocol!r:.20} (rarefed {software!r:.40}), and this "
        f"installation speaks {PROTOCOL} (rarefed {software_version()!r}).",
        remedy=f"Update rarefed {where}; coordinator and sites need the same protocol.",
    )


def _json_object(path: Path, what: str) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        values = json.loads(content) if len(content) <= MAX_BYTES else None
    except OSError as error:
        raise KitError(
            f"Cannot read the {what} {path}: {error.strerror}.", remedy="Give the file's path."
        ) from error
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise KitError(
            f"{path} is no {what}: it is not a small JSON file.",
            remedy="Ask for the file again, and hand it over as it is, not in an e-mail's text.",
        )
    return values


def _refusal(path: Path, what: str, error: ValidationError) -> KitError:
    """List every fault; never a value, for one of them is a secret."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in fault["loc"])
        lines.append(f"  - {where}: {fault['msg'].removeprefix('Value error, ')}")
    count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
    return KitError(
        f"The {what} {path} has {count}:\n" + "\n".join(lines),
        remedy="It was changed on its way or made by hand; ask for it again.",
    )
