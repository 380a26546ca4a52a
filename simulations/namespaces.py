"""Hospitals in network namespaces of their own (root on Linux), one of them behind a bad line.

The coordinator stays in the machine's own namespace and is reached over a bridge; nothing leads
from there to anywhere else.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from common.errors import ServiceError

COORDINATOR = "10.77.0.1"
"""Address of the coordinator on the bridge."""
RATE = "4mbit"
LOSS = 0.01


@dataclass(frozen=True)
class Network:
    """Namespaces that are up."""

    prefix: dict[str, list[str]]
    """What stands before a command that is to run in a hospital's namespace, by hospital."""
    slow: str
    """The hospital behind the bad line; empty for none."""


def available() -> bool:
    """Tell whether this machine lets us make namespaces, and has the programs for it."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "nft"))):
        return False
    name = f"rarefed-{secrets.token_hex(3)}"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "netns", "del", name)
    except ServiceError:
        return False
    return True


@contextmanager
def network(hospitals: Sequence[str], *, slow: str = "") -> Iterator[Network]:
    """Give each hospital a namespace on one bridge; all of it is gone when the block ends.

    Args:
        hospitals: Names of the hospitals' folders.
        slow: The one whose line carries 4 Mbit/s each way and loses 1 % of all packets.

    Raises:
        ServiceError: The machine does not allow it.
    """
    mark = secrets.token_hex(2)
    bridge = f"rf{mark}"
    spaces = {name: f"rf{mark}-{number}" for number, name in enumerate(hospitals, start=2)}
    try:
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{COORDINATOR}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for number, (name, space) in enumerate(spaces.items(), start=2):
            _join(bridge, space, f"rf{mark}h{number}", number)
            if name == slow:
                _spoil(f"rf{mark}h{number}", space)
        prefix = {name: ["ip", "netns", "exec", space] for name, space in spaces.items()}
        yield Network(prefix, slow)
    finally:
        for space in spaces.values():
            with suppress(ServiceError):
                _run("ip", "netns", "del", space)
        with suppress(ServiceError):
            _run("ip", "link", "del", bridge)


def _join(bridge: str, space: str, link: str, number: int) -> None:
    """Make a namespace and tie it to the bridge by a pair of virtual cards."""
    _run("ip", "netns", "add", space)
    _run("ip", "link", "add", link, "type", "veth", "peer", "name", "up0", "netns", space)
    _run("ip", "link", "set", link, "master", bridge, "up")
    _run("ip", "-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", "up0")
    _run("ip", "-n", space, "link", "set", "up0", "up")
    _run("ip", "-n", space, "link", "set", "lo", "up")


def _spoil(link: str, space: str) -> None:
    """Slow a line down in both directions, and let it lose packets.

    Not by netem, which does both: many kernels lack it.
    """
    bucket = ["root", "tbf", "rate", RATE, "burst", "32kbit", "latency", "400ms"]
    _run("tc", "qdisc", "add", "dev", link, *bucket)
    _run("ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", "up0", *bucket)
    within = round(1 / LOSS)
    lose = f"iifname up0 numgen random mod {within} < 1 drop"
    drop_out = f"oifname up0 numgen random mod {within} < 1 drop"
    rules = (
        "add table inet bad;"
        "add chain inet bad in { type filter hook input priority 0; };"
        "add chain inet bad out { type filter hook output priority 0; };"
        f"add rule inet bad in {lose};"
        f"add rule inet bad out {drop_out}"
    )
    _run("ip", "netns", "exec", space, "nft", rules)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, check=False, text=True)  # noqa: S603 - ip, tc
    if done.returncode:
        raise ServiceError(
            f"{' '.join(words)}: {done.stderr.strip()}",
            remedy="Run as root on Linux with iproute2 and nftables, or without namespaces.",
        )
