"""The study: one training project that every party agrees on, read from a TOML file.

Each key is documented in ``docs/study.md``; a test holds the two together.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from common import federation, study_faults, training
from common.backbones import MOST_MEMBERS, Backbone, Member
from common.classical_names import Way
from common.errors import StudyError
from common.faults import Fault
from common.federation import Federation
from common.files import canonical_json, read_toml, sha256_of
from common.imaging import Augmentation, Modality, Preparation, Slices, Window
from common.privacy import CentralPrivacy, Privacy
from common.section import Section, Share
from common.training import Training

STUDY_FORMAT = 1
"""Version of the study file; part of every digest."""


def _slug(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", value):
        raise ValueError("use 1 to 63 of a-z, 0-9, '-' and '_', the first a letter or digit")
    return value


Slug = Annotated[str, AfterValidator(_slug)]


class Task(Section):
    """One diagnosis on one modality."""

    modality: Modality
    classes: Annotated[list[str], Field(min_length=2, max_length=100)]
    """Names of the classes, as they stand in the label column; their order is the head's."""
    positive: str | None = None
    """The class that a two-class task looks for; left out, the task is multi-class."""
    window: Window | None = None
    """Centre and width, in Hounsfield units, through which CT is looked at; a study file may give a
    window's name."""
    slices: Slices = "one"
    """How a volume becomes images; see ``common/imaging.py``."""
    intensity: Literal["percentiles", "zscore"] = "percentiles"
    """How the signal of MR, which has no unit, becomes intensities in [0, 1]."""
    per_patient: Literal["mean", "max"] = "mean"
    """How the predictions of a patient's images become one: their mean, or the most suspicious."""
    preparation: Preparation | None = None
    """What images go through; left out, they are resized and nothing else."""
    augmentation: Augmentation | None = None
    """How training images are varied; left out, they are not."""

    @property
    def positive_index(self) -> int | None:
        """Index of the positive class, or None for a multi-class task."""
        return None if self.positive is None else self.classes.index(self.positive)


_LATER = {
    "slices": "one",
    "intensity": "percentiles",
    "per_patient": "mean",
    "preparation": None,
    "augmentation": None,
}
"""Keys of a task that the first studies did not have, with their defaults."""


class Evaluation(Section):
    """How the sites measure the model, and what they measure of the final one beyond metrics."""

    attention: Literal["none", "gradcam", "gradcam++", "hirescam", "layercam", "eigencam"] = "none"
    """How maps are made whose means over test patients a site may report; ``none`` makes none."""
    attention_patients: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Test patients of a task that a site makes maps of, at most."""
    normalisation: Literal["stored", "adapted"] = "stored"
    """Whether batch normalisation has its running statistics at evaluation, or those of the very
    images of a split (Schneider et al. 2020)."""
    classical: list[Way] = Field(default_factory=list)
    """Classifiers that each site fits to its own patients, to compare the final network with."""
    tuned_rounds: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Rounds that a site tunes the final network by itself; left out, the site says how many."""

    @property
    def adapted(self) -> bool:
        """Whether batch normalisation is evaluated with the statistics of the images at hand."""
        return self.normalisation == "adapted"

    def agreed(self) -> dict[str, Any]:
        """Return what counts for a study's digest; nothing where nothing is asked for."""
        values = self.model_dump(mode="json")
        if self.attention == "none":
            del values["attention"], values["attention_patients"]
        if not self.adapted:
            del values["normalisation"]
        if not self.classical:
            del values["classical"]
        if self.tuned_rounds is None:
            del values["tuned_rounds"]
        return values


class Split(Section):
    """Shares of the patients that are held out at every site."""

    validation: Share = 0.15
    test: Share = 0.25


