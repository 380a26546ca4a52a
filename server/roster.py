"""The sites of a study, as they declared themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import FederationError, QuorumError, TaskWithoutSiteError
from common.statements import Declaration
from common.study import Study


@dataclass
class Member:
    """One site that takes part."""

    node_id: int
    name: str
    declaration: Declaration
    base: str
    """Digest of the base that the site is known to hold."""
    away: bool = False
    """It was not connected when the last round began."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The study's tasks that the site has."""
        return tuple(sorted(self.declaration.tasks))


def check_roster(study: Study, members: Sequence[Member], refusals: Mapping[str, str]) -> None:
    """Refuse to begin a study that cannot be what it says.

    Args:
        study: What is to be trained.
        members: The sites that are ready.
        refusals: Code by site of those that are not.

    Raises:
        FederationError: Two sites bear one name, or there are more than the study tells apart.
        QuorumError: Fewer sites than the quorum are ready.
        TaskWithoutSiteError: Tasks that no site has; all of them are listed.
    """
    names = [member.name for member in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FederationError(
            f"Several sites are called {', '.join(twice)}.",
            remedy="Give each site a name of its own in its site.toml.",
        )
    most = study.training.adversarial_sites
    if most is not None and len(names) > most:
        raise FederationError(
            f"{len(names)} sites are ready, but the study tells {most} apart.",
            remedy="Raise training.adversarial_sites, which makes it another study.",
        )
    refused = "".join(f"\n  - {site} refused: {code}" for site, code in sorted(refusals.items()))
    if len(members) < study.federation.quorum:
        raise QuorumError(
            f"{len(members)} sites are ready, the quorum is {study.federation.quorum}.{refused}",
            remedy="Add sites, lower federation.quorum, or remove what made the others refuse.",
        )
    had = {task for member in members for task in member.tasks}
    if missing := sorted(set(study.tasks) - had):
        raise TaskWithoutSiteError(
            f"No site has the task {', '.join(missing)}.{refused}",
            remedy="Remove the task from the study, or add a site with such a [data.TASK] table.",
        )


def each_image(members: Sequence[Member]) -> dict[str, list[str]]:
    """Return the tasks whose patients are not known, by the sites that have such tasks."""
    return {m.name: list(m.declaration.each_image) for m in members if m.declaration.each_image}


def declared(members: Sequence[Member]) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """Return the patients and images of each split as the sites state them, by site and task."""
    return {
        m.name: {task: splits.model_dump() for task, splits in m.declaration.tasks.items()}
        for m in members
    }


def joined(members: Sequence[Member], newcomers: Sequence[Member]) -> list[Member]:
    """Return the members with the newcomers among them, by name.

    A newcomer takes the place of the member of its name, which had enrolled with another key.
    """
    by_name = {member.name: member for member in [*members, *newcomers]}
    return [by_name[name] for name in sorted(by_name)]
