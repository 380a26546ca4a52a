"""Attacks on a running coordinator from outside: each is refused, and it runs on as before."""

import base64
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import (
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.runtime.runtime_http_client import RuntimeHttpClient

from client.courier import environment, supernode_arguments, write_loopback_certificate
from client.enrol import join
from client.key_probe import probe_key
from common.enrolment import Kit, Request, proof_of
from common.errors import EnrolmentError, KitError, ServiceError, UnknownSiteError
from server import certificates, enrolment, flower, front
from server.config import ServerConfig, init_folder
from simulations.deployment import Deployment, free_port, wait_until

SecretsOf = Callable[[Path], dict[Path, list[bytes]]]
Exposed = Callable[[dict[Path, list[bytes]], list[Path], int], list[str]]

PULL = "/v1/fleet/pull-messages"
SECONDS = 40.0


@dataclass
class Site:
    """A hospital's folder after ``join``, and what it can call with its key."""

    name: str
    folder: Path
    url: str
    trust: ssl.SSLContext
    node: int = 0

    @property
    def courier(self) -> Path:
        """The courier's folder."""
        return self.folder / "courier"

    @property
    def request(self) -> Path:
        """What it asks the coordinator."""
        return self.courier / f"{self.name}.request.json"

    @property
    def key(self) -> EllipticCurvePrivateKey:
        """The key that signs its calls."""
        key = load_ssh_private_key((self.courier / "node.key").read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        return key

    def call(
        self,
        name: str,
        *,
        node: int | None = None,
        public: EllipticCurvePublicKey | None = None,
        age: timedelta = timedelta(0),
    ) -> httpx.Response:
        """Call SuperLink as a SuperNode does; the claims may differ from what the key is good for.

        Args:
            name: Of the call.
            node: The number that it claims; its own by default.
            public: The public key that it claims; its own by default.
            age: How long ago it pretends to have signed.
        """
        public = public or self.key.public_key()
        request = PROTOBUF_REQUEST_TYPES["POST", f"/v1/fleet/{name}"]()
        if isinstance(request, ActivateNodeRequest):
            request.public_key = public_key_to_bytes(public)
        elif hasattr(request, "node"):
            request.node.node_id = self.node if node is None else node
        else:
            request.node_id = self.node if node is None else node
        if hasattr(request, "heartbeat_interval"):
            request.heartbeat_interval = 30.0
        stamp = (datetime.now(UTC) - age).isoformat()
        headers = {
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept": PROTOBUF_MEDIA_TYPE,
            TIMESTAMP_HEADER: stamp,
            FLEET_HTTP_PUBLIC_KEY_HEADER: _base64(public_key_to_bytes(public)),
            FLEET_HTTP_SIGNATURE_HEADER: _base64(sign_message(self.key, stamp.encode())),
        }
        body = request.SerializeToString()
        with httpx.Client(verify=self.trust, trust_env=False, timeout=20) as client:
            return client.post(f"{self.url}/v1/fleet/{name}", content=body, headers=headers)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def trust(config: ServerConfig) -> ssl.SSLContext:
    """What a site trusts."""
    return ssl.create_default_context(cafile=str(config.authorities))


@pytest.fixture(scope="module")
def join_as(
    config: ServerConfig, trust: ssl.SSLContext, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Site]:
    """Return what invites a site and lets it join; its request is not accepted yet."""

    def make(name: str, at: ServerConfig = config) -> Site:
        enrolment.invite(at, name)
        folder = tmp_path_factory.mktemp(name) / "site"
        join(at.kit_file(name), folder)
        return Site(name, folder, f"https://{config.address}", trust)

    return make


@pytest.fixture(scope="module")
def accept(config: ServerConfig) -> Callable[[Request], enrolment.SiteEntry]:
    """Return what a coordinator does with a request while it runs."""
    return partial(_accept, config)


def _accept(config: ServerConfig, request: Request) -> enrolment.SiteEntry:
    return enrolment.accept(config, request, partial(flower.register_node, config))


@pytest.fixture(scope="module")
def site(join_as: Callable[..., Site], config: ServerConfig) -> Site:
    """A hospital that is enrolled and stays so."""
    return _enrolled(join_as("good"), config)


def _enrolled(site: Site, config: ServerConfig) -> Site:
    entry = _accept(config, Request.load(site.request))
    assert entry.node_id is not None
    site.node = entry.node_id
    return site


@pytest.fixture(scope="module")
def other(join_as: Callable[..., Site], config: ServerConfig) -> Site:
    """A second hospital that is enrolled."""
    return _enrolled(join_as("other"), config)


@pytest.fixture(scope="module")
def invited(join_as: Callable[..., Site]) -> Site:
    """A hospital that has joined, and whose request was never accepted."""
    return join_as("invited")


@pytest.fixture(scope="module")
def stranger(
    join_as: Callable[..., Site], tmp_path_factory: pytest.TempPathFactory, config: ServerConfig
) -> Site:
    """A hospital of another federation, of the same address, which tries its key here."""
    folder = tmp_path_factory.mktemp("other") / "coordinator"
    return join_as("stranger", init_folder(folder, "other", config.address))


@pytest.fixture(scope="module", autouse=True)
def _as_before(deployed: Deployment, site: Site) -> Iterator[None]:
    """After all attacks the same processes run, and a site that is enrolled is served."""
    names = ("superlink", "superexec", "front")
    before = [deployed.pid("coordinator", name) for name in names]
    yield
    assert [deployed.pid("coordinator", name) for name in names] == before
    assert site.call("send-node-heartbeat").status_code == 200
    listed = deployed.server("sites")
    states = {entry["site"]: entry["flower"] for entry in listed["sites"]}
    assert (listed["running"], states["good"]) == (True, "online")


# Who may speak at all


def test_nothing_is_answered_without_tls(config: ServerConfig) -> None:
    """Plain HTTP gets no answer, of Flower's own client neither."""
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"http://{config.address}{PULL}", trust_env=False)
    with (
        ControlHttpClient(f"http://{config.address}", timeout=10) as control,
        pytest.raises(httpx.HTTPError),
    ):
        control.ListRuns(ListRunsRequest())


@pytest.mark.parametrize(
    "garbage",
    [
        bytes(range(256)) * 16,
        os.urandom(65536),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
)
def test_garbage_is_hung_up_on(config: ServerConfig, garbage: bytes) -> None:
    """What is neither TLS nor HTTP gets no more than an alert."""
    host, _, port = config.listen.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as raw:
        found = b""
        with suppress(OSError):  # it may have hung up already
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            while part := raw.recv(4096):
                found += part
    assert b" 200" not in found
    assert b" 400" in found or len(found) <= 7  # RFC 8446, 6: an alert is a record of 7 bytes


def test_a_name_that_is_not_the_coordinators_is_refused(
    config: ServerConfig, trust: ssl.SSLContext
) -> None:
    """The certificate serves for the coordinator's own names alone."""
    host, _, port = config.listen.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 10) as raw,
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
    ):
        trust.wrap_socket(raw, server_hostname="elsewhere.example.org")


