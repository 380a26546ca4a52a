"""Flower's SuperLink, as its own program starts it, on a database that large models do not block.

SuperLink keeps each message in SQLite until it has been fetched. Where SQLite was built with
``SECURE_DELETE``, as Debian's is, a message of 550 MB that goes is first written over with zeros,
in one transaction of several seconds; and SuperLink waits 5 seconds for a lock before it fails
whatever else was asked of it. Neither can be set from outside, so each connection is told here
(https://www.sqlite.org/pragma.html#pragma_secure_delete and ``#pragma_busy_timeout``).
"""

from typing import Any

from flwr.superlink.cli import flower_superlink
from sqlalchemy import event
from sqlalchemy.pool import Pool

SETTINGS = ("secure_delete = FAST", "busy_timeout = 120000")
"""What goes is not written over where that would cost more; a lock is waited for, milliseconds."""


def set_up(connection: Any, *_: Any) -> None:
    """Set a connection of SQLite's, whenever it is taken out of its pool."""
    cursor = connection.cursor()
    for setting in SETTINGS:
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def main() -> None:
    """Run SuperLink with the arguments of the command line."""
    event.listen(Pool, "checkout", set_up)  # after Flower's own settings at "connect"
    flower_superlink()


if __name__ == "__main__":
    main()
