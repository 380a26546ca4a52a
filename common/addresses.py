"""Addresses of machines, as a person writes them: ``host:port``."""

import re
from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator

MAX_PORT = 65535
MAX_HOST = 253
"""Longest name of a host (RFC 1035, 2.3.4, without the root's dot)."""

# The last label of a name is no number: such a text is a mistyped IP address (RFC 1123, 2.1).
_HOST_NAME = re.compile(
    r"(?!.*\.\d+$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``; an IPv6 host stands in brackets.

    Raises:
        ValueError: It is no such address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > MAX_PORT:
        raise ValueError("give host and port, as fl.example.org:8443")
    if host.startswith("[") and host.endswith("]"):
        return str(ip_address(host[1:-1])), int(port)
    if ":" in host:
        raise ValueError("put an IPv6 address in brackets, as [2001:db8::1]:8443")
    return _host(host), int(port)


def _host(value: str) -> str:
    try:
        ip_address(value)
    except ValueError:
        if len(value) > MAX_HOST or not _HOST_NAME.fullmatch(value):
            raise ValueError("give a host name in small letters, or an IP address") from None
    return value


def _address(value: str) -> str:
    split_address(value)
    return value


Address = Annotated[str, AfterValidator(_address)]
"""``host:port``."""
Host = Annotated[str, AfterValidator(_host)]
"""A host's name, or an IP address."""
