"""The coordinator's daemon: SuperLink, SuperExec and front kept running, and the studies with them.

It stays in the foreground, as systemd and containers want it, and ends on SIGTERM or Ctrl-C.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.addresses import split_address
from common.errors import ServiceError
from common.processes import end_orphans, stop_on_signals, supervise
from server import daemon_lock, flower, front
from server.bundle import build_bundle
from server.config import ServerConfig
from server.flower_services import flower_services
from server.keeper import Keeper

log = logging.getLogger("rarefed.daemon")


def start(
    config: ServerConfig,
    *,
    say: Callable[[str], None] = print,
    bundle: Callable[[], bytes] = build_bundle,
) -> None:
    """Run the coordinator until it is told to end.

    Args:
        config: The coordinator.
        say: Takes the few lines that are for the person or journal: nothing private.
        bundle: Builds the app bundle of a run.

    Raises:
        ServiceError: The coordinator runs already, a port is taken, nginx is missing where it
            is needed, or a program cannot be started.
    """
    os.umask(0o077)
    with daemon_lock.hold(config):
        end_orphans(config.processes_file)
        front_service = front.front_service(config)
        ports = [f"127.0.0.1:{config.superlink_port}"]
        services = flower_services(config, front=front_service is not None)
        if front_service is None:
            say("No nginx: SuperLink answers the sites itself, and every user of this machine can")
            say("start runs at every site. For a trial on this machine alone.")
        else:
            services.append(front_service)
            ports.append(config.listen)
        for address in ports:
            _refuse_taken(address)
        keeping = _Keeping(config, Keeper(config, bundle), say)
        stop = stop_on_signals()
        supervise(services, status_file=config.processes_file, stop=stop, on_tick=keeping.tick)
        say("The coordinator has ended.")


@dataclass
class _Keeping:
    """What the daemon does between two looks at its processes."""

    config: ServerConfig
    keeper: Keeper
    say: Callable[[str], None]
    ready: bool = False
    next_try: float = 0.0
    certificate: int = 0

    def tick(self) -> None:
        """Say when the coordinator is ready, then look after studies and certificate."""
        if self.ready:
            self.keeper.tick()
            self._follow_certificate()
        elif time.monotonic() >= self.next_try:
            self.next_try = time.monotonic() + 0.5
            self.ready = flower.is_up(self.config)
            if self.ready:
                self._follow_certificate()
                self.say(f"Ready: sites can call {self.config.address}.")
                notify("READY=1")

    def _follow_certificate(self) -> None:
        """Let the front take over a new certificate (``rarefed-server rotate``)."""
        try:
            written = self.config.server_certificate.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if self.certificate and written != self.certificate:
            log.info("new certificate: %s", "told" if front.reload(self.config) else "no front")
        self.certificate = written


def notify(state: str) -> None:
    """Tell systemd how the service stands (sd_notify(3)); nothing happens without systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # a name in the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), address)
    except OSError as error:
        log.warning("systemd cannot be told %s: %s", state, error)


def _refuse_taken(address: str) -> None:
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"Cannot listen on {address}: {error.strerror}.",
                remedy="Stop what listens there (ss -ltnp shows it), or give another port in "
                "server.toml. Ports below 1024 need root or CAP_NET_BIND_SERVICE.",
            ) from error
