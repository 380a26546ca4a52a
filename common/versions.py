"""Which version of rarefed this is, and which version of the records it speaks."""

from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PROTOCOL = 1
"""Version of what travels (``common/messages.py``, ``common/enrolment.py``); two parties with
different ones do not talk."""


@cache
def software_version() -> str:
    """Return the installed version of rarefed, or ``unknown`` where it is not installed."""
    with suppress(PackageNotFoundError):
        return version("rarefed")
    return "unknown"