def test_another_authority_is_not_trusted(
    site: Site, stranger: Site, config: ServerConfig, tmp_path: Path
) -> None:
    """A site that trusts another authority does not even tell its key."""
    folder = shutil.copytree(site.courier, tmp_path / "courier")
    shutil.copy(stranger.courier / "authority.pem", folder)
    found = probe_key(config.address, folder)
    assert not found.ok
    assert "CERTIFICATE_VERIFY_FAILED" in found.message


@pytest.mark.parametrize(
    ("begins", "days", "fault"),
    [(-1, 5, ""), (-10, 5, "certificate has expired"), (2, 5, "certificate is not yet valid")],
)
def test_a_certificate_serves_in_its_time_alone(
    site: Site, config: ServerConfig, tmp_path: Path, begins: int, days: int, fault: str
) -> None:
    """A site refuses the coordinator's own front with an expired or a future certificate."""
    start = datetime.now(UTC) + timedelta(days=begins)
    with _another_front(config, tmp_path / "front", start, days) as address:
        found = probe_key(address, site.courier)
    assert found.ok == (not fault)
    assert fault in found.message


@contextmanager
def _another_front(config: ServerConfig, folder: Path, start: datetime, days: int) -> Iterator[str]:
    """Serve the running SuperLink with another certificate of its authority; give the address."""
    authority = certificates.load_issued(
        config.authority_certificate.read_bytes(), config.authority_key.read_bytes()
    )
    issued = certificates.issue_server_certificate(authority, ["localhost"], days=days, start=start)
    listen = f"127.0.0.1:{free_port()}"
    other = config.model_copy(update={"listen": listen})
    other.lie_in(folder)
    other.logs.mkdir(parents=True)
    other.server_certificate.write_bytes(issued.certificate_pem)
    other.server_key.write_bytes(issued.key_pem)
    shutil.copy(config.loopback_authority, other.loopback_authority)
    service = front.front_service(other)
    assert service is not None
    with subprocess.Popen(service.argv, cwd=folder, stdout=subprocess.DEVNULL) as nginx:
        try:
            wait_until(lambda: _listens(listen), 10, "the other front")
            yield listen.replace("127.0.0.1", "localhost")
        finally:
            nginx.terminate()


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as trial:
        return trial.connect_ex((host, int(port))) == 0


