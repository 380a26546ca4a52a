"""Certificates of authorities, and the fingerprint by which two people compare them."""

import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding


def authorities_of(pem: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM bundle, in its order.

    Raises:
        ValueError: There is none, or one that is malformed or no certificate authority.
    """
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
        for certificate in certificates:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
            if not constraints.value.ca:
                raise ValueError("a certificate in it is no authority")
    except (x509.ExtensionNotFound, UnsupportedAlgorithm, UnicodeEncodeError) as error:
        raise ValueError("a certificate in it is no authority") from error
    return certificates


def self_signed(certificate: x509.Certificate) -> bool:
    """Whether a certificate is an anchor of trust: issued, and truly signed, by its own key."""
    return issued_by(certificate, certificate)


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer``'s key signed ``certificate``, and is named in it."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def fingerprint_of(authority: str, order_key: str) -> str:
    """Return the fingerprint of whom a site trusts.

    Args:
        authority: PEM certificates, in their order.
        order_key: Ed25519 public key, 64 hexadecimal digits.

    Returns:
        SHA-256 over the certificates' DER bytes and the key's 32 bytes: 16 groups of four digits.
    """
    parts = [item.public_bytes(Encoding.DER) for item in authorities_of(authority)]
    digest = hashlib.sha256(b"".join(parts) + bytes.fromhex(order_key)).hexdigest()
    return " ".join(digest[i : i + 4] for i in range(0, len(digest), 4))
