"""How a site's trust passes from one authority of the coordinator to the next."""

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import KitError
from common.trust import authorities_of, issued_by, self_signed


def vouched_for(trusted: list[x509.Certificate], bundle_pem: bytes) -> list[x509.Certificate]:
    """Return the authorities of a bundle, when each follows from those that are trusted.

    Args:
        trusted: The authorities that the site trusts.
        bundle_pem: PEM certificates: authorities signed by themselves, and cross certificates.

    Raises:
        KitError: The bundle is malformed, holds no valid authority, or one that nobody vouches
            for.
    """
    try:
        offered = authorities_of(bundle_pem.decode("ascii"))
    except ValueError as error:
        raise KitError(
            f"This is no bundle of authorities: {error}.",
            remedy="Ask the coordinator for its renewal.pem.",
        ) from error
    offered = [item for item in offered if valid_now(item)]
    known = {_identity(item): item for item in trusted if valid_now(item)}
    crosses = [item for item in offered if not self_signed(item)]
    for _ in crosses:  # each pass follows at least one step of the chain, in any order
        for cross in crosses:
            if any(issued_by(cross, issuer) for issuer in known.values()):
                known.setdefault(_identity(cross), cross)
    authorities = [item for item in offered if self_signed(item)]
    if not authorities or any(_identity(item) not in known for item in authorities):
        raise KitError(
            "No authority that this site trusts vouches for those in the bundle, or they are "
            "not valid at present.",
            remedy="Ask the coordinator for its renewal.pem. If every authority that the site "
            "knows has expired, leave and join with a new kit.",
        )
    return authorities


def _identity(authority: x509.Certificate) -> tuple[bytes, bytes]:
    """Name and key: what a cross certificate and the authority that it vouches for share."""
    key = authority.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return authority.subject.public_bytes(), key


def valid_now(certificate: x509.Certificate) -> bool:
    """Whether this machine's clock lies within a certificate's validity."""
    now = datetime.now(UTC)
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc
