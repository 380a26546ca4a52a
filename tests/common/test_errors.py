"""Laws of the error tree."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from common import errors
from common.errors import RarefedError

TREE = {
    "RarefedError": ("Exception", 1, "error"),
    "StudyError": ("RarefedError", 10, "study"),
    "UnknownBackboneError": ("RarefedError", 11, "unknown_backbone"),
    "WeightsError": ("RarefedError", 12, "weights"),
    "DataError": ("RarefedError", 20, "data"),
    "MissingFolderError": ("DataError", 21, "missing_folder"),
    "EmptyManifestError": ("DataError", 22, "empty_manifest"),
    "ManifestError": ("DataError", 23, "manifest"),
    "LabelError": ("ManifestError", 24, "label"),
    "SplitError": ("ManifestError", 25, "split"),
    "ImageError": ("DataError", 26, "image"),
    "SetAsideError": ("ImageError", 27, "set_aside"),
    "FederationError": ("RarefedError", 30, "federation"),
    "TaskWithoutSiteError": ("FederationError", 31, "task_without_site"),
    "QuorumError": ("FederationError", 32, "quorum"),
    "ReplyError": ("FederationError", 33, "reply"),
    "StudyMismatchError": ("FederationError", 34, "study_mismatch"),
    "DivergedError": ("FederationError", 35, "diverged"),
    "OrderError": ("FederationError", 36, "order"),
    "EgressError": ("FederationError", 37, "egress"),
    "SealError": ("FederationError", 38, "seal"),
    "NotApprovedError": ("FederationError", 39, "not_approved"),
    "PausedError": ("FederationError", 41, "paused"),
    "BudgetError": ("FederationError", 42, "budget"),
    "VaultError": ("FederationError", 43, "vault"),
    "PrivacyError": ("FederationError", 44, "privacy"),
    "OutputError": ("RarefedError", 40, "output"),
    "EnrolmentError": ("RarefedError", 50, "enrolment"),
    "KitError": ("EnrolmentError", 51, "kit"),
    "VersionError": ("EnrolmentError", 52, "version"),
    "UnknownSiteError": ("EnrolmentError", 53, "unknown_site"),
    "ServiceError": ("RarefedError", 60, "service"),
    "NotRunningError": ("ServiceError", 61, "not_running"),
    "DoctorError": ("RarefedError", 70, "doctor"),
    "ChainError": ("RarefedError", 71, "chain"),
}


def family(root: type[RarefedError] = RarefedError) -> Iterator[type[RarefedError]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


FAMILY = [error for error in family() if error.__module__ == errors.__name__]


def test_the_tree_is_frozen() -> None:
    """Names, parents, exit codes and codes are public: scripts and hospitals' logs rely on them."""
    found = {e.__name__: (e.__base__.__name__, e.exit_code, e.code) for e in FAMILY if e.__base__}
    assert found == TREE


def test_every_class_speaks_for_itself() -> None:
    """Each class states its own exit code, code and public text, and shares none of them."""
    for attribute in ("exit_code", "code", "public"):
        assert all(attribute in vars(error) for error in FAMILY)
        counted = Counter(getattr(error, attribute) for error in FAMILY)
        assert [value for value, times in counted.items() if times > 1] == []


def test_exit_codes_leave_room_for_the_shell() -> None:
    """Codes are above 0, not 2 (wrong usage), and below those of the shell and of signals."""
    assert all(0 < error.exit_code < 126 and error.exit_code != 2 for error in FAMILY)


def test_the_drawing_shows_every_class() -> None:
    """The module's drawing names each class once, with its exit code."""
    drawn = re.findall(r"^[ │├└─]*(\w+Error) +(\d+)\b", errors.__doc__ or "", re.MULTILINE)
    assert [(name, int(code)) for name, code in drawn] == [
        (e.__name__, e.exit_code) for e in FAMILY
    ]


def test_the_drawing_indents_as_the_classes_inherit() -> None:
    """A class stands deeper in the drawing than the branch that it belongs to."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if "Error  " in line]
    branches = {"DataError", "FederationError", "EnrolmentError", "ServiceError"}
    depth = {}
    for line in lines:
        name = re.search(r"\w+Error", line)
        assert name
        depth[name.group()] = line.index(name.group())
    for error in FAMILY:
        parents = {parent.__name__ for parent in error.__mro__[1:]}
        steps = ("RarefedError" in parents) + bool(branches & parents)
        assert depth[error.__name__] == 4 + 4 * steps


@pytest.mark.parametrize("error", FAMILY, ids=lambda error: error.__name__)
def test_the_public_text_holds_no_place_for_data(error: type[RarefedError]) -> None:
    """What may leave a site is one fixed sentence: no braces, paths, numbers or quotes."""
    assert re.fullmatch(r"[A-Z][A-Za-z ,;']*\.", error.public)
    assert re.fullmatch(r"[a-z_]{1,40}", error.code)
    assert error("/secret/path", remedy="patient 7").public == vars(error)["public"]


def test_the_remedy_follows_the_message() -> None:
    """The text is the message, then the remedy on a line of its own when there is one."""
    assert str(RarefedError("It broke.")) == "It broke."
    error = RarefedError("It broke.", remedy="Mend it.")
    assert str(error) == "It broke.\n  Remedy: Mend it."
    assert (error.message, error.remedy) == ("It broke.", "Mend it.")
