"""The coordinator's command about the audit logs of its sites: heads."""

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from server.cli_sites import DEFAULT_FOLDER, Folder, Json, StudyId

if TYPE_CHECKING:
    from server.studies import StudyFolder

out_console = Console()


def heads(study: StudyId, folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Print where each site's audit log stood when it last answered in a study.

    With the hash a hospital can check its log: rarefed-client audit verify SITE --head HASH.
    """
    from server.config import ServerConfig
    from server.studies import StudyFolder

    found = StudyFolder.find(ServerConfig.load(folder), study)
    logs = _audit_logs(found)
    if as_json:
        typer.echo(json.dumps({"study": found.study_id, **logs}))
        return
    for site, head in logs["audit_heads"].items():
        _say(f"{site}: {head['head']} {head['entries']} (round {head['round']})")
    say_faults(found.study_id, logs["audit_faults"])


def audit_faults(study: "StudyFolder") -> list[dict[str, Any]] | None:
    """Return the faults; None where the history is damaged, which must not hide the rest."""
    from common.errors import OutputError

    try:
        faults: list[dict[str, Any]] = _audit_logs(study)["audit_faults"]
    except OutputError:
        return None
    return faults


def say_faults(study_id: str, faults: list[dict[str, Any]] | None) -> None:
    """Print the faults of a study, a line each.

    Args:
        study_id: The study's id.
        faults: As ``audit_faults`` gives them.
    """
    if faults is None:
        _say(f"{study_id}: its history cannot be read; rarefed-server heads tells why.")
    for fault in faults or ():
        _say(f"{study_id}, round {fault['round']}: {fault['site']}: {fault['why']}.")


def _audit_logs(study: "StudyFolder") -> dict[str, Any]:
    """Return the last head of each site's audit log, and which did not follow from the others."""
    from server.history import load

    records = load(study.path)
    last = {s: {**h, "round": r.round} for r in records for s, h in r.audit_heads.items()}
    faults = [
        {"round": record.round, "site": site, "why": why}
        for record in records
        for site, why in sorted(record.audit_faults.items())
    ]
    return {"audit_heads": dict(sorted(last.items())), "audit_faults": faults}


def _say(line: str) -> None:
    out_console.print(line, highlight=False, soft_wrap=True, markup=False)
