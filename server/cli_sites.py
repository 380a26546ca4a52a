"""The coordinator's commands about itself and its sites: init, invite, accept, revoke, rotate."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from server.config import ServerConfig
    from server.register import SiteEntry

DEFAULT_FOLDER = Path("coordinator")

Folder = Annotated[
    Path, typer.Option(help="The coordinator's folder, for example /var/lib/rarefed/coordinator.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Site = Annotated[str, typer.Argument(help="The site's name, for example st-mary.")]
StudyId = Annotated[
    str,
    typer.Argument(help="The study's id, or an unmistakable beginning of it: retina-1a2b3c4d."),
]

out_console = Console()


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the coordinator's command line."""
    program = "Example: rarefed-server"
    app.command(epilog=f"{program} init --address fl.example.org:8443")(init)
    app.command(epilog=f"{program} invite st-mary --days 3")(invite)
    app.command(epilog=f"{program} accept st-mary.request.json")(accept)
    app.command(epilog=f"{program} sites --json")(sites)
    app.command(epilog=f"{program} revoke st-mary")(revoke)
    app.command(epilog=f"{program} rotate --authority")(rotate)


def init(
    address: Annotated[
        str,
        typer.Option(help="Host and port that the sites call, for example fl.example.org:8443."),
    ],
    name: Annotated[
        str, typer.Option(help="Name of the federation, for example rare-retina.")
    ] = "rarefed",
    listen: Annotated[
        str | None,
        typer.Option(
            help="IP address and port that the front listens on, for example 10.0.0.5:8443. By "
            "default the port of --address, on every interface; on 127.0.0.1 only if the "
            "address is one of this machine alone."
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name or IP address of the front, for example 10.0.0.5; may be given "
            "several times."
        ),
    ] = None,
    superlink_port: Annotated[
        int | None,
        typer.Option(help="Port of SuperLink on 127.0.0.1, for example 18090; 18080 by default."),
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Make a coordinator: its folder, authority, certificates and keys.

    Whoever can read the folder is the coordinator: it is made for this user alone (0700).
    """
    from common.trust import fingerprint_of
    from server.config import init_folder

    config = init_folder(
        folder, name, address, listen=listen, also=also or (), superlink_port=superlink_port
    )
    fingerprint = fingerprint_of(
        config.authorities.read_text(encoding="ascii"), config.order_public_key()
    )
    found = {
        "name": config.name,
        "folder": str(config.folder),
        "address": config.address,
        "listen": config.listen,
        "names": config.names,
        "fingerprint": fingerprint,
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    _say(f"The coordinator {config.name} lies in {config.folder}.")
    _say(f"Sites will call {config.address}; the front listens on {config.listen}.")
    _say(f"Fingerprint: {fingerprint}")
    _say("Next: rarefed-server start, then rarefed-server invite SITE.")


def invite(
    site: Site,
    days: Annotated[float, typer.Option(help="Days that the kit serves, for example 3.")] = 7,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Make an enrolment kit for a hospital; an earlier kit of the same site serves no more.

    Send the file to the hospital, and tell it the fingerprint by another way, by telephone for
    one.
    """
    from server.enrolment import invite as make_kit

    config = _load(folder)
    kit = make_kit(config, site, days=days)
    found = {
        "site": kit.site,
        "kit": str(config.kit_file(site)),
        "expires": kit.expires.isoformat(),
        "fingerprint": kit.fingerprint,
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    _say(f"Kit of {site}: {found['kit']}")
    _say(f"Serves once, until {kit.expires:%Y-%m-%d %H:%M} UTC.")
    _say(f"Fingerprint, to be told by another way: {kit.fingerprint}")


def accept(
    request: Annotated[
        Path,
        typer.Argument(help="The request that the site made, for example st-mary.request.json."),
    ],
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Enrol the site that a request comes from; the coordinator must be running."""
    from common.enrolment import Request
    from server import flower
    from server.enrolment import accept as enrol

    config, asked = _load(folder), Request.load(request)
    flower.list_nodes(config)  # nothing is begun while nobody answers
    entry = enrol(config, asked, partial(flower.register_node, config))
    if as_json:
        typer.echo(json.dumps(_described(asked.site, entry)))
        return
    _say(f"{asked.site} is enrolled.")


def sites(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """List the sites: state, last sign of life, version.

    Without a running coordinator nothing is known of who is there.
    """
    from common.errors import NotRunningError
    from server.flower import list_nodes
    from server.register import load_sites

    config = _load(folder)
    entries = load_sites(config)
    try:
        nodes = {node.node_id: node for node in list_nodes(config)}
        running = True
    except NotRunningError:
        nodes, running = {}, False
    found = []
    for name, entry in sorted(entries.items()):
        node = nodes.get(entry.node_id) if entry.node_id is not None else None
        seen = {
            "flower": node.status if node else None,
            "last_seen": node.last_seen if node else "",
        }
        found.append(_described(name, entry) | seen)
    if as_json:
        typer.echo(json.dumps({"running": running, "sites": found}))
        return
    out_console.print(_table(config.name, found))
    if not running:
        _say("The coordinator does not run, so who is online is not known.")


def revoke(site: Site, folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Take a site's right to take part, for good with its present key.

    A connected site is thrown out within a minute. It can be invited again, and then makes a
    new key.
    """
    from server.enrolment import revoke as end

    config = _load(folder)
    entry = end(config, site, partial(_unregister, config))
    if as_json:
        typer.echo(json.dumps(_described(site, entry)))
        return
    _say(f"{site} is revoked.")


def rotate(
    authority: Annotated[
        bool,
        typer.Option(
            "--authority", help="Make a new authority too, for example a year before it expires."
        ),
    ] = False,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Make new certificates; no site has to enrol again.

    With --authority, sites that know the old authority go on until it expires; each can take
    over the new one before, from renewal.pem.
    """
    from server.rotation import rotate_authority, rotate_server

    config = _load(folder)
    ends = rotate_authority(config) if authority else rotate_server(config)
    found = {
        "server_certificate": str(config.server_certificate),
        "expires": ends.isoformat(),
        "renewal": str(config.renewal) if authority else None,
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    _say(f"New certificate of the front, valid until {ends:%Y-%m-%d}.")
    if authority:
        _say(f"Send {config.renewal} to every site; it holds no secret.")


def _unregister(config: "ServerConfig", node_id: int) -> None:
    """Take a node out of Flower, and believe that it is out only when Flower lists it no more."""
    from common.errors import ServiceError, UnknownSiteError
    from server import flower

    with suppress(UnknownSiteError):
        flower.unregister_node(config, node_id)
    if any(node.node_id == node_id for node in flower.list_nodes(config)):
        raise ServiceError(
            f"Flower still has the node {node_id}: the site is not revoked.",
            remedy=f"See {config.logs / 'superlink.log'}, and revoke it again.",
        )


def _load(folder: Path) -> "ServerConfig":
    from server.config import ServerConfig

    return ServerConfig.load(folder)


def _described(name: str, entry: "SiteEntry") -> dict[str, Any]:
    expired = entry.expires is not None and entry.expires <= datetime.now(UTC)
    return {
        "site": name,
        "state": entry.state,
        "since": entry.since.isoformat(),
        "kit_expires": entry.expires.isoformat() if entry.expires else None,
        "kit_expired": expired,
        "half_accepted": entry.state == "invited" and entry.public_key is not None,
        "software": entry.software,
        "protocol": entry.protocol,
        "node_id": entry.node_id,
    }


def _table(name: str, found: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{name}: sites", title_justify="left")
    for column in ("site", "state", "now", "last seen (UTC)", "version"):
        table.add_column(column)
    for site in found:
        state = site["state"]
        if state == "invited":
            state += ", kit expired" if site["kit_expired"] else ", kit out"
        if site["half_accepted"]:
            state = "half accepted: accept its request again"
        seen = site["last_seen"].removesuffix("+00:00").replace("T", " ")
        table.add_row(site["site"], state, site["flower"] or "-", seen or "-", site["software"])
    return table


def _say(line: str) -> None:
    out_console.print(line, highlight=False, soft_wrap=True, markup=False)
