"""Every error that rarefed raises on purpose, with its exit code.

The tree is one file, longer than others, so that no two errors share a code and each has its place.

    RarefedError                      1
    ├── StudyError                   10  the study file is wrong
    ├── UnknownBackboneError         11  no library knows the backbone
    ├── WeightsError                 12  initial weights cannot be had or do not fit
    ├── DataError                    20  the hospital's data, when no leaf below says it better
    │   ├── MissingFolderError       21  a folder or file that should be there is not
    │   ├── EmptyManifestError       22  a table of images without rows, or not one left to use
    │   ├── ManifestError            23  a table with wrong columns or rows of several faults
    │   ├── LabelError               24  a label that the task does not know
    │   ├── SplitError               25  one patient in two splits
    │   ├── ImageError               26  a file that is no readable image
    │   └── SetAsideError            27  an object that is no image of the patient
    ├── FederationError              30  the round, when no leaf below says it better
    │   ├── TaskWithoutSiteError     31  a task that no site has
    │   ├── QuorumError              32  fewer sites than the study's quorum
    │   ├── ReplyError               33  a reply that the coordinator refuses
    │   ├── StudyMismatchError       34  two parties that do not hold the same study
    │   ├── DivergedError            35  a local training whose loss is no longer finite
    │   ├── OrderError               36  an order that the site cannot follow
    │   ├── EgressError              37  a reply that the site itself holds back
    │   ├── SealError                38  an order without the seal of the site's coordinator
    │   ├── NotApprovedError         39  an order of a study that the hospital has not approved
    │   ├── PausedError              41  the hospital takes no orders at present
    │   ├── BudgetError              42  an order beyond what the hospital allows
    │   ├── VaultError               43  a site whose vault does not answer its courier
    │   └── PrivacyError             44  a training that cannot be private as it was asked for
    ├── OutputError                  40  a result that cannot be written where it was asked for
    ├── EnrolmentError               50  enrolment, when no leaf below says it better
    │   ├── KitError                 51  a kit or request that is malformed, expired or used
    │   ├── VersionError             52  two parties whose versions do not talk
    │   └── UnknownSiteError         53  a site that the coordinator does not know
    ├── ServiceError                 60  a process that cannot be started or kept
    │   └── NotRunningError          61  a daemon that should run and does not answer
    ├── DoctorError                  70  a check of this machine that came out red
    └── ChainError                   71  a log whose entries do not follow from one another

Codes 2 (wrong usage) and 130 (interrupted) are those of the command line itself.

A message may name paths, rows and values: it is for the person at the machine. What may leave
a site is ``code`` and ``public`` alone; both belong to the class and never change with the data.
"""

from typing import ClassVar


class RarefedError(Exception):
    """Root of the tree.

    Args:
        message: What is wrong, for the person at this machine.
        remedy: What that person can do about it.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"
    public: ClassVar[str] = "An error occurred at this site; its own log says which."

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  Remedy: {self.remedy}" if self.remedy else self.message


class StudyError(RarefedError):
    """The study file cannot be read, or says something impossible."""

    exit_code = 10
    code = "study"
    public = "The study file is not valid."


class UnknownBackboneError(RarefedError):
    """No library that rarefed uses knows a backbone of this name."""

    exit_code = 11
    code = "unknown_backbone"
    public = "The study names a backbone that this installation does not know."


class WeightsError(RarefedError):
    """Initial weights cannot be had, or do not fit the backbone."""

    exit_code = 12
    code = "weights"
    public = "The initial weights cannot be used."


class DataError(RarefedError):
    """The hospital's data cannot be used as it is."""

    exit_code = 20
    code = "data"
    public = "The data at this site cannot be used as it is."


class MissingFolderError(DataError):
    """A folder or file that the configuration names does not exist."""

    exit_code = 21
    code = "missing_folder"
    public = "A data folder at this site is missing."


class EmptyManifestError(DataError):
    """A manifest has no rows, or none that can be used."""

    exit_code = 22
    code = "empty_manifest"
    public = "A manifest at this site has no usable rows."


class ManifestError(DataError):
    """A manifest has wrong columns, or rows with faults of several kinds."""

    exit_code = 23
    code = "manifest"
    public = "A manifest at this site has faults."


class LabelError(ManifestError):
    """A row carries a label that is not one of the task's classes."""

    exit_code = 24
    code = "label"
    public = "A manifest at this site has a label that the task does not know."


class SplitError(ManifestError):
    """The rows of one patient would fall into two splits."""

    exit_code = 25
    code = "split"
    public = "A patient at this site would fall into two splits."


