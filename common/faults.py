"""What is said of one fault of a file, and how raw tables are looked into."""

from typing import Any, NamedTuple


class Fault(NamedTuple):
    """One thing that is wrong: at which key, what, and what to do about it."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        stop = "" if self.remedy.endswith("?") else "."
        return f"{self.where}: {self.what}; {self.remedy}{stop}"


def table(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a table of raw values; an empty one where there is none."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}
