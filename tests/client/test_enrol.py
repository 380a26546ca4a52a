"""How a hospital joins, takes over a new authority, and leaves."""

import json
import os
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from client import owned_files
from client.config import SiteConfig
from client.courier import Connection
from client.enrol import join, leave, renew_trust
from client.pinned import load_pinned
from common.enrolment import Kit, Request, proof_fits, verifier_of
from common.errors import DataError, EnrolmentError, KitError, VersionError
from common.versions import PROTOCOL
from server.certificates import cross_sign, new_authority, pem_of
from server.config import ServerConfig, init_folder
from server.enrolment import invite
from server.rotation import rotate_authority, rotate_server


@pytest.fixture
def coordinator(tmp_path: Path) -> ServerConfig:
    return init_folder(tmp_path / "c", "trial", "localhost:21001")


@pytest.fixture
def kit(coordinator: ServerConfig) -> Path:
    invite(coordinator, "site-a")
    return coordinator.kit_file("site-a")


@pytest.fixture
def changed(kit: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return the maker of a kit with other values."""

    def change(**values: Any) -> Path:
        file = tmp_path / "changed.json"
        file.write_text(json.dumps(json.loads(kit.read_bytes()) | values), encoding="utf-8")
        return file

    return change


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(kit: Path, folder: Path, error: type[Exception], **more: Any) -> str:
    """Assert that joining is refused before anything is written; return what is said."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(error) as caught:
        join(kit, folder, **more)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return str(caught.value)


def test_joining_writes_what_courier_and_vault_need(
    coordinator: ServerConfig, kit: Path, tmp_path: Path
) -> None:
    """The courier gets whom to call and trust, the vault whom to obey."""
    offered = Kit.load(kit)
    request = Request.load(join(kit, tmp_path / "h", offered.fingerprint))
    courier, state = tmp_path / "h/courier", tmp_path / "h/state"
    assert (courier / "authority.pem").read_bytes() == coordinator.authorities.read_bytes()
    config = SiteConfig.load(_with_data(tmp_path / "h"))
    connection = Connection.load(config)
    assert (connection.address, connection.site) == ("localhost:21001", "site-a")
    pinned = load_pinned(state)
    assert pinned is not None
    assert (pinned.coordinator, pinned.site, pinned.protocol) == ("trial", "site-a", PROTOCOL)
    assert pinned.order_key == coordinator.order_public_key()
    assert pinned.fingerprint == offered.fingerprint
    assert proof_fits(verifier_of(offered.code), request)


def _with_data(folder: Path) -> Path:
    """Do what the starter's comments say: take away the three signs, and name a task."""
    file = folder / "site.toml"
    text = file.read_text(encoding="utf-8")
    for line in ("[data.TASK]", 'manifest = "/data/ct/labels.csv"', "[limits]", "max_unreadable"):
        text = text.replace(f"# {line}", line)
    file.write_text(text.replace("TASK", "ct"), encoding="utf-8")
    return folder


def test_the_key_is_one_that_flower_reads(kit: Path, tmp_path: Path) -> None:
    """The node's key is P-384 in OpenSSH's form, and the request has its public half."""
    request = Request.load(join(kit, tmp_path / "h"))
    courier = tmp_path / "h/courier"
    # As flwr/supernode/cli/flower_supernode.py, _try_setup_client_authentication, reads it.
    key = load_ssh_private_key((courier / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert request.public_key == public
    assert (courier / "node.pub").read_text(encoding="ascii") == public + "\n"
    assert len((courier / "superexec.secret").read_bytes()) == 32


def test_secrets_are_the_owners_alone(kit: Path, tmp_path: Path) -> None:
    """Folders are closed, and so is every file that holds a secret, whatever the umask says."""
    umask = os.umask(0)
    try:
        request = join(kit, tmp_path / "h")
    finally:
        os.umask(umask)
    for folder in ("courier", "state"):
        assert mode(tmp_path / "h" / folder) == 0o700
    secret = (tmp_path / "h/courier/node.key", tmp_path / "h/courier/superexec.secret", request)
    assert {mode(file) for file in secret} == {0o600}
    key = secret[0].read_bytes()
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path != secret[0]]
    assert not any(key in path.read_bytes() for path in others)


def test_each_join_makes_a_key_of_its_own(kit: Path, tmp_path: Path) -> None:
    """Nothing of the key comes from the kit: the same kit gives different keys."""
    keys = {Request.load(join(kit, tmp_path / name)).public_key for name in ("one", "two")}
    assert len(keys) == 2


def test_the_code_does_not_stay_at_the_site(kit: Path, tmp_path: Path) -> None:
    """No file of the hospital repeats the kit's code."""
    code = Kit.load(kit).code.encode()
    join(kit, tmp_path / "h")
    files = [path for path in (tmp_path / "h").rglob("*") if path.is_file()]
    assert files
    assert not any(code in path.read_bytes() for path in files)


def test_a_wrong_fingerprint_is_refused(kit: Path, tmp_path: Path) -> None:
    """A kit that is not the one the coordinator spoke of is not used."""
    assert "forged" in refused(kit, tmp_path / "h", KitError, fingerprint="0" * 64)
    assert not (tmp_path / "h").exists()


def test_expired_and_future_kits_are_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    """A kit counts from when it was made to when it ends, by this machine's clock."""
    now = datetime.now(UTC)
    past, future = (now - timedelta(seconds=1)).isoformat(), (now + timedelta(hours=1)).isoformat()
    assert "expired" in refused(changed(expires=past), tmp_path / "h", KitError)
    assert "clock" in refused(changed(issued=future), tmp_path / "h", KitError)


def test_authorities_that_are_not_valid_now_are_refused(
    changed: Callable[..., Path], tmp_path: Path
) -> None:
    """An expired authority, or one of tomorrow, is found at joining and not at the first call."""
    for start in (timedelta(days=-9), timedelta(days=1)):
        authority = new_authority("trial", start=datetime.now(UTC) + start, days=3)
        kit = changed(authority=authority.certificate_pem.decode())
        assert "not valid at present" in refused(kit, tmp_path / "h", KitError)


def test_another_protocol_is_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    """A coordinator that speaks another protocol is found at joining, with the remedy."""
    said = refused(changed(protocol=PROTOCOL + 1), tmp_path / "h", VersionError)
    assert "Update rarefed here" in said


def test_a_folder_joins_once(kit: Path, coordinator: ServerConfig, tmp_path: Path) -> None:
    """A second join is refused until the site has left; then it makes a new key."""
    first = Request.load(join(kit, tmp_path / "h"))
    assert "leave first" in refused(kit, tmp_path / "h", EnrolmentError)
    assert leave(tmp_path / "h").coordinator == coordinator.name
    second = Request.load(join(kit, tmp_path / "h"))
    assert first.public_key != second.public_key


def test_a_join_cut_short_can_be_repeated(kit: Path, tmp_path: Path) -> None:
    """Without the pin, which comes last, nothing counts as joined."""
    join(kit, tmp_path / "h")
    (tmp_path / "h/state/coordinator.json").unlink()
    assert join(kit, tmp_path / "h").is_file()


def test_a_damaged_pin_is_not_taken_for_none(kit: Path, tmp_path: Path) -> None:
    """Otherwise whoever damages it could let the site obey another coordinator."""
    join(kit, tmp_path / "h")
    (tmp_path / "h/state/coordinator.json").write_text("{}", encoding="utf-8")
    refused(kit, tmp_path / "h", EnrolmentError)


def test_a_site_toml_that_is_there_decides(kit: Path, tmp_path: Path) -> None:
    """It is not touched; its folders are used, and its name must be the kit's."""
    folder = tmp_path / "h"
    folder.mkdir()
    file = folder / "site.toml"
    file.write_text('name = "site-b"\n', encoding="utf-8")
    assert "site-b" in refused(kit, folder, EnrolmentError)
    for text in ("name", "courier = 'x'", "name = 3", "name = 'site-a'\nstate = []"):
        file.write_text(text, encoding="utf-8")
        refused(kit, folder, DataError)
    text = 'name = "site-a"\nstate = "vault"\ncourier = "../elsewhere/courier"\n'
    file.write_text(text, encoding="utf-8")
    request = join(kit, folder)
    assert request.resolve() == tmp_path / "elsewhere/courier/site-a.request.json"
    assert load_pinned(folder / "vault") is not None
    assert file.read_text(encoding="utf-8") == text


def test_leaving_destroys_the_key_and_keeps_the_rest(kit: Path, tmp_path: Path) -> None:
    """After leaving there is nothing to call with and nobody to obey; ledger and key stay."""
    folder = tmp_path / "h"
    join(kit, folder)
    for name in ("site.key", "ledger.jsonl", "approvals.json"):
        (folder / "state" / name).write_text(name, encoding="utf-8")
    leave(folder)
    assert not any((folder / "courier").iterdir())
    assert load_pinned(folder / "state") is None
    kept = {path.name for path in (folder / "state").iterdir()}
    assert kept == {"site.key", "ledger.jsonl", "left"}
    aside = {path.name for path in (folder / "state/left").rglob("*.json")}
    assert aside == {"coordinator.json", "approvals.json"}
    with pytest.raises(EnrolmentError, match="joined no coordinator"):
        leave(folder)


def trusted(folder: Path) -> int:
    context = ssl.create_default_context(cafile=folder / "courier/authority.pem")
    return context.cert_store_stats()["x509_ca"]


def test_a_new_authority_is_taken_over(
    coordinator: ServerConfig, kit: Path, tmp_path: Path
) -> None:
    """After one rotation or several, renewal.pem brings the site to the present authority alone."""
    folder = tmp_path / "h"
    join(kit, folder)
    for rotations in (1, 2):
        for _ in range(rotations):
            rotate_authority(coordinator)
        fingerprint = renew_trust(folder, coordinator.renewal.read_bytes())
        present = coordinator.authority_certificate.read_bytes()
        assert (folder / "courier/authority.pem").read_bytes() == present
        assert trusted(folder) == 1
        pinned = load_pinned(folder / "state")
        assert pinned is not None
        assert pinned.fingerprint == fingerprint
        assert renew_trust(folder, coordinator.renewal.read_bytes()) == fingerprint


def test_nobody_else_can_pass_on_trust(
    coordinator: ServerConfig, kit: Path, tmp_path: Path
) -> None:
    """Strange authorities, alone or beside genuine ones, and wrong signatures are refused."""
    folder = tmp_path / "h"
    join(kit, folder)
    old = coordinator.authority_certificate.read_bytes()
    stranger, follower = new_authority("trial"), new_authority("trial")
    rotate_authority(coordinator)
    renewal = coordinator.renewal.read_bytes()
    foreign_cross = pem_of([cross_sign(follower.certificate, stranger)])
    bundles = {
        "a stranger": stranger.certificate_pem,
        "a stranger beside the renewal": renewal + stranger.certificate_pem,
        "signed by a stranger": follower.certificate_pem + foreign_cross,
        "signed by a stranger that is there": follower.certificate_pem
        + foreign_cross
        + stranger.certificate_pem,
        "without the cross certificate": coordinator.authority_certificate.read_bytes(),
        "the cross certificate alone": renewal.removeprefix(
            coordinator.authority_certificate.read_bytes()
        ),
        "a server's certificate": coordinator.server_certificate.read_bytes(),
        "text": b"text",
        "nothing": b"",
        "no text": b"\xff\xfe",
    }
    for bundle in bundles.values():
        with pytest.raises(KitError):
            renew_trust(folder, bundle)
        assert (folder / "courier/authority.pem").read_bytes() == old


def test_a_servers_key_vouches_for_nobody(
    coordinator: ServerConfig, kit: Path, tmp_path: Path
) -> None:
    """Who steals the front's key cannot make authorities with it."""
    from server.certificates import load_issued

    join(kit, tmp_path / "h")
    rotate_server(coordinator)
    front = load_issued(
        coordinator.server_certificate.read_bytes(), coordinator.server_key.read_bytes()
    )
    own = new_authority("trial")
    cross = pem_of([cross_sign(own.certificate, front)])
    for bundle in (
        own.certificate_pem + cross,
        own.certificate_pem + cross + front.certificate_pem,
    ):
        with pytest.raises(KitError):
            renew_trust(tmp_path / "h", bundle)


def test_trust_is_renewed_where_there_is_some(coordinator: ServerConfig, tmp_path: Path) -> None:
    """A folder that has joined nobody takes no authority over."""
    with pytest.raises(EnrolmentError, match="Join first"):
        renew_trust(tmp_path / "h", coordinator.renewal.read_bytes())


def test_no_link_is_followed_when_a_file_is_put(tmp_path: Path) -> None:
    """A courier that lays links in its folder cannot let the engineer overwrite other files."""
    folder, precious = tmp_path / "courier", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("precious", encoding="utf-8")
    (folder / "node.key").symlink_to(precious)
    owned_files.put(folder, "node.key", b"key", mode=0o600)
    assert (folder / "node.key").read_bytes() == b"key"
    assert not (folder / "node.key").is_symlink()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(OSError, match="link"):
        owned_files.put(tmp_path / "link", "other", b"", mode=0o600)
    assert precious.read_text(encoding="utf-8") == "precious"
    assert {path.name for path in folder.iterdir()} == {"node.key"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")
def test_files_belong_to_whom_the_folder_belongs_to(kit: Path, tmp_path: Path) -> None:
    """What root writes for the courier, the courier's user can read; so for the vault."""
    folder = tmp_path / "h"
    for name, user in (("courier", 65534), ("state", 12345)):
        (folder / name).mkdir(parents=True, mode=0o700)
        os.chown(folder / name, user, user)
    join(kit, folder)
    for name, user in (("courier", 65534), ("state", 12345)):
        assert {path.stat().st_uid for path in (folder / name).iterdir()} == {user}