class Study(Section):
    """One agreed training project."""

    name: Slug
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    backbone: Backbone
    ensemble: Annotated[list[Member], Field(max_length=MOST_MEMBERS)] = Field(default_factory=list)
    """Networks that are trained side by side and vote; left out, there is the backbone alone."""
    tasks: Annotated[dict[Slug, Task], Field(min_length=1)]
    training: Training = Training()
    split: Split = Split()
    evaluation: Evaluation = Evaluation()
    privacy: Privacy | None = None
    """Differential privacy; left out, the study has none."""
    central_privacy: CentralPrivacy | None = None
    """Noise at the coordinator; left out, the study has none."""
    federation: Federation = Federation()

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Check everything at once and return the study.

        Args:
            values: The study file's content, as ``tomllib`` gives it.

        Raises:
            StudyError: Lists every unknown key, wrong type and impossible combination, each
                with its remedy.
        """
        study, faults = study_faults.validated(cls, values)
        if study is None or faults:
            raise _refusal(faults)
        return study

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a study file; a relative weights path counts from the file's folder.

        Raises:
            StudyError: The file is missing, is no TOML, or is no valid study.
        """
        remedy = "Give the path of a TOML file; docs/study.md describes one."
        values = read_toml(path, StudyError, remedy=remedy)
        return cls.parse(values).with_files(lambda file: path.parent / file)

    @property
    def members(self) -> tuple[Self, ...]:
        """The study of each member of the ensemble by itself; without one, the study alone."""
        return tuple(
            self.model_copy(
                update={
                    "backbone": member.backbone(self.backbone),
                    "seed": member.seed_at(number, self.seed),
                    "ensemble": [],
                }
            )
            for number, member in enumerate(self.ensemble)
        ) or (self,)

    @property
    def network(self) -> str:
        """What the network is called: its backbone, or those of the ensemble."""
        names = ", ".join(member.backbone.name for member in self.members)
        return f"ensemble of {names}" if self.ensemble else names

    def with_files(self, moved: Callable[[Path], Path]) -> Self:
        """Return the study with other paths of its weights files.

        Args:
            moved: From the path of a file to the new one.
        """

        def at(section: Backbone | Member) -> Backbone | Member:
            weights = section.weights
            if weights is None or weights in ("pretrained", "none"):
                return section
            return section.model_copy(update={"weights": str(moved(Path(weights)))})

        members = [at(member) for member in self.ensemble]
        return self.model_copy(update={"backbone": at(self.backbone), "ensemble": members})

    def digest(self) -> str:
        """Return a SHA-256 that is the same on every machine that holds the same study.

        Defaults are written out, so leaving a key away and giving its default are the same. Of
        a weights file only the name counts (and ``sha256``, when given), since folders differ.
        """
        study = {"format": STUDY_FORMAT, "study": self._agreed()}
        return hashlib.sha256(canonical_json(study)).hexdigest()

    def check_weights_file(self) -> None:
        """Refuse a weights file that is not the one whose SHA-256 the study gives.

        Raises:
            StudyError: The digests differ.
        """
        faults = []
        for number, member in enumerate(self.members):
            file, expected = member.backbone.weights_file, member.backbone.sha256
            if file is None or expected is None or not file.is_file():
                continue
            if (found := sha256_of(file)) != expected:
                what = f"{file} has the SHA-256 {found}"
                remedy = "get the file that the study means, or correct the digest"
                where = f"ensemble.{number}.sha256" if self.ensemble else "backbone.sha256"
                faults.append(Fault(where, what, remedy))
        if faults:
            raise _refusal(faults)

    def wire(self) -> str:
        """Return the study as JSON, for an order; the folder of a weights file stays here."""
        return canonical_json(self._agreed()).decode()

    def _agreed(self) -> dict[str, Any]:
        """Return all that the parties agree on, every default written out."""
        named = self.with_files(lambda file: Path(file.name))
        values = named.model_dump(mode="json")
        values["ensemble"] = [
            member.backbone.model_dump(include={"name", "weights", "sha256"})
            | {"seed": member.seed}
            for member in named.members
        ]
        if not self.ensemble:
            del values["ensemble"]
        # A study without one of these keeps the digest of before there was any.
        values["training"] = training.agreed(self.training)
        values["federation"] = federation.agreed(self.federation)
        for task in values["tasks"].values():
            for key, default in _LATER.items():
                if task[key] == default:
                    del task[key]
        values["evaluation"] = self.evaluation.agreed()
        if not values["evaluation"]:
            del values["evaluation"]
        if self.privacy is None:
            del values["privacy"]
        elif not self.privacy.spare_rounds:
            del values["privacy"]["spare_rounds"]
        if self.central_privacy is None:
            del values["central_privacy"]
        return values


def _refusal(faults: list[Fault]) -> StudyError:
    lines = [f"  - {fault}" for fault in faults]
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return StudyError(
        f"The study has {count}:\n" + "\n".join(lines),
        remedy="Correct each; docs/study.md describes every key.",
    )
