"""What the coordinator asks of Flower's SuperLink, over its Control API on loopback."""

import hashlib
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.constant import HEARTBEAT_PATIENCE, Status, SubStatus
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from common.errors import EnrolmentError, NotRunningError, ServiceError, UnknownSiteError
from server.config import ServerConfig
from server.flower_services import spare_loopback, superlink_address

ANSWER_SECONDS = 10.0
RUNS_LISTED = 1000
"""How many of the newest runs are looked through for one that is not over."""


class Node(NamedTuple):
    """A site, as Flower knows it."""

    node_id: int
    name: str
    status: str
    """``registered`` (never seen), ``online`` or ``offline``."""
    last_seen: str
    """Last sign of life, UTC in ISO form; empty when there was none."""
    public_key: bytes
    """PEM."""


class RunStatus(NamedTuple):
    """How a Flower run stands."""

    status: str
    """``pending``, ``starting``, ``running`` or ``finished``."""
    sub_status: str
    """Of a finished run: ``completed``, ``failed`` or ``stopped``."""
    details: str

    @property
    def ended(self) -> bool:
        """Say whether the run is over, one way or another."""
        return self.status == Status.FINISHED


def is_up(config: ServerConfig) -> bool:
    """Say whether SuperLink answers."""
    try:
        list_nodes(config)
    except ServiceError:
        return False
    return True


def register_node(config: ServerConfig, public_key: str, name: str) -> int:
    """Register a site's public key, so that its courier may connect.

    Args:
        config: The coordinator.
        public_key: OpenSSH text of an ECDSA key, NIST P-384.
        name: Name of the site.

    Returns:
        Flower's number of the node; that of before, when key and name are registered already.

    Raises:
        EnrolmentError: Flower refuses the key, and holds nothing of it.
        NotRunningError: SuperLink does not answer.
    """
    key = _pem_of(public_key)
    request = RegisterNodeRequest(public_key=key, name=name)
    try:
        with _control(config) as control:
            return int(control.RegisterNode(request).node_id)
    except _RefusedError as error:
        for node in list_nodes(config):
            if (node.public_key, node.name) == (key, name):
                return node.node_id
        raise EnrolmentError(
            f"Flower does not register the key of {name}: {error.message}",
            remedy="A key that was revoked, or that another site has, cannot be registered "
            "again. Let the site join anew, with a new kit.",
        ) from error


def unregister_node(config: ServerConfig, node_id: int) -> None:
    """Take a site's registration away for good; a courier that is connected is thrown out.

    Raises:
        UnknownSiteError: Flower has no such node.
        NotRunningError: SuperLink does not answer.
    """
    try:
        with _control(config) as control:
            control.UnregisterNode(UnregisterNodeRequest(node_id=node_id))
    except _RefusedError as error:
        raise UnknownSiteError(
            f"Flower has no node {node_id}: {error.message}",
            remedy="See which sites there are: rarefed-server sites",
        ) from error


def list_nodes(config: ServerConfig) -> list[Node]:
    """Return the registered sites.

    Raises:
        NotRunningError: SuperLink does not answer.
    """
    with _control(config) as control:
        found = control.ListNodes(ListNodesRequest()).nodes_info
    return [
        Node(
            info.node_id,
            info.name,
            info.status,
            _last_seen(info),
            info.public_key,
        )
        for info in found
        if info.status != NodeStatus.UNREGISTERED
    ]


def start_run(config: ServerConfig, fab: bytes, run_config: Mapping[str, str]) -> int:
    """Submit an app bundle and return the number of its run.

    Args:
        config: The coordinator.
        fab: The bundle (``server/bundle.py``).
        run_config: Values for keys of the bundle's configuration.

    Raises:
        ServiceError: SuperLink refuses the run.
        NotRunningError: SuperLink does not answer.
    """
    request = StartRunRequest(
        fab=fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {})),
        override_config=user_config_to_proto(dict(run_config)),
    )
    with _control(config) as control:
        return int(control.StartRun(request).run_id)