# Whose key is known


def test_a_key_that_is_registered_is_served(site: Site) -> None:
    """The way is open to whom it should be: what follows is refused for its own reason."""
    answer = site.call("activate-node")
    assert answer.status_code == 200
    assert ActivateNodeResponse.FromString(answer.content).node_id == site.node
    assert site.call("pull-messages").status_code == 200


@pytest.mark.parametrize("call", front.FLEET_CALLS)
def test_no_call_is_served_to_a_revoked_key(revoked: Site, call: str) -> None:
    """A site that was active is refused every call from the moment that it is revoked."""
    assert revoked.call(call).status_code in ({412} if call == "activate-node" else {401})


@pytest.fixture(scope="module")
def revoked(join_as: Callable[..., Site], config: ServerConfig) -> Site:
    """A site that was online when the coordinator revoked it."""
    site = _enrolled(join_as("revoked"), config)
    assert site.call("activate-node").status_code == 200
    assert site.call("pull-messages").status_code == 200
    enrolment.revoke(config, site.name, partial(flower.unregister_node, config))
    return site


@pytest.mark.parametrize("call", front.FLEET_CALLS)
def test_no_call_is_served_to_an_unregistered_key(
    invited: Site, site: Site, stranger: Site, call: str
) -> None:
    """A key of nobody, or of another federation, gets nothing, whichever node it claims to be."""
    for one in (stranger, invited):
        for node in (0, 1, site.node):
            one.node = node
            found = one.call(call).status_code
            assert found in ({412} if call == "activate-node" else {401})


@pytest.mark.parametrize("call", front.FLEET_CALLS)
def test_no_site_acts_for_another(other: Site, site: Site, call: str) -> None:
    """With its own good key a site can claim neither another's node nor another's key."""
    if call != "activate-node":
        assert other.call(call, node=site.node).status_code == 401
    assert other.call(call, node=site.node, public=site.key.public_key()).status_code == 401


@pytest.mark.parametrize("age", [timedelta(minutes=6), timedelta(seconds=-30)])
def test_a_signature_serves_in_its_time_alone(site: Site, age: timedelta) -> None:
    """A call that was signed minutes ago, or in the future, is refused."""
    assert site.call("pull-messages", age=age).status_code == 401


def test_real_supernodes_stay_out(
    invited: Site, site: Site, stranger: Site, config: ServerConfig, tmp_path: Path
) -> None:
    """Flower's own SuperNode ends at once with an unregistered key, and trusts no stranger."""
    misled = tmp_path / "misled"
    shutil.copytree(site.courier, misled)
    shutil.copy(stranger.courier / "authority.pem", misled)
    unregistered = _supernode(invited.courier, config)
    trusting_another = _supernode(misled, config)
    try:
        assert unregistered.wait(SECONDS) != 0
        assert "305" in (invited.courier / "node.log").read_text()
        log = misled / "node.log"
        wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in log.read_text(), SECONDS, "a refusal")
        assert "SuperNode ID" not in log.read_text()
    finally:
        for process in (unregistered, trusting_another):
            process.kill()
            process.wait()


