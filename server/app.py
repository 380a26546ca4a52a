"""Flower's ServerApp: runs one study in the coordinator's folder, from where it stands.

It travels in the bundle that ``server/bundle.py`` builds. Which study it is, the run's
configuration says; where the coordinator's folder is, the environment of its own machine does.
"""

import logging
import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import QuorumError, RarefedError, TaskWithoutSiteError
from common.file_lock import locked
from common.seals import Sealer, load_order_key
from common.study import Study
from server.checkpoint import find_checkpoint, load_layout
from server.config import ServerConfig
from server.history import RoundRecord
from server.register import load_sites
from server.rounds import run_study
from server.studies import StudyFolder
from server.timing import DEPLOYED

COORDINATOR = "RAREFED_COORDINATOR"
"""Environment variable: the coordinator's folder."""
STUDY_ID = "study-id"
"""Key of the run's configuration: the study's folder among the coordinator's studies."""

log = logging.getLogger("rarefed.server")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study to its end; what came of it stands in its ``progress.json``."""
    config = ServerConfig.load(Path(os.environ[COORDINATOR]))
    folder = StudyFolder(config, str(context.run_config[STUDY_ID]))
    study = Study.load(folder.study_file)
    with locked(folder.run_lock):  # the process of an earlier run may still be ending
        folder.change_state("enrolling")
        try:
            stopped = _run(study, grid, config, folder)
        except (QuorumError, TaskWithoutSiteError) as error:
            folder.change_state("paused", str(error))
        except RarefedError as error:
            log.exception("study %s failed", folder.study_id)
            folder.change_state("failed", str(error))
            raise
        else:
            folder.change_state("finished", stopped)


def _run(study: Study, grid: Grid, config: ServerConfig, folder: StudyFolder) -> str:
    """Run the rounds that are left; return why they ended before their number, if they did."""
    done = find_checkpoint(folder.path, study).round

    def watch(record: RoundRecord) -> None:
        nonlocal done
        done = record.round if record.combined else done
        folder.write_progress("running", done, study.rounds, sites=record.answered)

    outcome = run_study(
        study,
        grid,
        load_layout(folder.path),
        folder.path,
        sites=sum(entry.state == "enrolled" for entry in load_sites(config).values()),
        watch=watch,
        timing=DEPLOYED,
        sealer=Sealer(load_order_key(config.order_key.read_bytes())),
    )
    return outcome.records[-1].stopped
