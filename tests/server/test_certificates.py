"""The coordinator's certificates, judged by real TLS handshakes on loopback."""

import socket
import ssl
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from server.certificates import (
    CLOCK_SLACK,
    cross_sign,
    days_left,
    issue_server_certificate,
    load_issued,
    new_authority,
    pem_of,
    still_valid,
)
from server.config import ServerConfig, init_folder
from server.rotation import rotate_authority, rotate_server


def handshake(chain: bytes, key: bytes, trusted: bytes, folder: Path, name: str) -> None:
    """Shake hands on loopback: a server with this chain, a client with these authorities."""
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    client = ssl.create_default_context(cadata=trusted.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does by itself from 3.13 on
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with suppress(OSError), server.wrap_socket(connection, server_side=True) as wrapped:
                wrapped.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname(), timeout=10) as plain,
                client.wrap_socket(plain, server_hostname=name),
            ):
                pass
        finally:
            thread.join(10)


def front_of(config: ServerConfig) -> tuple[bytes, bytes]:
    return config.server_certificate.read_bytes(), config.server_key.read_bytes()


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return init_folder(tmp_path / "c", "trial", "fl.example.org:8443", also=["10.1.2.3", "fl"])


@pytest.mark.parametrize("name", ["fl.example.org", "10.1.2.3", "fl", "localhost", "127.0.0.1"])
def test_the_front_is_good_for_all_its_names(
    config: ServerConfig, tmp_path: Path, name: str
) -> None:
    """A site verifies the front by its address, by each further name and on loopback."""
    handshake(*front_of(config), config.authorities.read_bytes(), tmp_path, name)


def test_another_name_is_refused(config: ServerConfig, tmp_path: Path) -> None:
    """A certificate is good for no other host."""
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(*front_of(config), config.authorities.read_bytes(), tmp_path, "evil.org")


def test_another_authority_is_refused(config: ServerConfig, tmp_path: Path) -> None:
    """A site that trusts another federation's authority does not take this front's word."""
    other = new_authority(config.name).certificate_pem
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(*front_of(config), other, tmp_path, "localhost")


@pytest.mark.parametrize(
    ("start", "days", "why"),
    [(timedelta(days=-3), 2, "expired"), (timedelta(days=1), 2, "not yet valid")],
)
def test_validity_counts(tmp_path: Path, start: timedelta, days: float, why: str) -> None:
    """An expired certificate, and one that is not valid yet, are refused; so for authorities."""
    at = datetime.now(UTC) + start
    good, bad = new_authority("trial"), new_authority("trial", start=at, days=days)
    servers = {
        good: issue_server_certificate(good, ["localhost"], start=at, days=days),
        bad: issue_server_certificate(bad, ["localhost"], start=min(at, datetime.now(UTC))),
    }
    for authority, server in servers.items():
        with pytest.raises(ssl.SSLCertVerificationError, match=why):
            handshake(
                server.certificate_pem,
                server.key_pem,
                authority.certificate_pem,
                tmp_path,
                "localhost",
            )


def test_a_slow_clock_is_no_refusal() -> None:
    """What is issued now is already valid for a site whose clock is some minutes behind."""
    authority = new_authority("trial")
    server = issue_server_certificate(authority, ["localhost"]).certificate
    for certificate in (authority.certificate, server):
        behind = datetime.now(UTC) - certificate.not_valid_before_utc
        assert timedelta(minutes=5) < behind < CLOCK_SLACK + timedelta(minutes=1)


def test_sites_of_the_old_and_of_the_new_authority_verify_after_each_rotation(
    config: ServerConfig, tmp_path: Path
) -> None:
    """However often front and authority are rotated, no site loses the coordinator."""
    trusted = [config.authorities.read_bytes()]
    for rotate in (rotate_server, rotate_authority, rotate_server, rotate_authority, rotate_server):
        before = config.server_certificate.read_bytes()
        rotate(config)
        assert config.server_certificate.read_bytes() != before
        trusted += [config.authority_certificate.read_bytes(), config.authorities.read_bytes()]
        for authority in dict.fromkeys(trusted):
            handshake(*front_of(config), authority, tmp_path, "fl.example.org")
    assert len(x509.load_pem_x509_certificates(config.authorities.read_bytes())) == 3


def test_after_a_rotation_another_authority_is_refused_still(
    config: ServerConfig, tmp_path: Path
) -> None:
    """The cross certificate opens the way from the old authority alone."""
    rotate_authority(config)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(
            *front_of(config), new_authority("trial").certificate_pem, tmp_path, "fl.example.org"
        )


def test_without_the_cross_certificate_the_old_authority_is_not_enough(
    config: ServerConfig, tmp_path: Path
) -> None:
    """It is the chain that the front sends which carries the sites over, and nothing else."""
    old = config.authority_certificate.read_bytes()
    rotate_authority(config)
    leaf = pem_of(x509.load_pem_x509_certificates(config.server_certificate.read_bytes())[:1])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(leaf, config.server_key.read_bytes(), old, tmp_path, "localhost")


def test_nothing_outlives_who_signed_it() -> None:
    """Server and cross certificates end with their authority at the latest."""
    short = new_authority("trial", days=3)
    server = issue_server_certificate(short, ["localhost"]).certificate
    cross = cross_sign(new_authority("trial").certificate, short)
    end = short.certificate.not_valid_after_utc
    assert server.not_valid_after_utc == cross.not_valid_after_utc == end


def test_days_left_and_still_valid_agree() -> None:
    """A certificate counts as valid exactly while days are left."""
    authority = new_authority("trial", days=3)
    assert days_left(authority.certificate_pem) == pytest.approx(3, abs=0.01)
    for days, there in ((2.9, [authority.certificate]), (3.1, [])):
        at = datetime.now(UTC) + timedelta(days=days)
        assert still_valid([authority.certificate], at=at) == there
        assert (days_left(authority.certificate_pem, at=at) > 0) == bool(there)


def test_a_key_of_another_certificate_is_noticed() -> None:
    """Certificate and key are loaded together only when they belong together."""
    one, two = new_authority("trial"), new_authority("trial")
    assert load_issued(one.certificate_pem, one.key_pem).certificate == one.certificate
    with pytest.raises(ValueError, match="together"):
        load_issued(one.certificate_pem, two.key_pem)


def test_superlink_is_verified_on_loopback_only(config: ServerConfig, tmp_path: Path) -> None:
    """SuperLink's own certificate is good for this machine, and under its own authority."""
    own = config.loopback_certificate.read_bytes(), config.loopback_key.read_bytes()
    for name in ("localhost", "127.0.0.1"):
        handshake(*own, config.loopback_authority.read_bytes(), tmp_path, name)
    for authority, name in (
        (config.loopback_authority, "fl.example.org"),
        (config.authorities, "localhost"),
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(*own, authority.read_bytes(), tmp_path, name)
    assert days_left(own[0]) > 3600