def _supernode(folder: Path, config: ServerConfig) -> subprocess.Popen[bytes]:
    for name in ("flower", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "node.toml").write_text('site = "x"\n')
    write_loopback_certificate(folder)
    with (folder / "node.log").open("wb") as log:
        return subprocess.Popen(
            supernode_arguments(folder, config.address, free_port()),
            env=environment(folder, os.environ),
            cwd=folder,
            stdout=log,
            stderr=log,
        )


# Who is enrolled


def test_a_request_serves_once(
    deployed: Deployment,
    join_as: Callable[..., Site],
    accept: Callable[[Request], enrolment.SiteEntry],
    config: ServerConfig,
) -> None:
    """A request that comes again is refused: when it was accepted, revoked, and invited anew."""
    site = join_as("replayed")
    enrolled = accept(Request.load(site.request))
    with pytest.raises(ServiceError, match="enrolled already"):  # the command itself says so
        deployed.server("accept", str(site.request))
    enrolment.revoke(config, site.name, partial(flower.unregister_node, config))
    with pytest.raises(KitError, match="revoked"):
        accept(Request.load(site.request))
    enrolment.invite(config, site.name)
    with pytest.raises(KitError, match="not made with the kit"):
        accept(Request.load(site.request))
    assert enrolled.node_id not in {node.node_id for node in flower.list_nodes(config)}


def test_a_revoked_key_never_comes_back(
    revoked: Site, accept: Callable[[Request], enrolment.SiteEntry], config: ServerConfig
) -> None:
    """A new kit does not let an old key in, nor does Flower itself."""
    kit = enrolment.invite(config, "revoked")
    request = Request.load(revoked.request)
    with pytest.raises(KitError, match="key"):
        accept(_proved(request, kit))
    with pytest.raises(EnrolmentError):
        flower.register_node(config, request.public_key, "revoked")


def test_a_kit_serves_in_its_time_alone(
    invited: Site,
    accept: Callable[[Request], enrolment.SiteEntry],
    config: ServerConfig,
    tmp_path: Path,
) -> None:
    """An expired kit is refused by the site that joins, and by the coordinator all the same."""
    kit = enrolment.invite(config, "late", days=1, at=datetime.now(UTC) - timedelta(days=2))
    with pytest.raises(KitError, match="expired"):
        join(config.kit_file("late"), tmp_path / "site")
    key = Request.load(invited.request).public_key
    request = Request(site="late", public_key=key, proof=proof_of(kit.code, "late", key))
    with pytest.raises(KitError, match="expired"):
        accept(request)


def test_an_older_kit_no_longer_serves(
    join_as: Callable[..., Site],
    accept: Callable[[Request], enrolment.SiteEntry],
    config: ServerConfig,
) -> None:
    """Once a site is invited anew, what was made with the kit before is refused."""
    site = join_as("twice")
    enrolment.invite(config, "twice")
    with pytest.raises(KitError, match="not made with the kit"):
        accept(Request.load(site.request))


def test_a_site_cannot_claim_anothers_name(
    deployed: Deployment,
    invited: Site,
    site: Site,
    accept: Callable[[Request], enrolment.SiteEntry],
    config: ServerConfig,
    tmp_path: Path,
) -> None:
    """With its own kit a site becomes neither an invited site, nor an enrolled, nor a new one."""
    own = Request.load(invited.request)
    code = Kit.load(config.kit_file("invited")).code
    enrolment.invite(config, "victim")
    for name, error in (("victim", KitError), ("good", KitError), ("nobody", UnknownSiteError)):
        for proof in (own.proof, proof_of(code, name, own.public_key)):
            claim = own.model_copy(update={"site": name, "proof": proof})
            with pytest.raises(error):
                accept(claim)
    claim = own.model_copy(update={"site": "victim"})
    claim.save(tmp_path / "claim.json")
    with pytest.raises(ServiceError, match="not made with the kit"):
        deployed.server("accept", str(tmp_path / "claim.json"))
    nodes = {node.name: node.node_id for node in flower.list_nodes(config)}
    assert nodes["good"] == site.node
    assert not {"victim", "nobody", "invited"} & set(nodes)


