"""Kit and request: what they refuse, what proves them, and what two people compare."""

import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from common.enrolment import (
    MAX_BYTES,
    Kit,
    Request,
    check_fingerprint,
    proof_fits,
    proof_of,
    split_address,
    verifier_of,
)
from common.errors import KitError, VersionError
from common.versions import PROTOCOL
from server.certificates import issue_server_certificate, new_authority

AUTHORITY = new_authority("trial")
NOW = datetime.now(UTC).replace(microsecond=0)


def public_key(curve: ec.EllipticCurve | None = None) -> str:
    key = ec.generate_private_key(curve or ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def kit_values(**changes: Any) -> dict[str, Any]:
    kit = Kit(
        coordinator="trial",
        address="fl.example.org:8443",
        site="site-a",
        authority=AUTHORITY.certificate_pem.decode(),
        order_key=secrets.token_hex(32),
        code=secrets.token_hex(32),
        issued=NOW,
        expires=NOW + timedelta(days=7),
    )
    return kit.model_dump(mode="json") | changes


def written(folder: Path, values: object) -> Path:
    file = folder / "file.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def request_values(**changes: Any) -> dict[str, Any]:
    key = public_key()
    proof = proof_of("11" * 32, "site-a", key)
    request = Request(site="site-a", public_key=key, proof=proof)
    return request.model_dump(mode="json") | changes


def test_a_kit_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Saving and loading a kit changes nothing, and the file is its owner's alone."""
    kit = Kit.load(written(tmp_path, kit_values()))
    kit.save(tmp_path / "again.json")
    assert Kit.load(tmp_path / "again.json") == kit
    assert (tmp_path / "again.json").stat().st_mode & 0o777 == 0o600


def test_all_faults_of_a_kit_are_listed_without_its_values(tmp_path: Path) -> None:
    """Every wrong key is named at once, and nothing of the secret code is repeated."""
    code = "0123456789abcdef" * 4
    wrong = {"address": "nowhere", "code": code + "f", "site": "St Mary", "more": 1}
    with pytest.raises(KitError) as caught:
        Kit.load(written(tmp_path, kit_values(**wrong)))
    message = str(caught.value)
    assert all(f"- {key}:" in message for key in wrong)
    assert code not in message


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b"{", b"[" * 50_000, b'{"format": "rarefed-request"}', b"1"],
)
def test_what_is_no_kit_is_refused(tmp_path: Path, content: bytes) -> None:
    """Garbage of any kind, and a request given as a kit, end in a KitError."""
    file = tmp_path / "kit.json"
    file.write_bytes(content)
    with pytest.raises(KitError):
        Kit.load(file)


def test_a_huge_or_missing_file_is_refused(tmp_path: Path) -> None:
    """A kit is small: what is larger than the limit is not read, and no file is no kit."""
    file = written(tmp_path, kit_values(site="a" * MAX_BYTES))
    with pytest.raises(KitError, match="no enrolment kit"):
        Kit.load(file)
    with pytest.raises(KitError, match="Cannot read"):
        Kit.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("protocol", "remedy"),
    [(PROTOCOL + 1, "Update rarefed here"), (PROTOCOL - 1, "where it was made"), (True, "")],
)
def test_another_protocol_is_refused_with_the_remedy(
    tmp_path: Path, protocol: object, remedy: str
) -> None:
    """A newer or older party is told who has to update, whatever else its file holds."""
    if protocol is True and PROTOCOL != 1:
        protocol = "1"
    for values in (kit_values(), request_values()):
        document = Kit if values["format"] == "rarefed-kit" else Request
        with pytest.raises(VersionError) as caught:
            document.load(written(tmp_path, values | {"protocol": protocol, "new_key": 1}))
        assert remedy in caught.value.remedy


