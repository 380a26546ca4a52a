"""The study: one training project that every party agrees on, read from a TOML file.

Each key is documented in ``docs/study.md``; a test holds the two together.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from common import study_faults
from common.errors import StudyError
from common.files import canonical_json, read_toml, sha256_of
from common.imaging import Augmentation, Modality, Preparation, Slices, Window
from common.section import Positive, Section, Share
from common.study_faults import Fault

STUDY_FORMAT = 1
"""Version of the study file; part of every digest."""


def _slug(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", value):
        raise ValueError("use 1 to 63 of a-z, 0-9, '-' and '_', the first a letter or digit")
    return value


Slug = Annotated[str, AfterValidator(_slug)]


class Backbone(Section):
    """The network that all tasks share, and where its weights begin."""

    name: Annotated[str, Field(min_length=1)]
    """Any classifier that timm knows."""
    weights: Annotated[str, Field(min_length=1)] = "pretrained"
    """``pretrained`` (through timm), ``none`` (random) or the path of a safetensors file."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """What the weights file must be, byte for byte."""
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    """Height and width of the network's input, in pixels."""
    normalisation: Literal["average", "local", "frozen"] = "average"
    """What happens to batch normalisation: averaged like any weight, kept at each site (FedBN),
    or frozen at the initial values."""
    mean: tuple[float, float, float] | None = None
    """Mean of each colour channel that the weights expect; the backbone's own by default."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of each colour channel; the backbone's own by default."""

    @property
    def weights_file(self) -> Path | None:
        """The safetensors file of the initial weights, if there is one."""
        return None if self.weights in ("pretrained", "none") else Path(self.weights)


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


class Training(Section):
    """What a site does with its own images in one round."""

    local_epochs: Annotated[int, Field(ge=1, le=100)] = 1
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 16
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adamw"
    head_lr: Positive = 1e-3
    backbone_lr: Positive = 1e-4
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-2
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Focusing exponent of the focal loss (Lin et al. 2017); 0 is cross-entropy."""
    train: Annotated[str, Field(pattern="^(all|head|last:[1-9][0-9]?)$")] = "all"
    """``all`` layers, the ``head`` alone, or the ``last:k`` stages with the head."""
    clip_norm: Positive | None = None
    """Bound on the gradient's L2 norm at each step."""


class Privacy(Section):
    """Differential privacy of the training patients, at each site by itself.

    Two data sets are neighbours when one has all images of one patient more. DP-SGD (Abadi et al.
    2016): each step draws every patient with the same probability, bounds the gradient of each,
    and adds Gaussian noise to the sum.
    """

    epsilon: Annotated[float, Field(gt=0, le=100)]
    """What the whole study may cost a patient; each site calibrates its noise to it."""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Below one in the number of patients; by default 1 / patients^1.1 at each site."""
    clip_norm: Positive = 1.0
    """Bound on the L2 norm of one patient's gradient."""
    images_per_patient: Annotated[int, Field(ge=1, le=64)] = 1
    """Images that a drawn patient gives to a step, at most; their mean gradient is bounded."""
    spare_rounds: Annotated[int, Field(ge=0, le=1000)] = 0
    """Trainings beyond ``rounds`` that epsilon has room for, should rounds be made again."""


class CentralPrivacy(Section):
    """Noise that the coordinator adds, so that what it publishes tells of no single site.

    The unit is a site's change of the network in a round: bounded, and hidden in Gaussian noise on
    the sum of the changes. Sites have to trust the coordinator for it.
    """

    noise_multiplier: Annotated[float, Field(ge=1e-9, le=1000)]
    """Standard deviation of a round's noise, over what one site can change."""
    clip_norm: Positive = 1.0
    """Bound on the L2 norm of a site's change; the first one, if it adapts."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """Whether the bound follows a quantile of the changes' norms (Andrew et al. 2021)."""
    target_quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the sites whose change is to lie within the adaptive bound."""
    clip_learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.2
    """How fast an adaptive bound moves: by exp of so much times what the share is off."""
    count_noise: Positive | None = None
    """Standard deviation of the noise on the number of sites within an adaptive bound; above half
    the noise multiplier, and equal to it by default."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """At which epsilon is stated."""


class Evaluation(Section):
    """What the sites measure of the final model beyond its metrics."""

    attention: Literal["none", "gradcam", "gradcam++", "hirescam", "layercam", "eigencam"] = "none"
    """How maps are made whose means over test patients a site may report; ``none`` makes none."""
    attention_patients: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Test patients of a task that a site makes maps of, at most."""


