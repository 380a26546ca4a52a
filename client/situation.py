"""What ``status`` shows of a hospital: processes, connection, approvals, the last exchanges.

Nothing in it tells of a patient, so that it may be shown to anybody who asks.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from client.approvals import approved, load_pin
from client.audit import AUDIT_FILE
from client.config import SiteConfig
from client.countersigned import DISPUTED
from client.courier import STATUS_FILE, Connection
from client.doctor import vault_state
from client.ledger import LEDGER_FILE
from client.service import SUPERVISOR
from common.chained_log import ChainedLog
from common.errors import RarefedError
from common.processes import read_status

PAUSED_FILE = "paused"
"""As in ``client/vault.py``, which takes seconds to import."""
EXCHANGES = ("answered", "refused", "repeated")
"""Events of the audit log that are an order with its reply."""


def situation_of(config: SiteConfig, folder: Path, *, last: int) -> dict[str, Any]:
    """Return the state of a hospital as JSON values.

    What this user may not see is named under ``unreadable`` and left out.

    Args:
        config: The hospital.
        folder: Its folder, of ``site.toml``.
        last: How many of the last exchanges to give.
    """
    unreadable: list[str] = []

    def seen(what: str, look: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return look()
        except (OSError, RarefedError) as error:
            reason = error.message if isinstance(error, RarefedError) else error.strerror
            unreadable.append(f"{what}: {reason}")
            return otherwise

    lines = seen("audit log", ChainedLog(config.state / AUDIT_FILE).entries, [])
    exchanges = _exchanges(lines)
    trainings = seen("ledger", lambda: _trainings(config), {})
    supervised = seen("processes", lambda: _processes(folder / SUPERVISOR / STATUS_FILE), {})
    flower = seen("courier", lambda: _processes(config.courier / STATUS_FILE), {})
    return {
        "site": config.name,
        "coordinator": seen("coordinator", lambda: _coordinator(config), None),
        "paused": seen("pause", lambda: _exists(config.state / PAUSED_FILE), None),
        "vault": vault_state(config),
        "processes": supervised | flower,
        "approved": [
            {
                "digest": digest,
                "name": entry.name,
                "at": f"{entry.at:%Y-%m-%dT%H:%M:%SZ}",
                "rounds": entry.study["rounds"],
                "trainings": len(trainings.get(digest, ())),
            }
            for digest, entry in seen("approvals", lambda: approved(config), {}).items()
        ],
        "last_exchange": exchanges[-1]["at"] if exchanges else None,
        "exchanges": exchanges[len(exchanges) - last :] if last < len(exchanges) else exchanges,
        "disputed": sum(line.get("event") == DISPUTED for line in lines),
        "unreadable": unreadable,
    }


def keep_owner(file: Path) -> None:
    """Give a file that root has written to whom its folder belongs to."""
    if os.geteuid() == 0:
        folder = file.parent.stat()
        os.chown(file, folder.st_uid, folder.st_gid, follow_symlinks=False)


def _coordinator(config: SiteConfig) -> dict[str, str] | None:
    if not _exists(config.state / "coordinator.json"):
        return None
    address = "an address that this user may not see"
    with suppress(RarefedError):
        address = Connection.load(config).address
    return {"name": load_pin(config).coordinator, "address": address}


def _exchanges(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("at", "event", "study", "round", "kind", "code")
    return [
        {key: entry.get(key, "") for key in keys}
        for entry in entries
        if entry.get("event") in EXCHANGES
    ]


def _trainings(config: SiteConfig) -> dict[str, set[str]]:
    """Return the orders that were trained, by the study's digest."""
    orders: dict[str, set[str]] = {}
    for entry in ChainedLog(config.state / LEDGER_FILE).entries():
        if entry.get("event") == "training":
            orders.setdefault(entry["study"], set()).add(entry["order"])
    return orders


def _processes(file: Path) -> dict[str, Any]:
    return {
        name: {key: entry.get(key) for key in ("pid", "since", "restarts", "last_exit")}
        for name, entry in read_status(file).items()
    }


def _exists(file: Path) -> bool:
    """Like ``Path.exists``, but a folder that is closed to this user is an error."""
    try:
        file.stat()
    except FileNotFoundError:
        return False
    return True
