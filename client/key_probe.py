"""Whether the coordinator knows the site's key, asked without disturbing a running SuperNode."""

import ssl
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.probes import TIMEOUT, Finding

_KNOWN = ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL
_UNKNOWN = ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED


def probe_key(address: str, folder: Path) -> Finding:
    """Find out whether the coordinator knows this site's key.

    Flower has no request for that. So this asks to be activated with a heartbeat of 0 s, which
    is refused either way and changes nothing; but an unknown key is refused for being unknown
    (flwr 1.41, ``fleet_handlers.activate_node``).

    Args:
        address: The coordinator's, ``host:port``.
        folder: The courier's folder, with ``authority.pem`` and ``node.key``.
    """
    try:
        key, pem = _read(folder)
        status, code = _ask(address, key, pem)
    except OSError as error:
        message = f"cannot read {error.filename}: {error.strerror}"
        return _red(message, "Run the doctor as root or as the courier's user.")
    except ValueError as error:
        return _red(f"node.key cannot be used: {error}", "Join again with a new kit.")
    except httpx.HTTPError as error:
        return _red(f"the coordinator did not answer: {error}", "Try again in a minute.")
    return _judge(status, code)


def _read(folder: Path) -> tuple[EllipticCurvePrivateKey, str]:
    key = load_ssh_private_key((folder / "node.key").read_bytes(), None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError("it is a key of another kind")  # noqa: TRY004 - of a file, not an argument
    return key, (folder / "authority.pem").read_text("ascii")


def _judge(status: int, code: int | None) -> Finding:
    if code == _KNOWN:
        return Finding("key", ok=True, message="the coordinator knows this site's key")
    if code == _UNKNOWN:
        return _red(
            "the coordinator does not know this site's key, or has revoked it",
            "Send the coordinator the request that 'join' wrote; it runs 'rarefed-server accept'.",
        )
    if status == httpx.codes.UNAUTHORIZED:
        return _red(
            "the coordinator refuses this site's signature",
            "Look at the clock above; if it is right, join again with a new kit.",
        )
    return _red(
        f"the coordinator's Flower does not answer (HTTP {status})",
        "Ask the coordinator whether all its processes are running: rarefed-server status",
    )


def _ask(address: str, key: EllipticCurvePrivateKey, pem: str) -> tuple[int, int | None]:
    """Send the request; return HTTP status and Flower's code."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem)
    public = key.public_key()
    request = ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=0.0)
    with FleetHttpClient(
        f"https://{address}",
        interceptors=[NodeAuthHttpInterceptor(key, public)],
        verify=context,
        timeout=TIMEOUT,
    ) as client:
        try:
            client.ActivateNode(request)
        except httpx.HTTPStatusError as error:
            told = FlowerError.from_json(error.response.text)
            return error.response.status_code, told.code if told else None
    # A heartbeat of 0 s was accepted: another Flower than the one that this was written for.
    return httpx.codes.OK, None


def _red(message: str, remedy: str) -> Finding:
    return Finding("key", ok=False, message=message, remedy=remedy)