def test_a_site_cannot_take_anothers_key(
    invited: Site,
    site: Site,
    accept: Callable[[Request], enrolment.SiteEntry],
    config: ServerConfig,
) -> None:
    """A public key that is another site's is refused, though kit and proof are good."""
    stolen = Request.load(site.request).public_key
    kit = Kit.load(config.kit_file("invited"))
    claim = Request.load(invited.request).model_copy(update={"public_key": stolen})
    with pytest.raises(KitError, match="that of good"):
        accept(_proved(claim, kit))


def test_a_request_to_another_federation_is_refused(
    stranger: Site, accept: Callable[[Request], enrolment.SiteEntry], config: ServerConfig
) -> None:
    """It is unknown here, and a name that was invited here as well does not help it."""
    request = Request.load(stranger.request)
    with pytest.raises(UnknownSiteError):
        accept(request)
    enrolment.invite(config, "stranger")
    with pytest.raises(KitError, match="not made with the kit"):
        accept(request)


def _proved(request: Request, kit: Kit) -> Request:
    """Return the request with the proof that whoever holds the kit can make."""
    proof = proof_of(kit.code, request.site, request.public_key)
    return request.model_copy(update={"proof": proof})


# What is open to the outside


@pytest.fixture(scope="module")
def closed(config: ServerConfig) -> list[str]:
    """Every path that the running SuperLink has, as it says itself, but the couriers' calls."""
    trust = ssl.create_default_context(cafile=str(config.loopback_authority))
    url = f"https://127.0.0.1:{config.superlink_port}/openapi.json"
    paths = set(httpx.get(url, verify=trust, trust_env=False).json()["paths"])
    paths |= {path for _, path in PROTOBUF_REQUEST_TYPES}
    paths |= {"/", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/metrics"}
    for kind, least in {"control": 41, "runtime": 22}.items():
        assert sum(path.startswith(f"/v1/{kind}/") for path in paths) >= least
    return sorted(paths - {f"/v1/fleet/{call}" for call in front.FLEET_CALLS})


def tricks(path: str, config: ServerConfig) -> list[str]:
    """Return other spellings of a path."""
    head, _, tail = path.lstrip("/").partition("/")
    return [
        *("/" + path, f"/{head}//{tail}", f"/.{path}", f"/{head}/./{tail}", f"/x/..{path}"),
        *(f"/v1/fleet{path}", f"/v1/fleet/..{path}", f"/v1/fleet/../..{path}"),
        *(f"/v1/fleet/%2e%2e/%2e%2e{path}", f"/v1/fleet/..%2f..{path}", f"/v1/fleet/..;{path}"),
        *(f"{PULL}/../../..{path}", f"{PULL}%2f..%2f..%2f..{path}", f"/v1/fleet/%252e%252e{path}"),
        *(path.upper(), path.title(), f"{path}.", f"{path}/", f"{path}/.", f"{path}%20"),
        *(f"{path}%00", f"{path}?x=1", f"{path}#{PULL}", f"{path};x", f"{path}%0a"),
        *(f"/%{ord(head[:1] or 'x'):02x}{head[1:]}/{tail}", path.replace("/", "\\")),
        *(f"https://localhost{path}", f"http://127.0.0.1:{config.superlink_port}{path}"),
        *(f"https://localhost{PULL}/../../..{path}", f"{PULL}?{path}", f"{PULL}#{path}"),
    ]


def test_no_control_or_runtime_call_is_open(
    config: ServerConfig, trust: ssl.SSLContext, closed: list[str]
) -> None:
    """Every path but a courier's is refused, however it is spelled, and never reaches SuperLink."""
    log = config.logs / "superlink.log"
    before = log.stat().st_size
    for path in closed:
        with _connection(config, trust) as connection:
            for method in ("POST", "GET", "PUT", "OPTIONS"):
                assert _status(connection, method, path) == 403, (method, path)
            for spelling in tricks(path, config):
                assert _status(connection, "POST", spelling) in (400, 403), spelling
    reached = log.read_text()[before:]
    lines = [line for line in reached.splitlines() if "uvicorn.access" in line]
    # SuperLink's own SuperExec asks for tasks all the time, on loopback.
    assert not [line for line in lines if "/v1/runtime/acquire-task" not in line]


@pytest.mark.parametrize(
    "extra",
    [
        {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"},
        {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABk"},
        {"X-Original-URL": PULL, "X-Rewrite-URL": PULL, "X-HTTP-Method-Override": "POST"},
        {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1;host=localhost"},
        {"Host": f"localhost{PULL}"},
    ],
)
def test_no_header_opens_them(
    config: ServerConfig, trust: ssl.SSLContext, extra: dict[str, str]
) -> None:
    """An upgrade, or a header that some servers believe more than the path, changes nothing."""
    with _connection(config, trust) as connection:
        for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task"):
            assert _status(connection, "POST", path, extra) in (400, 403)
            named = {name: value.replace(PULL, path) for name, value in extra.items()}
            assert _status(connection, "POST", PULL, named) in (400, 401, 415)


def test_old_and_other_http_opens_nothing(config: ServerConfig, trust: ssl.SSLContext) -> None:
    """HTTP/1.0 without a host, HTTP/0.9, HTTP/2, and two requests in one are no way in."""
    path = "/v1/control/list-runs"
    assert b" 403 " in _raw(config, trust, f"POST {path} HTTP/1.0\r\n\r\n")
    assert b"HTTP/1.1 200" not in _raw(config, trust, f"GET {path}\r\n")
    assert b" 400 " in _raw(config, trust, f"POST {path} HTTP/1.1\r\n\r\n")
    assert b" 200 " not in _raw(config, trust, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    inner = f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n"
    for length in ("Transfer-Encoding: chunked", "Content-Length: 0\r\nContent-Length: 9"):
        outer = f"POST {PULL} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n0\r\n\r\n{inner}"
        assert _raw(config, trust, outer).split(b" ", 2)[1] in (b"400", b"411")
    context = ssl.create_default_context(cafile=str(config.authorities))
    context.set_alpn_protocols(["h2"])
    with pytest.raises(ssl.SSLError, match="no application protocol"):
        _raw(config, context, "")


def test_flowers_own_clients_are_refused(
    config: ServerConfig, trust: ssl.SSLContext, invited: Site
) -> None:
    """Nobody starts a run, lists runs, registers a key or takes a task through the front."""
    url = f"https://{config.address}"
    key = public_key_to_bytes(invited.key.public_key())
    with ControlHttpClient(url, verify=trust, timeout=10) as control:
        for ask in (
            lambda: control.ListRuns(ListRunsRequest()),
            lambda: control.StartRun(StartRunRequest()),
            lambda: control.RegisterNode(RegisterNodeRequest(public_key=key, name="evil")),
        ):
            with pytest.raises(httpx.HTTPStatusError, match="403"):
                ask()
    # Not even whoever has the secret that SuperLink and SuperExec share.
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        _acquire(url, trust, config.superexec_secret.read_bytes())
    assert "evil" not in {node.name for node in flower.list_nodes(config)}


def test_the_runtime_calls_need_the_secret(config: ServerConfig) -> None:
    """On the loopback too, no Runtime call is answered without SuperExec's secret or a token."""
    trust = ssl.create_default_context(cafile=str(config.loopback_authority))
    url = f"https://127.0.0.1:{config.superlink_port}"
    headers = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
    calls = [path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/runtime/")]
    assert len(calls) >= 21
    with httpx.Client(verify=trust, base_url=url, trust_env=False, headers=headers) as client:
        for path in [*calls, "/v1/runtime/responses"]:
            assert client.post(path).status_code == 401, path
            wrong = {"authorization": "Bearer x", "flwr-app-token": "x"}
            assert client.post(path, headers=wrong).status_code == 401, path
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        _acquire(url, trust, b"x" * 32)
    _acquire(url, trust, config.superexec_secret.read_bytes())


def _acquire(url: str, trust: ssl.SSLContext, secret: bytes) -> None:
    """Ask for a task of a kind that there is none of, as a SuperExec."""
    signer = SuperExecAuthHttpInterceptor(
        master_secret=secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
    )
    with RuntimeHttpClient(url, interceptors=[signer], verify=trust, timeout=10) as client:
        client.AcquireTask(AcquireTaskRequest())


def test_an_oversized_body_is_refused(
    config: ServerConfig, trust: ssl.SSLContext, site: Site
) -> None:
    """A body above the limit is refused by its announced length, before any of it has come."""
    size = config.max_body_mb * 2**20 + 1
    head = f"POST {PULL} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    assert b" 413 " in _raw(config, trust, head)
    assert b" 413 " in _raw(config, trust, head.replace(str(size), str(2**62)))
    assert b" 400 " in _raw(config, trust, head.replace(str(size), str(2**80)))
    assert site.call("pull-messages").status_code == 200


@contextmanager
def _connection(
    config: ServerConfig, trust: ssl.SSLContext
) -> Iterator[http.client.HTTPSConnection]:
    host, _, port = config.address.rpartition(":")
    connection = http.client.HTTPSConnection(host, int(port), timeout=10, context=trust)
    try:
        yield connection
    finally:
        connection.close()


def _status(
    connection: http.client.HTTPSConnection,
    method: str,
    path: str,
    extra: dict[str, str] | None = None,
) -> int:
    headers = {"Host": "localhost", "Content-Length": "0", **(extra or {})}
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    with connection.getresponse() as answer:
        answer.read()
        return answer.status


def _raw(config: ServerConfig, trust: ssl.SSLContext, text: str) -> bytes:
    """Send exactly this text over TLS, and return the beginning of the answer."""
    host, _, port = config.listen.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(text.encode())
        with suppress(ConnectionError):
            return secure.recv(65536)
    return b""


# What is left of it


def test_secrets_stay_where_they_are(
    deployed: Deployment,
    config: ServerConfig,
    site: Site,
    other: Site,
    invited: Site,
    secrets_of: SecretsOf,
    exposed: Exposed,
) -> None:
    """After all this no secret is in a log, an argument or an environment, nor open to others."""
    secrets = {**secrets_of(config.folder), **secrets_of(site.folder), **secrets_of(other.folder)}
    assert {file.name for file in secrets} == {"superexec.secret", "order.key", "node.key"}
    kit = config.kit_file("invited")
    code = Kit.load(kit).code
    secrets[kit] = [code.encode(), bytes.fromhex(code)]
    folders = [config.folder, site.folder, other.folder, invited.folder]
    assert exposed(secrets, folders, deployed.pid("coordinator", "daemon")) == []
    own_log = (deployed.coordinator.parent / "coordinator.log").read_bytes()
    assert not any(form in own_log for forms in secrets.values() for form in forms)


def test_a_secret_that_lies_about_is_found(
    secrets_of: SecretsOf, exposed: Exposed, config: ServerConfig, tmp_path: Path
) -> None:
    """The search above finds what it looks for: in a file, in an argument, and open to others."""
    secrets = secrets_of(config.folder)
    order_key = secrets[config.order_key][1]
    (tmp_path / "some.log").write_bytes(b"a line with " + order_key + b" in it")
    open_file = tmp_path / "superexec.secret"
    open_file.write_bytes(b"y" * 32)
    open_file.chmod(0o640)
    secrets[open_file] = [b"y" * 32]
    with subprocess.Popen(["sleep", "60", "--", "0"], env={"KEY": order_key.decode()}) as process:
        while not Path(f"/proc/{process.pid}/environ").read_bytes():
            time.sleep(0.01)  # the kernel closes the pipe that Popen waits for a little earlier
        found = exposed(secrets, [tmp_path], process.pid)
        process.kill()
    assert found == [
        f"order.key in {tmp_path}/some.log",
        f"{open_file} is open to others",
        f"order.key in environ of {process.pid}",
    ]


def test_the_coordinators_folder_is_its_owners(config: ServerConfig) -> None:
    """Nothing in it is open to anybody else, whatever was written since it was made."""
    for path in [config.folder, *config.folder.rglob("*")]:
        assert path.lstat().st_mode & 0o077 == 0, path