class ImageError(DataError):
    """A file is missing, unreadable or no image."""

    exit_code = 26
    code = "image"
    public = "An image at this site cannot be read."


class SetAsideError(ImageError):
    """An object among the images is none of the patient: a report, a plan, a mask or a scout."""

    exit_code = 27
    code = "set_aside"
    public = "An object among the images at this site is no image of the patient."


class FederationError(RarefedError):
    """The federation cannot go on."""

    exit_code = 30
    code = "federation"
    public = "The federation cannot go on."


class TaskWithoutSiteError(FederationError):
    """A task of the study has no site."""

    exit_code = 31
    code = "task_without_site"
    public = "A task of the study has no site."


class QuorumError(FederationError):
    """Fewer sites than the quorum are there, or answered in time."""

    exit_code = 32
    code = "quorum"
    public = "Fewer sites than the quorum answered."


class ReplyError(FederationError):
    """A site's reply does not fit the order, and is left out of the round."""

    exit_code = 33
    code = "reply"
    public = "The reply does not fit the order."


class StudyMismatchError(FederationError):
    """Two parties do not hold the same study, or not the same protocol version."""

    exit_code = 34
    code = "study_mismatch"
    public = "This site does not hold the study that the order names."


class DivergedError(FederationError):
    """The local training of a round diverged; the site takes no part in that round."""

    exit_code = 35
    code = "diverged"
    public = "The local training at this site diverged."


class OrderError(FederationError):
    """An order whose arrays do not fit the study's network, or that needs a missing base."""

    exit_code = 36
    code = "order"
    public = "The order's arrays do not fit, or the site lacks the study's base weights."


class EgressError(FederationError):
    """A reply that would carry something else than what was asked for; it stays at the site."""

    exit_code = 37
    code = "egress"
    public = "The site held its reply back."


class SealError(FederationError):
    """An order that does not bear the seal of the coordinator that the site enrolled with."""

    exit_code = 38
    code = "seal"
    public = "The order is not sealed by this site's coordinator, or is for another site."


class NotApprovedError(FederationError):
    """An order of a study that the hospital has not approved."""

    exit_code = 39
    code = "not_approved"
    public = "This site has not approved the study."


class PausedError(FederationError):
    """The hospital has paused; it takes orders again when it says so."""

    exit_code = 41
    code = "paused"
    public = "This site has paused."


class BudgetError(FederationError):
    """An order that would go beyond what the hospital allows for the study."""

    exit_code = 42
    code = "budget"
    public = "The order goes beyond this site's budget."


class VaultError(FederationError):
    """The courier of a site cannot reach its vault."""

    exit_code = 43
    code = "vault"
    public = "The vault of this site does not answer."


class PrivacyError(FederationError):
    """A training cannot be private in the way that the study or the hospital asks for."""

    exit_code = 44
    code = "privacy"
    public = "The training cannot be private at this site in the way that was asked for."


class OutputError(RarefedError):
    """A result cannot be written where it was asked for."""

    exit_code = 40
    code = "output"
    public = "A result cannot be written."


class EnrolmentError(RarefedError):
    """A site cannot be enrolled as it was asked."""

    exit_code = 50
    code = "enrolment"
    public = "The enrolment failed."


class KitError(EnrolmentError):
    """An enrolment kit or request is malformed, expired, already used or not genuine."""

    exit_code = 51
    code = "kit"
    public = "The enrolment kit or request cannot be used."


class VersionError(EnrolmentError):
    """Coordinator and site speak different versions of the protocol."""

    exit_code = 52
    code = "version"
    public = "The versions of coordinator and site do not fit."


class UnknownSiteError(EnrolmentError):
    """The coordinator has no site of this name, or not in the state that is needed."""

    exit_code = 53
    code = "unknown_site"
    public = "The coordinator does not know this site."


class ServiceError(RarefedError):
    """A process of the coordinator or of the hospital cannot be started or kept."""

    exit_code = 60
    code = "service"
    public = "A process cannot be started."


class NotRunningError(ServiceError):
    """A daemon that should be running does not answer."""

    exit_code = 61
    code = "not_running"
    public = "A daemon is not running."


class DoctorError(RarefedError):
    """A check of this machine came out red."""

    exit_code = 70
    code = "doctor"
    public = "A check of this machine failed."


class ChainError(RarefedError):
    """The entries of a hash-chained log do not follow from one another."""

    exit_code = 71
    code = "chain"
    public = "A log at this site is damaged."
