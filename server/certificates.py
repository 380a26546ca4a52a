"""The coordinator's certificates: an authority of its own, what it signs, and how it is followed.

Keys lie on the curve NIST P-384; the profile is that of RFC 5280. A new authority is also signed
by the one before it (a cross certificate, RFC 5280, 3.2): with it in the chain that the front
sends, a site that knows the old authority alone verifies the new one's certificates.
"""

import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
SERVER_DAYS = 730
CLOCK_SLACK = timedelta(minutes=10)
"""How far back a certificate's validity begins: a site's clock may be behind the coordinator's."""


class Issued(NamedTuple):
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return pem_of([self.certificate])

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS #8 PEM: for a file of mode 0600."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_authority(
    name: str, *, days: float = AUTHORITY_DAYS, start: datetime | None = None
) -> Issued:
    """Make an authority that is signed by itself.

    Args:
        name: Of the federation; it stands in the certificate.
        days: How long it is valid.
        start: When its validity begins, less the slack for clocks; now by default.
    """
    key = generate_private_key(SECP384R1())
    # A name of its own for each authority: verifiers look an issuer up by its name.
    subject = _subject(f"rarefed authority {secrets.token_hex(4)}", name)
    begin, end = _validity(days, start)
    builder = _authority(subject, key.public_key(), begin, end).issuer_name(subject)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    return Issued(builder.sign(key, SHA384()), key)


def issue_server_certificate(
    authority: Issued,
    names: Sequence[str],
    *,
    days: float = SERVER_DAYS,
    start: datetime | None = None,
) -> Issued:
    """Make a server's key and certificate.

    Args:
        authority: Who signs; the certificate does not outlive it.
        names: Host names and IP addresses that clients may call it by.
        days: How long it is valid.
        start: When its validity begins, less the slack for clocks; now by default.
    """
    key = generate_private_key(SECP384R1())
    begin, end = _validity(days, start)
    end = min(end, authority.certificate.not_valid_after_utc)
    builder = _builder(_subject("rarefed coordinator"), key.public_key(), begin, end)
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_general_name(name) for name in names]), False),
    ]
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return Issued(_sign(builder, authority), key)


def cross_sign(new: x509.Certificate, by: Issued) -> x509.Certificate:
    """Return the certificate by which an authority vouches for the one that follows it."""
    begin, _ = _validity(0, None)
    end = min(new.not_valid_after_utc, by.certificate.not_valid_after_utc)
    return _sign(_authority(new.subject, new.public_key(), begin, end), by)


def load_issued(certificate_pem: bytes, key_pem: bytes) -> Issued:
    """Read a certificate and its key.

    Raises:
        ValueError: One of them is malformed, or they do not belong together.
        TypeError: The key is of another kind, or is encrypted.
    """
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    key = load_pem_private_key(key_pem, password=None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise TypeError("the key does not lie on an elliptic curve")
    if key.public_key() != certificate.public_key():
        raise ValueError("certificate and key do not belong together")
    return Issued(certificate, key)


def pem_of(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return certificates as one PEM text, in their order."""
    return b"".join(item.public_bytes(Encoding.PEM) for item in certificates)


def still_valid(
    certificates: Iterable[x509.Certificate], *, at: datetime | None = None
) -> list[x509.Certificate]:
    """Return those that have not expired."""
    now = at or datetime.now(UTC)
    return [item for item in certificates if item.not_valid_after_utc > now]


def days_left(pem: bytes, *, at: datetime | None = None) -> float:
    """Return for how many days the first certificate of a PEM text is valid yet; less than 0: over.

    Raises:
        ValueError: There is no certificate in it.
    """
    end = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    return (end - (at or datetime.now(UTC))) / timedelta(days=1)


def _validity(days: float, start: datetime | None) -> tuple[datetime, datetime]:
    begin = start or datetime.now(UTC)
    return begin - CLOCK_SLACK, begin + timedelta(days=days)


def _subject(common_name: str, organisation: str | None = None) -> x509.Name:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organisation:
        names.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    return x509.Name(names)


def _builder(
    subject: x509.Name, key: CertificatePublicKeyTypes, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority(
    subject: x509.Name, key: CertificatePublicKeyTypes, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    # No length of path: authorities that follow one another stand below the first of them.
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    builder = _builder(subject, key, begin, end).add_extension(constraints, critical=True)
    return builder.add_extension(_usage(signs_certificates=True), critical=True)


def _sign(builder: x509.CertificateBuilder, by: Issued) -> x509.Certificate:
    # The issuer is told by its key alone, which its own and its cross certificate share.
    key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key())
    builder = builder.issuer_name(by.certificate.subject).add_extension(key_id, critical=False)
    return builder.sign(by.key, SHA384())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """RFC 5280, 4.2.1.3."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