def run_status(config: ServerConfig, run_id: int) -> RunStatus:
    """Return how a run stands; one that SuperLink does not know has failed.

    Raises:
        NotRunningError: SuperLink does not answer.
    """
    try:
        with _control(config) as control:
            runs = control.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
    except _RefusedError as error:
        if error.number != ApiErrorCode.RUN_ID_NOT_FOUND:
            raise
        return RunStatus(Status.FINISHED, SubStatus.FAILED, "SuperLink does not know this run.")
    found = runs[run_id].status
    return RunStatus(found.status, found.sub_status, found.details)


def active_runs(config: ServerConfig, key: str) -> dict[int, str]:
    """Return the runs that are not over, each with its value of a key of the configuration.

    Raises:
        NotRunningError: SuperLink does not answer.
    """
    with _control(config) as control:
        runs = control.ListRuns(ListRunsRequest(limit=RUNS_LISTED)).run_dict
    return {
        run_id: run.override_config[key].string if key in run.override_config else ""
        for run_id, run in runs.items()
        if run.status.status != Status.FINISHED
    }


def stop_run(config: ServerConfig, run_id: int) -> None:
    """End a run; one that is over stays as it is.

    Raises:
        NotRunningError: SuperLink does not answer.
    """
    try:
        with _control(config) as control:
            control.StopRun(StopRunRequest(run_id=run_id))
    except _RefusedError as error:
        if error.number not in (ApiErrorCode.RUN_ALREADY_FINISHED, ApiErrorCode.RUN_ID_NOT_FOUND):
            raise


def run_log(config: ServerConfig, run_id: int) -> Iterator[str]:
    """Yield what a run's ServerApp has logged; ends with the run.

    Raises:
        NotRunningError: SuperLink does not answer.
    """
    with _control(config) as control:
        for part in control.StreamLogs(StreamLogsRequest(run_id=run_id)):
            yield part.log_output


class _RefusedError(ServiceError):
    """SuperLink answered with an error of this number."""

    def __init__(self, message: str, number: int, *, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.number = number


@contextmanager
def _control(config: ServerConfig) -> Iterator[ControlHttpClient]:
    """Give a client of the Control API; its errors become ours."""
    os.environ.update(spare_loopback(os.environ))  # the client takes its proxies from there
    client = ControlHttpClient(
        f"https://{superlink_address(config)}",
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        verify=_trust(config),
        timeout=ANSWER_SECONDS,
    )
    try:
        yield client
    except httpx.HTTPStatusError as error:
        raise _refusal(config, error.response) from error
    except httpx.HTTPError as error:
        raise NotRunningError(
            f"SuperLink does not answer on {superlink_address(config)}.",
            remedy=f"Start the coordinator: rarefed-server start --folder {config.folder}. "
            + _see_log(config),
        ) from error
    finally:
        client.close()


def _trust(config: ServerConfig) -> ssl.SSLContext:
    """Trust SuperLink's own certificate, and the front's, which it bears where there is none."""
    files = (config.loopback_authority, config.authorities)
    try:
        authorities = "".join(file.read_text("ascii") for file in files)
    except OSError as error:
        raise ServiceError(
            f"Cannot read {error.filename}: {error.strerror}.",
            remedy="Run the command as the user who owns the coordinator's folder.",
        ) from error
    return ssl.create_default_context(cadata=authorities)


def _refusal(config: ServerConfig, response: httpx.Response) -> _RefusedError:
    found = FlowerError.from_json(response.text)
    number, message = (found.code, found.message) if found else (0, f"HTTP {response.status_code}")
    return _RefusedError(f"SuperLink refuses: {message}", number, remedy=_see_log(config))


def _last_seen(info: NodeInfo) -> str:
    """Return the last sign of life, to a minute where the node did not take its leave."""
    if info.status != NodeStatus.ONLINE:
        return info.last_deactivated_at
    # Flower writes down until when it takes a node for online, some heartbeats ahead.
    seen = info.online_until - HEARTBEAT_PATIENCE * info.heartbeat_interval
    return datetime.fromtimestamp(seen, UTC).isoformat(timespec="seconds")


def _pem_of(public_key: str) -> bytes:
    try:
        key = load_ssh_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise EnrolmentError(
            "The site's public key is no ECDSA key in OpenSSH's form.",
            remedy="Let the site join anew, with a new kit.",
        )
    return public_key_to_bytes(key)


def _see_log(config: ServerConfig) -> str:
    return f"See {config.logs / 'superlink.log'}."
