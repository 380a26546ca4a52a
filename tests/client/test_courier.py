"""Laws of how the courier's processes are started."""

import http.server
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from flwr.common.config import parse_config_args
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from client import courier
from client.config import SiteConfig
from client.courier import (
    Connection,
    courier_services,
    environment,
    superexec_arguments,
    supernode_arguments,
    write_loopback_certificate,
)
from client.enrol import join
from common.errors import EnrolmentError, ServiceError
from server.config import ServerConfig, init_folder
from server.enrolment import invite

ROOT = Path(courier.__file__).parent.parent
MakeHospital = Callable[..., SiteConfig]


@pytest.fixture(scope="session")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    return init_folder(tmp_path_factory.mktemp("c") / "c", "trial", "localhost:22999")


@pytest.fixture
def hospital(make_hospital: MakeHospital, coordinator: ServerConfig) -> SiteConfig:
    """A hospital that has joined."""
    name = f"site-{uuid4().hex[:12]}"
    config = make_hospital(name)
    invite(coordinator, name)
    join(coordinator.kit_file(name), config.state.parent)
    return config


def test_no_secret_is_in_any_argument(hospital: SiteConfig) -> None:
    """Every local user can read arguments: they name the files of secrets, never their content."""
    secrets = [
        (hospital.courier / "superexec.secret").read_bytes(),
        *(hospital.courier / "node.key").read_bytes().splitlines(),
    ]
    services = courier_services(hospital)
    words = [word.encode() for service in services for word in service.argv]
    words += [value.encode() for service in services for value in service.env.values()]
    assert not any(secret in word for secret in secrets for word in words)


def test_flower_takes_the_arguments(tmp_path: Path) -> None:
    """Flower's own parsers accept them, and take from them what was meant."""
    node = _parse_args_run_supernode().parse_args(supernode_arguments(tmp_path, "c:443", 9)[1:])
    assert (node.superlink, node.host, node.port) == ("c:443", "127.0.0.1", 9)
    assert (node.isolation, node.insecure) == ("process", False)
    assert not node.runtime_dependency_install
    program = superexec_arguments(tmp_path, 9)
    found = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True)
    assert all(word in found.stdout for word in program if word.startswith("--"))


def test_the_programs_are_those_of_this_python(hospital: SiteConfig) -> None:
    """SuperNode, SuperExec and the ClientApps that it starts come from one installation."""
    here = str(Path(sys.executable).parent)
    for service in courier_services(hospital):
        assert service.argv[0].startswith(here)
        assert service.env["PATH"].split(":")[0] == here


@pytest.mark.parametrize("socket_path", ["/run/v.sock", "/a b/v.sock", '/it\'s "x"/\\v=1.sock'])
def test_the_bundle_learns_socket_and_site(socket_path: str, hospital: SiteConfig) -> None:
    """Flower reads the node's configuration as it was meant, whatever is in a path."""
    config = hospital.model_copy(update={"socket": Path(socket_path)})
    (node, _) = courier_services(config)
    file = node.argv[node.argv.index("--node-config") + 1]
    assert parse_config_args([file]) == {"vault": socket_path, "site": hospital.name}


def test_nothing_of_the_hospital_is_in_the_environment(tmp_path: Path) -> None:
    """Of the outer environment only language, time zone and proxies go on."""
    outer = {
        "LANG": "C.UTF-8",
        "TZ": "Europe/Berlin",
        "https_proxy": "http://p:1",
        "PYTHONPATH": "/elsewhere",
        "LD_PRELOAD": "/elsewhere.so",
        "DATABASE_PASSWORD": "s3cret",
        "HOME": "/root",
    }
    env = environment(tmp_path, outer)
    assert {env[name] for name in ("HOME", "TMPDIR", "FLWR_HOME")} == {
        str(tmp_path),
        str(tmp_path / "tmp"),
        str(tmp_path / "flower"),
    }
    assert (env["LANG"], env["TZ"], env["https_proxy"]) == (
        "C.UTF-8",
        "Europe/Berlin",
        "http://p:1",
    )
    assert not {"PYTHONPATH", "LD_PRELOAD", "DATABASE_PASSWORD"} & set(env)
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] == "0.2"


