"""The coordinator's folder: how it is made, read, and refused."""

import stat
from pathlib import Path

import pytest

from common.errors import MissingFolderError, OutputError, ServiceError
from server import staging
from server.certificates import load_issued
from server.config import ServerConfig, init_folder
from server.rotation import rotate_authority


def make(folder: Path) -> ServerConfig:
    return init_folder(folder, "trial", "fl.example.org:8443")


def test_a_folder_comes_back_as_it_was_made(tmp_path: Path) -> None:
    """What ``init_folder`` returns is what ``load`` reads."""
    made = init_folder(
        tmp_path / "c", "trial", "fl.example.org:8443", also=["10.0.0.5", "fl"], superlink_port=2000
    )
    assert ServerConfig.load(tmp_path / "c") == made
    assert made.names == ["fl.example.org", "10.0.0.5", "fl", "localhost", "127.0.0.1"]


def test_everything_is_the_owners_alone(tmp_path: Path) -> None:
    """Folders are 0700 and files 0600, whatever the umask says."""
    config = make(tmp_path / "c")
    rotate_authority(config)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in config.folder.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert stat.S_IMODE(config.folder.stat().st_mode) == 0o700


def test_the_loopback_authority_signs_nothing_more(tmp_path: Path) -> None:
    """Its key is nowhere in the folder: there are keys of three certificates and of orders."""
    config = make(tmp_path / "c")
    keys = {p.name for p in config.folder.rglob("*") if b"PRIVATE KEY" in _content(p)}
    assert keys == {"authority.key", "server.key", "loopback.key", "order.key"}
    assert len(config.superexec_secret.read_bytes()) == 32
    assert len(bytes.fromhex(config.order_public_key())) == 32


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    """Neither a coordinator nor anything else is ever overwritten."""
    config = make(tmp_path / "c")
    key = config.authority_key.read_bytes()
    for folder in (tmp_path / "c", tmp_path):
        with pytest.raises(OutputError, match="not empty"):
            make(folder)
    assert config.authority_key.read_bytes() == key


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A file in the way ends in an OutputError."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/c"):
        with pytest.raises(OutputError):
            make(folder)


def test_all_faults_are_listed_and_nothing_is_made(tmp_path: Path) -> None:
    """Every malformed value is named at once, before a folder is there."""
    with pytest.raises(ServiceError) as caught:
        init_folder(tmp_path / "c", "A B", "x", listen="fl:1", also=["_"], superlink_port=0)
    for key in ("name", "address", "listen", "also.0", "superlink_port"):
        assert f"- {key}:" in str(caught.value)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("address", "listen"),
    [
        ("fl.example.org:8443", "0.0.0.0:8443"),
        ("10.1.2.3:8443", "0.0.0.0:8443"),
        ("localhost:8443", "127.0.0.1:8443"),
        ("127.0.0.1:8443", "127.0.0.1:8443"),
        ("[::1]:8443", "[::1]:8443"),
    ],
)
def test_a_loopback_address_is_listened_to_on_loopback(
    tmp_path: Path, address: str, listen: str
) -> None:
    """Nothing is opened to the network that only this machine can call."""
    assert init_folder(tmp_path / "c", "trial", address).listen == listen


def test_no_coordinator_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    """A missing file is a missing folder; TOML that is none, or unknown keys, are faults."""
    with pytest.raises(MissingFolderError):
        ServerConfig.load(tmp_path)
    config = make(tmp_path / "c")
    file = config.folder / "server.toml"
    good = file.read_text(encoding="utf-8")
    for text in ("=", good + "\nmax_body = 3\nrequests_per_second = 0\n"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ServiceError):
            ServerConfig.load(config.folder)


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    """A coordinator whose keys others could read does not start."""
    config = make(tmp_path / "c")
    for mode in (0o750, 0o704, 0o720):
        config.folder.chmod(mode)
        with pytest.raises(ServiceError, match="chmod 700"):
            ServerConfig.load(config.folder)


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_rotation_cut_short_is_finished(tmp_path: Path, moved: int) -> None:
    """A crash while files take their names leaves, after the next load, the new ones alone."""
    config = make(tmp_path / "c")
    staged = config.folder / staging.STAGED
    staged.mkdir(mode=0o700)
    for number, name in enumerate(("server.key", "server.crt")):
        place = config.folder / name if number < moved else staged / f"{number:02d}-{name}"
        place.write_text(f"new {name}", encoding="utf-8")
    loaded = ServerConfig.load(config.folder)
    assert loaded.server_key.read_text(encoding="utf-8") == "new server.key"
    assert loaded.server_certificate.read_text(encoding="utf-8") == "new server.crt"
    assert not staged.exists()


def test_a_rotation_that_was_only_prepared_does_not_count(tmp_path: Path) -> None:
    """A crash before the decision leaves the old files, and the next rotation works."""
    config = make(tmp_path / "c")
    preparing = config.folder / f".{staging.STAGED}"
    preparing.mkdir(mode=0o700)
    (preparing / "00-authority.key").write_text("half", encoding="utf-8")
    loaded = ServerConfig.load(config.folder)
    rotate_authority(loaded)
    load_issued(loaded.authority_certificate.read_bytes(), loaded.authority_key.read_bytes())
    assert not preparing.exists()


def test_a_damaged_authority_rotates_nothing(tmp_path: Path) -> None:
    """Without an authority whose key fits, the files stay as they are."""
    config = make(tmp_path / "c")
    config.authority_key.write_bytes(config.server_key.read_bytes())
    before = config.server_certificate.read_bytes()
    with pytest.raises(ServiceError, match="Cannot read the authority"):
        rotate_authority(config)
    assert config.server_certificate.read_bytes() == before
