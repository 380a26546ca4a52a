"""What the doctor asks of the network: proxy, name, connection, TLS, clock, the site's key.

Every probe ends within seconds. Nothing is sent but what a SuperNode sends when it starts, and
nothing that could disturb one that is running.
"""

import base64
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import httpx
from cryptography import x509

from client.courier import PROXY_VARIABLES, Connection
from common.enrolment import split_address

TIMEOUT = 5.0
"""Seconds that one probe may take."""
WARN_DAYS = 30
"""A certificate that ends in fewer days is told of."""
MAX_AHEAD, MAX_BEHIND = 5.0, 305.0
"""Flower refuses what a site signs with a clock further ahead or behind than this, in seconds
(flwr 1.41, ``SYSTEM_TIME_TOLERANCE`` and ``TIMESTAMP_TOLERANCE``)."""

_VERIFY_REMEDY = {
    9: "Set this machine's clock, or ask the coordinator since when its certificate is valid.",
    10: "Ask the coordinator to run 'rarefed-server rotate', if this machine's clock is right.",
    62: "Ask the coordinator for a certificate in the name that sites call.",
    64: "Ask the coordinator for a certificate with the address that sites call.",
}
"""By OpenSSL's X509_V_ERR numbers: not yet valid, expired, other host name, other address."""
_UNTRUSTED = (
    "If a firewall opens TLS on its way, have this address exempted. Otherwise ask the "
    "coordinator whether its authority has changed."
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: green, or red with the remedy; a green one may carry advice."""

    name: str
    ok: bool
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Greeting:
    """What a coordinator answered to a first request."""

    expires: datetime
    """When its certificate ends."""
    ahead: float | None
    """Seconds by which this machine's clock is ahead of the coordinator's; within half a second."""


def network_findings(connection: Connection, folder: Path) -> list[Finding]:
    """Look at the way to the coordinator, and stop where it ends.

    Args:
        connection: Whom the courier calls.
        folder: The courier's folder, with ``authority.pem`` and ``node.key``.
    """
    host, port = split_address(connection.address)
    proxy = proxy_for(host)
    findings = [probe_proxy(proxy)]
    if findings[-1].ok:
        findings.append(probe_name(host, proxy))
    if findings[-1].ok:
        findings.append(probe_connection(host, port, proxy))
    if not findings[-1].ok:
        return findings
    tls, greeting = probe_tls(connection.address, folder / "authority.pem")
    findings.append(tls)
    if greeting is not None:
        findings.append(judge_clock(greeting.ahead))
        from client.key_probe import probe_key  # noqa: PLC0415 - Flower takes a second to load

        findings.append(probe_key(connection.address, folder))
    return findings


def proxy_for(host: str) -> SplitResult | None:
    """Return the proxy for https that the environment names for ``host``, as httpx reads it."""
    if urllib.request.proxy_bypass(host):
        return None
    named = urllib.request.getproxies_environment()
    url = named.get("https") or named.get("all") or ""
    if not url:
        return None
    return urlsplit(url if "://" in url else f"http://{url}")


def probe_proxy(proxy: SplitResult | None) -> Finding:
    """Say which proxy variables are set, and whether the proxy answers; never its password."""
    spelt = {name for name in PROXY_VARIABLES if name in os.environ or name.lower() in os.environ}
    if proxy is None:
        set_ = f"{', '.join(sorted(spelt))} set, but not for this address" if spelt else "none set"
        return Finding("proxy", ok=True, message=set_)
    remedy = "Correct HTTPS_PROXY, or name the coordinator in NO_PROXY."
    if proxy.scheme not in ("http", "https") or not proxy.hostname:
        return Finding(
            "proxy",
            ok=False,
            message=f"a proxy of kind {proxy.scheme} cannot be used",
            remedy=remedy,
        )
    try:
        with socket.create_connection(_end_of(proxy), timeout=TIMEOUT):
            pass
    except OSError as error:
        message = f"{_shown(proxy)} does not answer: {error}"
        return Finding("proxy", ok=False, message=message, remedy=remedy)
    return Finding(
        "proxy", ok=True, message=f"{_shown(proxy)} answers ({', '.join(sorted(spelt))})"
    )


def probe_name(host: str, proxy: SplitResult | None) -> Finding:
    """Find the coordinator's address by its name; behind a proxy that is the proxy's work."""
    if proxy is not None:
        return Finding("name", ok=True, message=f"{host} is looked up by the proxy")
    found: list[str] = []

    def look_up() -> None:
        with suppress(OSError, UnicodeError):
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found.extend(sorted({str(entry[4][0]) for entry in entries}))

    # The system's resolver knows no time limit.
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not found:
        return Finding(
            "name",
            ok=False,
            message=f"{host} cannot be found",
            remedy="Ask the network's people to resolve the name, or to name the proxy to use.",
        )
    return Finding("name", ok=True, message=f"{host} is {', '.join(found)}")


def probe_connection(host: str, port: int, proxy: SplitResult | None) -> Finding:
    """Open a connection to the coordinator's port, through the proxy if there is one."""
    try:
        if proxy is None:
            socket.create_connection((host, port), timeout=TIMEOUT).close()
        elif proxy.scheme == "http":
            _open_tunnel(host, port, proxy)
    except OSError as error:
        way = f"through {_shown(proxy)}" if proxy else "directly"
        return Finding(
            "connection",
            ok=False,
            message=f"{host} port {port} does not answer {way}: {error}",
            remedy=f"Ask the network's people to allow outbound TCP to {host} port {port}; "
            "if they do, ask the coordinator whether it is running.",
        )
    return Finding("connection", ok=True, message=f"{host} port {port} is open")


def probe_tls(address: str, authority: Path) -> tuple[Finding, Greeting | None]:
    """Open TLS as the SuperNode does, trusting the coordinator's authority alone."""
    name = "tls"
    try:
        pem = authority.read_text("ascii")
        greeting = greet(address, pem)
    except OSError as error:
        message = f"cannot read {authority}: {error.strerror}"
        remedy = "Run the doctor as root or as the courier's user."
        return Finding(name, ok=False, message=message, remedy=remedy), None
    except ValueError:
        message, remedy = f"{authority} holds no certificate", "Join again with a new kit."
        return Finding(name, ok=False, message=message, remedy=remedy), None
    except httpx.HTTPError as error:
        return _tls_fault(error), None
    ends = {"the coordinator's certificate": greeting.expires}
    last = max(item.not_valid_after_utc for item in x509.load_pem_x509_certificates(pem.encode()))
    ends["the authority that this site trusts"] = last
    what, end = min(ends.items(), key=lambda entry: entry[1])
    days = (end - datetime.now(UTC)).days
    message = f"the chain is trusted; {what} ends first, in {days} days"
    advice = "Ask the coordinator to run 'rarefed-server rotate'." if days < WARN_DAYS else ""
    return Finding(name, ok=True, message=message, remedy=advice), greeting


def greet(address: str, authority_pem: str) -> Greeting:
    """Ask the coordinator's front for a page that it refuses, and note what comes with that.

    Raises:
        httpx.HTTPError: No connection, or none that is trusted.
        ValueError: The authority is no PEM certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority_pem)
    with httpx.Client(verify=context, timeout=TIMEOUT) as client:
        # The first request opens the connection; the second one times the clock.
        with client.stream("GET", f"https://{address}/") as response:
            peer = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
            response.read()
        sent = time.time()
        answer = client.get(f"https://{address}/")
        received = time.time()
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(peer["notAfter"]), UTC)
    date = answer.headers.get("date")
    if date is None:
        return Greeting(expires, None)
    # A date has no fractions (RFC 9110, section 5.6.7): half a second is its mean error.
    server = parsedate_to_datetime(date).timestamp() + 0.5
    return Greeting(expires, (sent + received) / 2 - server)


def judge_clock(ahead: float | None) -> Finding:
    """Compare this machine's clock with the coordinator's.

    Args:
        ahead: Seconds by which this machine is ahead; None when the coordinator told no time.
    """
    remedy = "Let this machine keep its time by NTP: timedatectl set-ntp true"
    if ahead is None:
        return Finding("clock", ok=True, message="the coordinator told no time to compare with")
    word = "ahead of" if ahead > 0 else "behind"
    message = f"{abs(ahead):.0f} s {word} the coordinator's"
    if not -MAX_BEHIND < ahead < MAX_AHEAD:
        message += f"; allowed are {MAX_AHEAD:.0f} s ahead and {MAX_BEHIND:.0f} s behind"
        return Finding("clock", ok=False, message=message, remedy=remedy)
    if abs(ahead) > MAX_AHEAD / 2:
        return Finding("clock", ok=True, message=message, remedy=remedy)
    return Finding("clock", ok=True, message="agrees with the coordinator's within 2 s")


def _tls_fault(error: httpx.HTTPError) -> Finding:
    """Say what went wrong on the way to a trusted connection."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        message = f"the coordinator's certificate is refused: {cause.verify_message}"
        remedy = _VERIFY_REMEDY.get(cause.verify_code, _UNTRUSTED)
    else:
        message = f"no TLS connection: {cause or error or type(error).__name__}"
        remedy = "Ask the coordinator whether its front is running, and on this very port."
    return Finding("tls", ok=False, message=message, remedy=remedy)


def _open_tunnel(host: str, port: int, proxy: SplitResult) -> None:
    """Let the proxy connect to the coordinator (RFC 9110, section 9.3.6), and hang up."""
    headers = {}
    if proxy.username is not None:
        login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    tunnel = http.client.HTTPConnection(*_end_of(proxy), timeout=TIMEOUT)
    try:
        tunnel.set_tunnel(host, port, headers)
        tunnel.connect()
    except http.client.HTTPException as error:
        raise OSError(f"the proxy answers no HTTP ({error})") from error
    finally:
        tunnel.close()


def _end_of(proxy: SplitResult) -> tuple[str, int]:
    return proxy.hostname or "", proxy.port or (443 if proxy.scheme == "https" else 80)


def _shown(proxy: SplitResult) -> str:
    host, port = _end_of(proxy)
    return f"the proxy {host}:{port}"
