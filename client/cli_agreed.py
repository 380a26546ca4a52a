"""What the hospital's commands on a study's images have in common: arguments, and first checks."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from common.classical_names import Way

if TYPE_CHECKING:
    from client.config import SiteConfig
    from common.study import Study

ModelFolder = Annotated[
    Path | None,
    typer.Option(
        help="A folder of rarefed-server export, instead of what the site keeps; a report shows "
        "its figures of all sites beside this site's."
    ),
]
Alone = Annotated[
    bool,
    typer.Option(
        "--alone", help="Also train on this site's patients alone, and say what the study gained."
    ),
]
Classical = Annotated[
    list[Way] | None,
    typer.Option(
        "--classical",
        help="Also fit this classifier of scikit-learn to this site's patients, beside those of "
        "the study, and compare; may be given several times.",
    ),
]
Personal = Annotated[
    bool,
    typer.Option(
        "--personal", help="Use the network that 'personalise' has kept, where it is better."
    ),
]
Method = Annotated[
    Literal["gradcam", "gradcam++", "hirescam", "layercam", "eigencam"],
    typer.Option(help="How maps are made."),
]


def agreed_at(site: Path, study: Path) -> tuple["Study", "SiteConfig"]:
    """Return a study and the site that is to work on it, once both may.

    Raises:
        StudyError: The study file is wrong.
        DataError: The site's configuration is, or its state belongs to another user.
        TaskWithoutSiteError: They share no task.
    """
    from client.config import SiteConfig
    from common.errors import TaskWithoutSiteError
    from common.study import Study

    agreed, config = Study.load(study), SiteConfig.load(site)
    if not set(agreed.tasks) & set(config.data):
        raise TaskWithoutSiteError(
            f"{config.name} has none of the study's tasks ({', '.join(agreed.tasks)}).",
            remedy="Add a [data.TASK] table to site.toml, with the study's name for the task.",
        )
    check_owner(config.state)
    return agreed, config


def check_owner(state: Path) -> None:
    """Refuse to work as root in the state folder of another user: the files would be root's."""
    from common.errors import DataError

    if os.geteuid() == 0 and state.exists() and state.stat().st_uid:
        owner = state.owner()
        raise DataError(
            f"{state} belongs to {owner}, who could not use what root writes there.",
            remedy=f"Put before the command: sudo -u {owner}",
        )