def test_only_authorities_stand_in_a_kit(tmp_path: Path) -> None:
    """A server's certificate, one signed by another, text, or nothing is no authority."""
    server = issue_server_certificate(AUTHORITY, ["localhost"]).certificate_pem.decode()
    both = AUTHORITY.certificate_pem.decode() + server
    for pem in (server, both, "text", ""):
        with pytest.raises(KitError, match="authority"):
            Kit.load(written(tmp_path, kit_values(authority=pem)))


def test_a_request_holds_one_spelling_of_one_kind_of_key(tmp_path: Path) -> None:
    """Another curve, a comment or a line's end are refused, so that equal keys look equal."""
    key = public_key()
    others = (public_key(ec.SECP256R1()), f"{key} site-a", f"{key}\n", f" {key}", "ssh-rsa AAAA")
    for other in others:
        with pytest.raises(KitError, match="public_key"):
            Request.load(written(tmp_path, request_values(public_key=other)))


def test_a_proof_fits_its_own_code_site_and_key_only() -> None:
    """Changing the code, the site, the key or the proof makes the proof fail."""
    code, key = secrets.token_hex(32), public_key()
    request = Request(site="site-a", public_key=key, proof=proof_of(code, "site-a", key))
    verifier = verifier_of(code)
    assert proof_fits(verifier, request)
    assert not proof_fits(verifier_of(secrets.token_hex(32)), request)
    for change in ({"site": "site-b"}, {"public_key": public_key()}, {"proof": "00" * 64}):
        assert not proof_fits(verifier, request.model_copy(update=change))


def test_the_verifier_makes_no_proofs() -> None:
    """Who reads the register cannot use what it holds in the place of the code."""
    code, key = secrets.token_hex(32), public_key()
    verifier = verifier_of(code)
    forged = proof_of(verifier, "site-a", key)
    assert not proof_fits(verifier, Request(site="site-a", public_key=key, proof=forged))


def test_the_fingerprint_covers_authority_and_order_key(tmp_path: Path) -> None:
    """Another authority, one more, or another order key gives another fingerprint."""
    kit = Kit.load(written(tmp_path, kit_values()))
    other = new_authority("trial").certificate_pem.decode()
    changes = [
        {"authority": other},
        {"authority": kit.authority + other},
        {"order_key": secrets.token_hex(32)},
    ]
    prints = {Kit(**{**dict(kit), **change}).fingerprint for change in changes}
    assert len(prints | {kit.fingerprint}) == 4
    assert [len(group) for group in kit.fingerprint.split(" ")] == [4] * 16


def test_a_fingerprint_is_compared_whole(tmp_path: Path) -> None:
    """Spaces, colons and capitals do not count; a part of it or another one is refused."""
    kit = Kit.load(written(tmp_path, kit_values()))
    for same in (
        kit.fingerprint,
        kit.fingerprint.upper().replace(" ", ":"),
        f" {kit.fingerprint} ",
    ):
        check_fingerprint(kit, same)
    other = kit.fingerprint[:-1] + ("0" if kit.fingerprint[-1] != "0" else "1")
    for wrong in (kit.fingerprint[:9], "", "no", other):
        with pytest.raises(KitError):
            check_fingerprint(kit, wrong)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("fl.example.org:8443", ("fl.example.org", 8443)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("localhost:443", ("localhost", 443)),
    ],
)
def test_addresses_have_host_and_port(address: str, parts: tuple[str, int]) -> None:
    """Names, IPv4 and bracketed IPv6 addresses are taken apart at the last colon."""
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        "host", ":1", "host:0", "host:65536", "host:08", "::1:80", "[::1]", "a b:1", "a/b:1",
        "https://host:1", "user@host:1", "256.1.1.1:80", "host:1\n", "-x:1", "x..y:1", "Host:1",
    ],
)  # fmt: skip
def test_malformed_addresses_are_refused(address: str) -> None:
    """What is no plain host and port is refused."""
    with pytest.raises(ValueError, match=r"host|address"):
        split_address(address)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """No text makes the reader of addresses fail in another way than a ValueError."""
    try:
        host, port = split_address(text)
    except ValueError:
        return
    assert host
    assert 0 < port < 65536
