"""The coordinator's commands about its daemon and its studies: start, run, resume, stop, status."""

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.command_line import err
from server.cli_audit import audit_faults, heads, say_faults
from server.cli_export import export
from server.cli_sites import DEFAULT_FOLDER, Folder, Json, StudyId

if TYPE_CHECKING:
    from common.study import Study
    from server.config import ServerConfig
    from server.studies import StudyFolder

NoFollow = Annotated[
    bool, typer.Option("--no-follow", help="Return at once; the study runs in the daemon.")
]
STOP_SECONDS = 60.0

out_console = Console()


def register(app: typer.Typer) -> None:
    """Add the commands about the daemon and its studies to the coordinator's command line."""
    program = "Example: rarefed-server"
    app.command(epilog=f"{program} start --folder /var/lib/rarefed/coordinator")(start)
    app.command(epilog=f"{program} run study.toml")(run)
    app.command(epilog=f"{program} resume retina-1a2b3c4d")(resume)
    app.command(epilog=f"{program} stop retina-1a2b3c4d")(stop)
    app.command(epilog=f"{program} status --json")(status)
    app.command(epilog=f"{program} heads retina-1a2b3c4d")(heads)
    app.command(epilog=f"{program} export retina-1a2b3c4d model")(export)


def start(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Run the coordinator in the foreground, until Ctrl-C or SIGTERM: for systemd, or a window.

    It keeps Flower's SuperLink and SuperExec and the front (nginx) running, and the studies.
    """
    from server import daemon

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")  # standard error
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look at SuperLink

    def say(line: str) -> None:
        typer.echo(json.dumps({"say": line}) if as_json else line)

    daemon.start(_load(folder), say=say)


def run(
    study: Annotated[Path, typer.Argument(help="The study file, for example study.toml.")],
    no_follow: NoFollow = False,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Run a study and follow its rounds; Ctrl-C stops following, not the study.

    The same study again goes on from where it stands. Exit code 0: it has finished.
    """
    from common.study import Study
    from server import daemon_lock
    from server.studies import create

    config, agreed = _load(folder), Study.load(study)
    _check_weights(agreed)
    daemon_lock.require(config)
    found = create(config, agreed, prepare=lambda path: _begin(path, agreed))
    found.want("run")
    _follow(config, found, no_follow=no_follow, as_json=as_json)


def resume(
    study: StudyId,
    no_follow: NoFollow = False,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Let a paused, stopped or failed study go on from its last round, and follow it."""
    from common.study import Study
    from server import daemon_lock
    from server.studies import StudyFolder

    config = _load(folder)
    found = StudyFolder.find(config, study)
    daemon_lock.require(config)
    _begin(found.path, Study.load(found.study_file))
    found.want("run")
    _follow(config, found, no_follow=no_follow, as_json=as_json)


def stop(study: StudyId, folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Stop a study; what it has reached is kept, and resume goes on from there.

    A training that has begun at a site runs to its end there; its result is not used.
    """
    from server import daemon_lock
    from server.studies import ENDED, StudyFolder

    config = _load(folder)
    found = StudyFolder.find(config, study)
    found.want("stop")
    until = time.monotonic() + STOP_SECONDS
    while (
        found.progress().state not in ENDED
        and daemon_lock.is_held(config)
        and time.monotonic() < until
    ):
        time.sleep(0.2)
    progress = found.progress()
    if as_json:
        typer.echo(json.dumps({"study": found.study_id, **asdict(progress)}))
    elif progress.state in ENDED:
        _say(f"{found.study_id}: {progress.state} after round {progress.round}.")
    else:
        _say(f"{found.study_id} will be stopped as soon as the coordinator runs.")


def status(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Show how the coordinator stands: its processes, the sites that are there, its studies."""
    from common.processes import read_status
    from server import daemon_lock
    from server.studies import StudyFolder, study_ids

    config = _load(folder)
    running = daemon_lock.is_held(config)
    studies = {study_id: StudyFolder(config, study_id) for study_id in study_ids(config)}
    found = {
        "running": running,
        "address": config.address,
        "processes": {
            name: {key: entry[key] for key in ("pid", "since", "restarts", "last_exit")}
            for name, entry in read_status(config.processes_file).items()
        },
        "sites": _sites(config),
        "studies": {
            study_id: {
                **asdict(study.progress()),
                "wanted": study.control().wanted,
                "audit_faults": audit_faults(study),
                "test_aurocs": _last_aurocs(study),
            }
            for study_id, study in studies.items()
        },
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    _print_status(found)


def _load(folder: Path) -> "ServerConfig":
    from server.config import ServerConfig

    return ServerConfig.load(folder)


def _check_weights(study: "Study") -> None:
    """Refuse a missing file before torch is loaded and before there is a folder."""
    from common.errors import WeightsError

    for member in study.members:
        file = member.backbone.weights_file
        if file is not None and not file.is_file():
            raise WeightsError(
                f"There is no weights file {file}.",
                remedy="Correct the weights in the study file; a relative path counts from it.",
            )
    study.check_weights_file()


def _begin(folder: Path, study: "Study") -> None:
    """Build the study's network here, unless that has been done: what is wrong shows at once."""
    from server.checkpoint import has_begun

    if has_begun(folder):
        return
    with err.status("building the network"):
        from server.begin import begin  # torch: several seconds

        begin(study, folder)


def _follow(
    config: "ServerConfig", found: "StudyFolder", *, no_follow: bool, as_json: bool
) -> None:
    from server.follow import follow

    if not no_follow:
        err.print(f"{found.study_id}: following; Ctrl-C does not stop it.", highlight=False)
        try:
            follow(config, found, err)
        except KeyboardInterrupt:
            err.print(f"{found.study_id} runs on; rarefed-server status shows it.", highlight=False)
            raise
    progress = found.progress()
    if as_json:
        typer.echo(json.dumps({"study": found.study_id, **asdict(progress)}))
    else:
        _say(f"{found.study_id}: {progress.state}, round {progress.round} of {progress.rounds}.")
        if progress.why:
            _say(progress.why)


def _sites(config: "ServerConfig") -> dict[str, list[str]] | None:
    """Return who is enrolled and who of them is there; None while nobody can say."""
    from common.errors import NotRunningError
    from server import flower

    try:
        nodes = flower.list_nodes(config)
    except NotRunningError:
        return None
    online = sorted(node.name for node in nodes if node.status == "online")
    return {"enrolled": sorted(node.name for node in nodes), "online": online}


def _last_aurocs(study: "StudyFolder") -> dict[str, dict[str, Any]]:
    """Return what was measured last; nothing where the history is damaged, as is told elsewhere."""
    from common.errors import OutputError
    from server.history import last_aurocs, load

    try:
        return last_aurocs(load(study.path))
    except OutputError:
        return {}


def _print_status(found: dict[str, Any]) -> None:
    _say("The coordinator is running." if found["running"] else "The coordinator is not running.")
    processes = Table("process", "pid", "since (UTC)", "restarts", "last exit")
    for name, entry in found["processes"].items():
        cells = (entry["pid"], entry["since"], entry["restarts"], entry["last_exit"])
        processes.add_row(name, *("-" if cell is None else str(cell) for cell in cells))
    if found["processes"]:
        out_console.print(processes)
    if found["sites"] is not None:
        sites = found["sites"]
        there = f": {', '.join(sites['online'])}" if sites["online"] else ""
        _say(f"{len(sites['online'])} of {len(sites['enrolled'])} enrolled sites are there{there}.")
    studies = Table("study", "state", "round", "sites", "why")
    for study_id, study in found["studies"].items():
        rounds = f"{study['round']} of {study['rounds']}"
        studies.add_row(study_id, study["state"], rounds, ", ".join(study["sites"]), study["why"])
    if found["studies"]:
        out_console.print(studies)
    _print_aurocs(found["studies"])
    for study_id, study in found["studies"].items():
        say_faults(study_id, study["audit_faults"])


def _print_aurocs(studies: dict[str, Any]) -> None:
    columns = ("study", "task", "rounds trained", "test patients", "AUROC, 95 % interval")
    table = Table(*columns, "over sites", "worst at")
    for study_id, study in studies.items():
        for task, found in study["test_aurocs"].items():
            value, ends = found["auroc"], found["interval"]
            text = "-" if value is None else f"{value:.3f}"
            text += " [{:.3f}, {:.3f}]".format(*ends) if ends else ""
            numbers = str(found["model_round"]), str(found["n_patients"])
            apart = found["spread"]
            ends = f"{apart['lowest']:.3f} to {apart['highest']:.3f}" if apart else "-"
            table.add_row(
                *(study_id, task, *numbers, text, ends), apart["worst_site"] if apart else "-"
            )
    if table.rows:
        out_console.print(table)


def _say(line: str) -> None:
    out_console.print(line, highlight=False, soft_wrap=True, markup=False)