class Split(Section):
    """Shares of the patients that are held out at every site."""

    validation: Share = 0.15
    test: Share = 0.25


class Federation(Section):
    """How the sites' changes become one model."""

    strategy: str = "fedavg"
    options: dict[str, float] = Field(default_factory=dict)
    """Settings of the strategy, by the names in ``STRATEGY_OPTIONS``."""
    weighting: Literal["patients", "images", "equal"] = "patients"
    """What a site's change weighs: its training patients, its training images, or the same."""
    update_dtype: Literal["float32", "float16"] = "float32"
    """How a site's change travels; ``float16`` halves what a site sends, at 11 bits a number."""
    update_norm: Positive | None = None
    """Bound on the L2 norm of a site's change in a round; a longer one is shortened to it."""
    quorum: Annotated[int, Field(ge=1)] = 2
    """A round with fewer usable replies is not combined."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the sites that are asked to train in each round."""
    deadline_s: Positive = 3600.0
    """Seconds after which a round closes without those who have not answered."""

    def option(self, name: str) -> float:
        """Return a setting of the strategy: the study's, else the strategy's default."""
        return self.options.get(name, study_faults.STRATEGY_OPTIONS[self.strategy][name])


class Study(Section):
    """One agreed training project."""

    name: Slug
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    backbone: Backbone
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
        study = cls.parse(values)
        file = study.backbone.weights_file
        if file is None or file.is_absolute():
            return study
        backbone = study.backbone.model_copy(update={"weights": str(path.parent / file)})
        return study.model_copy(update={"backbone": backbone})

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
        file, expected = self.backbone.weights_file, self.backbone.sha256
        if file is None or expected is None or not file.is_file():
            return
        if (found := sha256_of(file)) != expected:
            fault = Fault(
                "backbone.sha256",
                f"{file} has the SHA-256 {found}",
                "get the file that the study means, or correct the digest",
            )
            raise _refusal([fault])

    def wire(self) -> str:
        """Return the study as JSON, for an order; the folder of a weights file stays here."""
        return canonical_json(self._agreed()).decode()

    def _agreed(self) -> dict[str, Any]:
        """Return all that the parties agree on, every default written out."""
        values = self.model_dump(mode="json")
        federation, file = self.federation, self.backbone.weights_file
        defaults = study_faults.STRATEGY_OPTIONS[federation.strategy]
        values["federation"]["options"] = {**defaults, **federation.options}
        if file is not None:
            values["backbone"]["weights"] = file.name
        # A study without one of these keeps the digest of before there was any.
        for task in values["tasks"].values():
            for key, default in _LATER.items():
                if task[key] == default:
                    del task[key]
        if self.evaluation.attention == "none":
            del values["evaluation"]
        if self.privacy is None:
            del values["privacy"]
        elif not self.privacy.spare_rounds:
            del values["privacy"]["spare_rounds"]
        if self.central_privacy is None:
            del values["central_privacy"]
        if federation.update_norm is None:
            del values["federation"]["update_norm"]
        return values


def _refusal(faults: list[Fault]) -> StudyError:
    lines = [f"  - {fault}" for fault in faults]
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return StudyError(
        f"The study has {count}:\n" + "\n".join(lines),
        remedy="Correct each; docs/study.md describes every key.",
    )
