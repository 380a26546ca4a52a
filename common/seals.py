"""The seal of an order: the coordinator's Ed25519 signature (RFC 8032) over all that it carries.

    ConfigRecord "seal"    site       the one site that the order is for
                           signature  in hexadecimal, over {"site": SITE, "parts": {NAME: SHA-256}}

Whatever lies between coordinator and vault (Flower's database, its bundle at the hospital) can
then withhold or repeat an order, but not make or change one.
"""

import hashlib
import re
import weakref
from collections.abc import Mapping
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.bodies import to_plain
from common.errors import SealError
from common.files import canonical_json

SEAL = "seal"
"""The part that holds the seal, and that no seal covers."""
COUNTERSIGNED = "countersigned"
"""The part that holds the head of the site's audit log."""
_BASE = "base"
_SIGNATURE = re.compile("[0-9a-f]{128}")

Part = ArrayRecord | ConfigRecord | MetricRecord


class Seal(NamedTuple):
    """A good seal, by which the order's parts can be proven without the order."""

    site: str
    """The one site that the order is for."""
    parts: Mapping[str, str]
    """SHA-256 of each part that was sealed (``part_digest``), by its name."""
    signature: str
    """In hexadecimal."""

    def digest(self) -> str:
        """Return the SHA-256 of what was asked, in hexadecimal.

        The site is left out, so that it is the same at each. So are the base's arrays, whose
        digest stands in the order itself, and the head that the coordinator holds by now: an
        order that comes again is the same order.
        """
        parts = {n: digest for n, digest in self.parts.items() if n not in {_BASE, COUNTERSIGNED}}
        return hashlib.sha256(canonical_json({"parts": parts})).hexdigest()

    def check(self, public_key: str) -> None:
        """Check the signature.

        Args:
            public_key: The coordinator's order key, 32 bytes in hexadecimal.

        Raises:
            SealError: It was not made with that key over these parts for this site.
        """
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        try:
            key.verify(bytes.fromhex(self.signature), _signed(self.site, self.parts))
        except InvalidSignature as error:
            raise SealError(
                "The order's seal is not that of the coordinator that this site enrolled with."
            ) from error


class Sealer:
    """Seals orders with the coordinator's key.

    Sites share the arrays of a round, so an ArrayRecord's digest is kept for as long as the
    record lives; a record must not be changed between two orders that carry it.

    Args:
        private_key: The coordinator's order key.
    """

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._key = private_key
        self._known: dict[int, tuple[weakref.ref[ArrayRecord], str]] = {}

    def seal(self, record: RecordDict, site: str) -> None:
        """Add the seal for one site to an order."""
        parts = {name: self._digest(part) for name, part in record.items() if name != SEAL}
        signature = self._key.sign(_signed(site, parts)).hex()
        record[SEAL] = ConfigRecord({"site": site, "signature": signature})

    def forget(self) -> None:
        """Forget the digests of a round that is over."""
        self._known.clear()

    def _digest(self, part: Part) -> str:
        if not isinstance(part, ArrayRecord):
            return part_digest(part)
        reference, known = self._known.get(id(part), (None, ""))
        if reference is None or reference() is not part:  # an address may be used again
            known = part_digest(part)
            self._known[id(part)] = weakref.ref(part), known
        return known


def check_seal(record: RecordDict, site: str, public_key: str) -> Seal:
    """Check that an order is the coordinator's own, whole, and for this site.

    Args:
        record: The order as it came.
        site: This site's name.
        public_key: The coordinator's order key, 32 bytes in hexadecimal.

    Raises:
        SealError: There is no seal, it is another site's, or it does not fit.
    """
    found = record.get(SEAL)
    sent = dict(found) if isinstance(found, ConfigRecord) else {}
    signature = sent.get("signature")
    if not isinstance(signature, str) or not _SIGNATURE.fullmatch(signature):
        raise SealError("The order bears no seal.")
    if sent.get("site") != site:
        raise SealError(f"The order is sealed for another site than {site}.")
    parts = {name: part_digest(part) for name, part in record.items() if name != SEAL}
    seal = Seal(site, parts, signature)
    seal.check(public_key)
    return seal


def part_digest(part: Part) -> str:
    """Return the SHA-256 over a part's kind, names, dtypes, shapes and values."""
    if not isinstance(part, ArrayRecord):
        kind = "config" if isinstance(part, ConfigRecord) else "metrics"
        return hashlib.sha256(canonical_json([kind, to_plain(part)])).hexdigest()
    sha = hashlib.sha256(canonical_json(["arrays", len(part)]))
    for name in sorted(part):
        array = part[name]
        form = [name, array.dtype, list(array.shape), array.stype, len(array.data)]
        sha.update(canonical_json(form))  # ends in "]", and the last number says what follows it
        sha.update(array.data)
    return sha.hexdigest()


def new_order_key() -> tuple[bytes, str]:
    """Make a coordinator's order key.

    Returns:
        The private key as PEM (PKCS #8, unencrypted) and the public one in hexadecimal.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem, key.public_key().public_bytes_raw().hex()


def load_order_key(pem: bytes) -> Ed25519PrivateKey:
    """Read a private order key.

    Raises:
        ValueError: It is no Ed25519 key in PEM.
    """
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key")  # noqa: TRY004 - a malformed file, not a misuse
    return key


def _signed(site: str, parts: Mapping[str, str]) -> bytes:
    return canonical_json({"site": site, "parts": parts})
