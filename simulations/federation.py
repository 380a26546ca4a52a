"""Plays a federation through the real ``server/rounds.py`` and the real ``client/site.py``.

Two engines, one result: ``inline`` plays the sites one after the other in this process, ``ray``
hands them to Flower's simulation engine. Every random stream is named by site and round, and the
coordinator's sums do not depend on the order of arrival, so both end in the same bytes as long
as each site computes with the same number of torch threads.
"""

import logging
import os
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.config import SiteConfig
from client.ledger import Ledger
from client.site import Site, respond
from client.store import SiteStore
from common.errors import FederationError, MissingFolderError, QuorumError
from common.models import normalisation_of
from common.study import Study
from common.weights import layout_of, take
from server.central_privacy import check_layout
from server.checkpoint import save_initial
from server.history import RoundRecord
from server.initial_weights import Start, initial_model
from server.rounds import Outcome, Watch, begin_study, run_study
from simulations.grid import LocalGrid

LEDGERS = "ledgers"
"""Folder of a private run, of each site's ledger; its own is for what leaves the site."""
Engine = Literal["inline", "ray"]


@dataclass(frozen=True)
class Played:
    """A federation that has been played to its end."""

    outcome: Outcome
    start: Start
    normalisation: str
    seconds: float
    """Wall time of enrolment and rounds, without the reading of data and weights."""
    sites: Sequence[Site]
    """The sites, their data warm; empty for the Ray engine, whose sites live elsewhere."""


def find_hospitals(folder: Path) -> list[Path]:
    """Return the hospital folders (those with a ``site.toml``) below ``folder``, in order.

    Raises:
        MissingFolderError: There is no such folder, or no hospital in it.
    """
    found = [path.parent for path in folder.glob("*/site.toml")]
    if not found:
        raise MissingFolderError(
            f"There is no hospital in {folder}: no folder below it has a site.toml.",
            remedy="Make some with 'rarefed-sim make' or 'rarefed-sim deal'.",
        )
    return sorted(found, key=lambda path: (len(path.name), path.name))


def play(
    study: Study,
    hospitals: Sequence[Path],
    folder: Path,
    *,
    engine: Engine = "inline",
    threads: int = 0,
    watch: Watch | None = None,
) -> Played:
    """Play every round of a study.

    Args:
        study: What is trained.
        hospitals: One folder a site.
        folder: Where model and history are written.
        engine: ``inline`` or ``ray``.
        threads: Torch threads of each site; 0 is all cores inline, and 1 on Ray.
        watch: Called after each round with its record.

    Raises:
        RarefedError: As the file that finds the fault says; inline, a fault in a hospital's
            data is raised in full before the first round.
    """
    start = initial_model(study)
    layout = layout_of(start.model, study)
    check_layout(study, layout)
    arrays = take(start.model, start.model.state_dict())
    configs = [SiteConfig.load(path) for path in hospitals]
    if len(configs) < study.federation.quorum:
        raise QuorumError(
            f"There are {len(configs)} hospitals, but the quorum is {study.federation.quorum}.",
            remedy="Make more hospitals, or lower federation.quorum.",
        )
    _quiet_flower()
    ledgers = None if study.privacy is None else folder.resolve() / LEDGERS
    for config in configs:  # an earlier run of this study must leave no trace in this one
        SiteStore(config.state, study.digest()).clear()

    def serve(grid: Grid) -> Outcome:
        save_initial(folder, arrays, layout)
        begin_study(study, arrays, folder)
        return run_study(study, grid, layout, folder, sites=len(configs), watch=watch or _nothing)

    sites: list[Site] = []
    if engine == "inline":
        sites = _warm_sites(study, configs, threads or os.cpu_count() or 1, ledgers)
        by_number = dict(enumerate(sites))
        began = time.perf_counter()
        outcome = serve(LocalGrid(_client_app(by_number.__getitem__), len(sites)))
    else:
        began = time.perf_counter()
        outcome = _play_on_ray(serve, hospitals, threads or 1, ledgers)
    return Played(
        outcome,
        start,
        normalisation_of(study, start.model),
        time.perf_counter() - began,
        sites,
    )


def _warm_sites(
    study: Study, configs: Sequence[SiteConfig], threads: int, ledgers: Path | None
) -> list[Site]:
    """Return the sites of this process, their data read."""
    sites = [_site(config, ledgers) for config in configs]
    torch.set_num_threads(threads)
    for site in sites:
        site.prepare(study)
    return sites


def _play_on_ray(
    serve: Callable[[Grid], Outcome], hospitals: Sequence[Path], threads: int, ledgers: Path | None
) -> Outcome:
    """Let Flower's simulation engine play the sites in Ray's worker processes."""
    try:
        import ray  # noqa: F401, PLC0415 - the same
        from flwr.simulation import run_simulation  # noqa: PLC0415 - Ray is an extra
    except ImportError as error:
        raise FederationError(
            f"The Ray engine cannot be loaded: {error}",
            remedy="Install rarefed[simulation], or use --engine inline.",
        ) from error
    folders = [str(path.resolve()) for path in hospitals]
    results: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        try:
            results.put(serve(grid))
        except Exception as error:  # noqa: BLE001 - carried to the caller, not lost in a thread
            results.put(error)

    run_simulation(
        server_app=server,
        client_app=_client_app(lambda number: _site_in_worker(folders[number], threads, ledgers)),
        num_supernodes=len(folders),
        backend_config={"client_resources": {"num_cpus": threads, "num_gpus": 0.0}},
    )
    result = results.get_nowait()
    if isinstance(result, Exception):
        raise result
    return result


def _client_app(site_of: Callable[[int], Site]) -> ClientApp:
    """Return the ClientApp that plays every site, whatever the kind of its message."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        site = site_of(int(context.node_config["partition-id"]))
        return Message(respond(site, message.content), reply_to=message)

    app.query()(answer)
    app.train()(answer)
    app.evaluate()(answer)
    return app


@cache
def _site_in_worker(folder: str, threads: int, ledgers: Path | None) -> Site:
    """Return a worker's own copy of a site, its data warm from one message to the next."""
    torch.set_num_threads(threads)
    return _site(SiteConfig.load(Path(folder)), ledgers)


def _site(config: SiteConfig, ledgers: Path | None) -> Site:
    return Site(config, None if ledgers is None else Ledger(ledgers / config.name))


def _nothing(record: RoundRecord) -> None:
    """Watch a round without a word."""


def _quiet_flower() -> None:
    """Keep Flower's banners off the terminal, and its telemetry at home."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    logging.getLogger("flwr").setLevel(logging.ERROR)
