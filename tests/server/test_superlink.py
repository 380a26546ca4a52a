"""Laws of SuperLink's database: what a large message costs there, and for how long it blocks."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from sqlalchemy import event
from sqlalchemy.pool import Pool

from server.superlink import set_up


@pytest.fixture(name="ours")
def _ours() -> Iterator[None]:
    event.listen(Pool, "checkout", set_up)
    yield
    event.remove(Pool, "checkout", set_up)


def settings(store: SqlObjectStore) -> tuple[int, int]:
    """Return what a connection of Flower's store says of secure_delete and busy_timeout."""
    return tuple(
        store.query(f"PRAGMA {name}")[0][column]
        for name, column in (("secure_delete", "secure_delete"), ("busy_timeout", "timeout"))
    )  # type: ignore[return-value]


def opened(folder: Path) -> SqlObjectStore:
    store = SqlObjectStore(str(folder / "state.db"))
    store.initialize()
    return store


@pytest.mark.usefixtures("ours")
def test_flowers_own_settings_do_not_win(tmp_path: Path) -> None:
    """Flower sets 5 s when it connects; each connection that it then uses has ours."""
    assert settings(opened(tmp_path)) == (2, 120_000)  # 2 is FAST


def test_without_us_a_lock_is_waited_for_five_seconds(tmp_path: Path) -> None:
    """What the module is there for is still so in this Flower."""
    assert settings(opened(tmp_path))[1] == 5000


def test_what_goes_is_not_written_over(tmp_path: Path) -> None:
    """To delete a large row writes far less than the row, whatever SQLite was built with."""
    connection = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    set_up(connection)
    connection.execute("CREATE TABLE t (content BLOB)")
    connection.execute("INSERT INTO t VALUES (?)", (bytes(20_000_000),))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("DELETE FROM t")
    assert (tmp_path / "a.db-wal").stat().st_size < 2_000_000
    connection.close()


def test_it_is_flowers_program() -> None:
    """It takes SuperLink's own arguments."""
    words = [sys.executable, "-P", "-m", "server.superlink", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--enable-supernode-auth" in done.stdout