@pytest.mark.parametrize("named", [{}, {"NO_PROXY": "pacs.test"}, {"no_proxy": "pacs.test"}])
def test_loopback_never_goes_to_a_proxy(
    named: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every proxy variable set, httpx speaks to this machine directly, and to those named."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    dead = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    env = environment(tmp_path, dead | named)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with httpx.Client(timeout=5) as client:
        answer = client.head(f"http://127.0.0.1:{server.server_address[1]}/")
        direct = client._transport
        assert all(
            (client._transport_for_url(httpx.URL(f"https://{host}")) is direct) == is_direct
            for host, is_direct in {
                "localhost": True,
                "[::1]": True,
                "pacs.test": bool(named),
                "coordinator.test": False,
            }.items()
        )
    server.server_close()
    assert answer.status_code < 500


def test_the_loopback_certificate_is_trusted_by_itself_alone(tmp_path: Path) -> None:
    """The SuperExec knows this SuperNode, and another process on its port is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    write_loopback_certificate(tmp_path)
    context.load_cert_chain(tmp_path / "runtime.crt", tmp_path / "runtime.key")
    first = (tmp_path / "runtime.crt").read_text()
    write_loopback_certificate(tmp_path)
    second = (tmp_path / "runtime.crt").read_text()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            for _ in range(2):
                client, _ = listener.accept()
                try:
                    context.wrap_socket(client, server_side=True).close()
                except (ssl.SSLError, OSError):
                    client.close()

        threading.Thread(target=answer, daemon=True).start()

        def greet(trusted: str) -> None:
            client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client.load_verify_locations(cadata=trusted)
            with socket.create_connection(("127.0.0.1", port)) as plain:
                client.wrap_socket(plain, server_hostname="127.0.0.1").close()

        greet(first)
        with pytest.raises(ssl.SSLCertVerificationError):
            greet(second)


def test_what_the_courier_writes_is_its_own(hospital: SiteConfig) -> None:
    """Keys and settings that are made at the start are closed to others."""
    courier_services(hospital)
    for name in ("runtime.key", "node.toml", "superexec.secret", "node.key"):
        assert stat.S_IMODE((hospital.courier / name).stat().st_mode) == 0o600
    for name in ("tmp", "flower", "logs"):
        assert stat.S_IMODE((hospital.courier / name).stat().st_mode) == 0o700


def test_no_old_bundle_is_used_again(hospital: SiteConfig) -> None:
    """What lies in Flower's folder of bundles, and left-over orders, are gone at the start."""
    old = hospital.courier / "flower/apps/rarefed.rarefed.0.1.0.12345678/client/app.py"
    left = hospital.courier / "tmp/order"
    for file in (old, left):
        file.parent.mkdir(parents=True)
        file.write_text("raise SystemExit")
    courier_services(hospital)
    assert not old.exists()
    assert not left.exists()


def test_two_sites_of_a_machine_take_two_ports(hospital: SiteConfig) -> None:
    """A port that is not given is chosen free, and both processes are told the same."""
    node, executor = courier_services(hospital)
    port = node.argv[node.argv.index("--port") + 1]
    assert f"127.0.0.1:{port}" in executor.argv
    with socket.create_server(("127.0.0.1", int(port))):
        again, _ = courier_services(hospital)
    assert again.argv[again.argv.index("--port") + 1] != port


def test_who_has_not_joined_cannot_start(make_hospital: MakeHospital) -> None:
    """Without an enrolment the command says how to join."""
    with pytest.raises(EnrolmentError, match="has not joined") as told:
        courier_services(make_hospital())
    assert "join KIT" in told.value.remedy


@pytest.mark.parametrize(
    "content", ["", "{}", '{"address": "no port", "site": "a"}', '{"address": "c:1", "x": 1}']
)
def test_a_damaged_connection_is_told(content: str, hospital: SiteConfig) -> None:
    """A file that is not what 'join' wrote is refused as a whole."""
    (hospital.courier / "connection.json").write_text(content)
    with pytest.raises(EnrolmentError, match="damaged"):
        Connection.load(hospital)


def test_a_folder_that_cannot_be_written_is_told(hospital: SiteConfig) -> None:
    """Where the folder is another's, the command says whose it must be."""
    (hospital.courier / "logs").write_text("a file in the way of the folder")
    with pytest.raises(ServiceError, match="Cannot write in the courier's folder"):
        courier_services(hospital)


def test_the_courier_needs_nothing_that_reads_an_image() -> None:
    """Its command loads where torch, pydicom and Pillow are not installed."""
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'pydicom', 'PIL'): sys.modules[name] = None\n"
        "import client.cli, client.courier, client.doctor, client.situation, client.key_probe\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_the_environment_of_the_shell_is_that_of_the_services(
    hospital: SiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is set where the courier is started reaches Flower."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    services: list[Any] = courier_services(hospital)
    assert {service.env["HTTPS_PROXY"] for service in services} == {"http://proxy.test:3128"}
