"""Laws of what is asked of SuperLink, held by a real one on loopback."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import EnrolmentError, NotRunningError, UnknownSiteError
from common.processes import read_status, supervise
from server import flower
from server.config import ServerConfig, init_folder
from server.flower_services import COORDINATOR, environment, flower_services, spare_loopback
from simulations.deployment import free_port


def new_key() -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """A coordinator whose SuperLink runs, without SuperExec: a run stays pending."""
    folder = tmp_path_factory.mktemp("flower") / "coordinator"
    address = f"127.0.0.1:{free_port()}"
    config = init_folder(folder, "trial", address, superlink_port=free_port())
    stop = threading.Event()
    superlink = flower_services(config)[0]
    options = {"status_file": config.processes_file, "stop": stop}
    thread = threading.Thread(target=supervise, args=([superlink],), kwargs=options)
    thread.start()
    until = time.monotonic() + 30
    while not flower.is_up(config) and time.monotonic() < until:
        time.sleep(0.1)
    try:
        yield config
    finally:
        stop.set()
        thread.join()


def test_a_registered_site_is_listed_until_it_is_taken_away(config: ServerConfig) -> None:
    """A key is registered under its site's name; taken away, it is gone and cannot come back."""
    key = new_key()
    number = flower.register_node(config, key, "north")
    (node,) = [node for node in flower.list_nodes(config) if node.name == "north"]
    assert (node.node_id, node.status, node.last_seen) == (number, "registered", "")
    flower.unregister_node(config, number)
    assert "north" not in [node.name for node in flower.list_nodes(config)]
    with pytest.raises(EnrolmentError, match="does not register the key of north"):
        flower.register_node(config, key, "north")
    with pytest.raises(UnknownSiteError):
        flower.unregister_node(config, number)


def test_registering_again_changes_nothing(config: ServerConfig) -> None:
    """The same key and name give the same node; the same key under another name is refused."""
    key = new_key()
    number = flower.register_node(config, key, "south")
    assert flower.register_node(config, key, "south") == number
    with pytest.raises(EnrolmentError):
        flower.register_node(config, key, "impostor")
    assert [node.name for node in flower.list_nodes(config)].count("south") == 1


def test_only_an_ecdsa_key_is_a_sites_key(config: ServerConfig) -> None:
    """A key of another kind, and what is no key, is refused."""
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    other = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    for text in (other, "ssh-rsa nonsense", ""):
        with pytest.raises(EnrolmentError, match="no ECDSA key"):
            flower.register_node(config, text, "west")


def test_a_run_is_active_until_it_is_stopped(config: ServerConfig, tiny_bundle: bytes) -> None:
    """A run is listed with its study while it is not over; stopping it ends it, once."""
    number = flower.start_run(config, tiny_bundle, {"study-id": "retina-1"})
    assert flower.run_status(config, number).status == "pending"
    assert not flower.run_status(config, number).ended
    assert flower.active_runs(config, "study-id")[number] == "retina-1"
    flower.stop_run(config, number)
    assert flower.run_status(config, number)[:2] == ("finished", "stopped")
    assert flower.run_status(config, number).ended
    assert number not in flower.active_runs(config, "study-id")
    flower.stop_run(config, number)
    assert "".join(flower.run_log(config, number)) == ""


def test_a_run_that_flower_does_not_know_has_failed(config: ServerConfig) -> None:
    """A run of a database that is lost counts as ended, and stopping it does nothing."""
    assert flower.run_status(config, 12345)[:2] == ("finished", "failed")
    flower.stop_run(config, 12345)


def test_no_answer_is_said(tmp_path: Path) -> None:
    """Where no SuperLink answers, every question says that the coordinator does not run."""
    silent = init_folder(tmp_path / "c", "trial", "127.0.0.1:21001", superlink_port=free_port())
    with pytest.raises(NotRunningError, match="does not answer"):
        flower.list_nodes(silent)
    with pytest.raises(NotRunningError):
        flower.run_status(silent, 1)
    assert not flower.is_up(silent)


def test_another_superlink_is_not_believed(config: ServerConfig, tmp_path: Path) -> None:
    """What answers on the port with a strange certificate is not asked anything."""
    other = init_folder(tmp_path / "c", "other", "127.0.0.1:21001")
    other = other.model_copy(update={"superlink_port": config.superlink_port})
    with pytest.raises(NotRunningError):
        flower.list_nodes(other)


def test_no_secret_is_an_argument(config: ServerConfig) -> None:
    """Neither arguments nor environment of the processes hold a secret, but the files' names."""
    secrets = [
        config.superexec_secret.read_bytes().hex(),
        config.loopback_key.read_text(),
        config.order_key.read_text(),
    ]
    for service in flower_services(config):
        text = " ".join([*service.argv, *service.env.values()])
        assert not any(secret in text for secret in secrets)
    pid = read_status(config.processes_file)["superlink"]["pid"]
    assert str(config.superexec_secret).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_superlink_writes_nothing_for_others(config: ServerConfig) -> None:
    """Whatever SuperLink has written is closed to other users."""
    written = [path for path in config.folder.rglob("*") if path.is_file()]
    assert config.state_database in written
    assert all(path.stat().st_mode & 0o077 == 0 for path in written)


def test_processes_stand_where_nothing_can_be_imported(config: ServerConfig) -> None:
    """Flower's processes have an empty working folder, and no import path of the caller's."""
    for service in flower_services(config):
        assert service.cwd is not None
        assert not any(service.cwd.iterdir())
        assert "PYTHONPATH" not in service.env


def test_the_callers_settings_of_flower_do_not_count(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a shell says of Flower is left out, and Flower must neither call home nor install."""
    monkeypatch.setenv("FLWR_SUPERGRID_API_URL", "http://evil")
    monkeypatch.setenv("PYTHONPATH", "/evil")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    env = environment(config)
    assert "FLWR_SUPERGRID_API_URL" not in env
    assert env["FLWR_HOME"] == str(config.flower_home)
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert env[COORDINATOR] == str(config.folder)
    assert env["HTTPS_PROXY"] == "http://proxy:3128"
    assert "127.0.0.1" in env["NO_PROXY"].split(",")


def test_loopback_is_added_to_what_a_proxy_is_spared() -> None:
    """Hosts that are listed stay, in both spellings of the variable."""
    found = spare_loopback({"NO_PROXY": "intranet, 10.0.0.0/8"})
    assert found["NO_PROXY"] == found["no_proxy"] == "intranet,10.0.0.0/8,127.0.0.1,localhost"
    assert spare_loopback({})["no_proxy"] == "127.0.0.1,localhost"


def test_a_proxy_is_not_asked(config: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """SuperLink is reached past a proxy that the environment names."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    assert flower.is_up(config)
    assert os.environ["no_proxy"] == "127.0.0.1,localhost"


def test_without_a_front_superlink_bears_the_public_certificate(config: ServerConfig) -> None:
    """Where sites call SuperLink itself, it has the certificate that their kits let them trust."""
    with_front, without = flower_services(config), flower_services(config, front=False)
    assert str(config.loopback_certificate) in with_front[0].argv
    assert str(config.server_certificate) in without[0].argv
    assert str(config.authorities) in without[1].argv
