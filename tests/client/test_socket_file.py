"""Laws of the vault's socket as a file."""

import contextlib
import grp
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from client.config import SiteConfig
from client.socket_file import MAX_PATH_BYTES, check_path, listen, only_one
from common.errors import ServiceError

MakeHospital = Callable[..., SiteConfig]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_socket_is_the_owners_own(make_hospital: MakeHospital) -> None:
    """Without a group nobody else may speak to the vault, nor see into the socket's folder."""
    config = make_hospital()
    with only_one(config), listen(config):
        assert mode(config.socket) == 0o600
        assert mode(config.socket.parent) == 0o700
    assert not config.socket.exists()


def test_a_group_may_use_the_socket_and_no_more(make_hospital: MakeHospital) -> None:
    """Its members may pass the folder and speak to the vault; others may do neither."""
    if os.geteuid() != 0:
        pytest.skip("only root may give a file to any group")
    group = grp.getgrnam("nogroup")
    config = make_hospital().model_copy(update={"socket_group": "nogroup"})
    with only_one(config), listen(config):
        for path, expected in ((config.socket, 0o660), (config.socket.parent, 0o750)):
            assert mode(path) == expected
            assert path.stat().st_gid == group.gr_gid
        assert mode(config.state) == 0o700


def test_a_folder_that_is_there_stays_as_it_is(make_hospital: MakeHospital) -> None:
    """Who made it, such as systemd, decided on its permissions."""
    config = make_hospital()
    config.socket.parent.mkdir()
    config.socket.parent.chmod(0o755)
    with only_one(config), listen(config):
        assert mode(config.socket.parent) == 0o755


def test_nobody_connects_before_the_vault_listens(make_hospital: MakeHospital) -> None:
    """Bound, with its permissions set, the socket still refuses connections."""
    config = make_hospital()
    early = socket.socket(socket.AF_UNIX)
    with listen(config), early, pytest.raises(ConnectionRefusedError):
        early.connect(str(config.socket))


def test_a_dead_vaults_socket_is_replaced(make_hospital: MakeHospital) -> None:
    """A vault that was killed could not remove it."""
    config = make_hospital()
    config.socket.parent.mkdir()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(config.socket))
    with listen(config) as listener:
        listener.listen()
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(str(config.socket))
    assert not config.socket.exists()


def test_what_is_in_the_way_is_told(make_hospital: MakeHospital, tmp_path: Path) -> None:
    """A file there, a path too long, a group that is none: each a ServiceError with a remedy."""
    config = make_hospital()
    (tmp_path / "file").write_text("precious")
    for update in (
        {"socket": tmp_path / "file"},
        {"socket": tmp_path / "file/vault.sock"},
        {"socket": tmp_path / ("x" * 120)},
        {"socket_group": "no-such-group"},
    ):
        with pytest.raises(ServiceError) as refusal, listen(config.model_copy(update=update)):
            pass
        assert refusal.value.remedy
    assert (tmp_path / "file").read_text() == "precious"


def test_a_path_of_107_bytes_serves_and_of_108_does_not(
    make_hospital: MakeHospital, tmp_path: Path
) -> None:
    """The longest path that is let through can be bound and connected to; bytes are counted."""
    config = make_hospital()
    name = "x" * (MAX_PATH_BYTES - len(os.fsencode(tmp_path)) - 1)
    longest = config.model_copy(update={"socket": tmp_path / name})
    assert len(os.fsencode(longest.socket)) == 107
    check_path(longest)
    with listen(longest) as listener:
        listener.listen()
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(str(longest.socket))
    for path in (tmp_path / f"{name}x", tmp_path / f"{name[1:]}é", Path("/", "é" * 54)):
        with pytest.raises(ServiceError, match="too long") as refusal:
            check_path(config.model_copy(update={"socket": path}))
        assert "at most 107 bytes" in refusal.value.remedy


def test_there_is_one_vault(make_hospital: MakeHospital, tmp_path: Path) -> None:
    """The second on the same state is refused; afterwards, or elsewhere, there may be another."""
    config = make_hospital()
    with only_one(config):
        with pytest.raises(ServiceError, match="already runs") as refusal, only_one(config):
            pass
        assert refusal.value.remedy
        with only_one(make_hospital("site-b")):
            pass
    with only_one(config):
        pass
    (tmp_path / "file").touch()
    unusable = config.model_copy(update={"state": tmp_path / "file/state"})
    with pytest.raises(ServiceError, match="Cannot write"), only_one(unusable):
        pass


def test_what_is_written_meanwhile_is_private(make_hospital: MakeHospital) -> None:
    """A file made while the vault runs is its user's alone, and the old habit comes back."""
    config = make_hospital()
    before = os.umask(0o022)
    try:
        with only_one(config):
            (config.state / "inside").touch()
        (config.state / "outside").touch()
    finally:
        os.umask(before)
    assert (mode(config.state / "inside"), mode(config.state / "outside")) == (0o600, 0o644)
