"""New certificates for a coordinator that has sites: none of them has to enrol again.

The private keys of what is replaced are not kept.
"""

from datetime import datetime

from cryptography import x509

from common.errors import ServiceError
from server import certificates
from server.certificates import Issued, pem_of, still_valid
from server.config import ServerConfig
from server.staging import replace_together


def rotate_server(config: ServerConfig) -> datetime:
    """Give the front a new key and certificate, under the same authority.

    Returns:
        When the new certificate ends.

    Raises:
        ServiceError: The authority cannot be read, or has expired.
    """
    authority = _authority(config)
    crosses = x509.load_pem_x509_certificates(config.renewal.read_bytes())[1:]
    server = certificates.issue_server_certificate(authority, config.names)
    chain = [server.certificate, *still_valid(crosses)]
    # The certificate last: whoever watches it finds the key in place.
    files = {config.server_key: server.key_pem, config.server_certificate: pem_of(chain)}
    replace_together(config.folder, {path.name: content for path, content in files.items()})
    return server.certificate.not_valid_after_utc


def rotate_authority(config: ServerConfig) -> datetime:
    """Make a new authority, signed also by the old one, and a server certificate under it.

    Sites that know the old authority go on, by the cross certificate that the front sends; kits
    from now on carry both. ``renewal.pem`` lets a site take the new one over before the old one
    expires (``client/enrol.py``, ``renew_trust``).

    Returns:
        When the new server certificate ends.

    Raises:
        ServiceError: The old authority cannot be read, or has expired.
    """
    old = _authority(config)
    new = certificates.new_authority(config.name)
    former = x509.load_pem_x509_certificates(config.authorities.read_bytes())
    crosses = still_valid(x509.load_pem_x509_certificates(config.renewal.read_bytes())[1:])
    crosses = [certificates.cross_sign(new.certificate, old), *crosses]
    server = certificates.issue_server_certificate(new, config.names)
    files = {
        config.authority_key: new.key_pem,
        config.authority_certificate: new.certificate_pem,
        config.authorities: pem_of([new.certificate, *still_valid(former)]),
        config.renewal: pem_of([new.certificate, *crosses]),
        config.server_key: server.key_pem,
        config.server_certificate: pem_of([server.certificate, *crosses]),
    }
    replace_together(config.folder, {path.name: content for path, content in files.items()})
    return server.certificate.not_valid_after_utc


def _authority(config: ServerConfig) -> Issued:
    try:
        authority = certificates.load_issued(
            config.authority_certificate.read_bytes(), config.authority_key.read_bytes()
        )
    except (OSError, ValueError, TypeError) as error:
        raise ServiceError(
            f"Cannot read the authority in {config.folder}: {error}.",
            remedy="Restore authority.crt and authority.key from the same backup.",
        ) from error
    if not still_valid([authority.certificate]):
        raise ServiceError(
            "The authority has expired: no site trusts what it signs.",
            remedy="Make a new coordinator folder with 'rarefed-server init', and invite each "
            "site again. Next time, run 'rarefed-server rotate --authority' a year before.",
        )
    return authority
