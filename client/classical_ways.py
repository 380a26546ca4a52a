"""Classical ways at a site: features that are computed once, and a classifier of its patients.

Nothing of them is kept or sent. Shapes: N training images, M images that are asked about, D
features, K classes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client.classical import Classifier, Features, Floats, fit_and_ask
from client.classical_features import (
    FeaturesOf,
    backbone_features,
    check_installed,
    edges_and_textures,
)
from client.config import SiteConfig
from client.dataset import Images, TaskData
from client.final_model import first_model
from common.classical_names import Way
from common.errors import (
    DataError,
    DivergedError,
    FederationError,
    OrderError,
    OutputError,
    RarefedError,
    StudyError,
)
from common.seeds import stream
from common.study import Study

LEAST_PATIENTS = 2
"""Training patients of a class; what one alone has in common is not told from who it is."""


class Recipe(NamedTuple):
    """What a way is made of."""

    features: Features
    classifier: Classifier


RECIPES: Mapping[Way, Recipe] = {
    Way.LOGISTIC: Recipe("backbone", "logistic"),
    Way.SVM: Recipe("backbone", "svm"),
    Way.FOREST: Recipe("backbone", "forest"),
    Way.ELM: Recipe("backbone", "elm"),
    Way.HANDCRAFTED_SVM: Recipe("handcrafted", "svm"),
    Way.HANDCRAFTED_FOREST: Recipe("handcrafted", "forest"),
}


def fit_task(
    study: Study,
    task: str,
    known_ND: NDArray[np.floating],
    labels_N: NDArray[np.integer],
    asked_MD: NDArray[np.floating],
    classifier: Classifier,
    *,
    whose: str,
) -> Floats:
    """Fit a classifier as a study says, and return what it says; see ``fit_and_ask``.

    Args:
        study: Its classes, class weights and seed.
        task: The task.
        known_ND: Features of the training images.
        labels_N: Class of each of them.
        asked_MD: Features of the images that are asked about.
        classifier: Which.
        whose: The site whose classifier it is; its random numbers depend on that.

    Returns:
        Logarithms of probabilities, shape (M, K).
    """
    return fit_and_ask(
        known_ND,
        labels_N,
        asked_MD,
        classifier,
        classes=len(study.tasks[task].classes),
        balanced=study.training.class_weights == "balanced",
        seed=stream(study.seed, "classical", whose, task),
    )


class Ways(NamedTuple):
    """The ways that a site fits, and what they look at."""

    names: tuple[Way, ...]
    """Those of the study, and those that the hospital asks for besides."""
    features: Mapping[Features, FeaturesOf]
    demanded: bool
    """Whether the hospital asks for one; then too few patients are an error, and else a note."""
    notes: tuple[str, ...]
    """Why ways of the study are left out."""


class Said(NamedTuple):
    """What ways say of one task."""

    logits: Mapping[str, Floats]
    """Logarithms of probabilities of the test images, shape (M, K) each, by way."""
    notes: tuple[str, ...]
    """Why some, or all, of the study's ways say nothing."""


def ways_at_site(
    config: SiteConfig, study: Study, demanded: Collection[Way], device: torch.device
) -> Ways:
    """Return the ways of a study, and those that are demanded, before an image is read.

    What the site cannot compute is left out with a note where the study alone asks for it: no
    hospital goes without its figures because of what they would be compared with.

    Args:
        config: The hospital.
        study: The study.
        demanded: Ways that the hospital asks for.
        device: Where the arithmetic runs.

    Raises:
        OutputError: scikit-image is not installed, and a demanded way needs it.
        StudyError: The study began with a random backbone, whose features one needs.
        FederationError: The site does not know how the study began, and one needs that. What is
            wrong with others that are demanded is told in the same error.
    """
    wanted = tuple(dict.fromkeys([*study.evaluation.classical, *demanded]))
    kinds = {RECIPES[way].features for way in demanded}
    features: dict[Features, FeaturesOf] = {}
    faults: dict[Features, RarefedError] = {}
    for kind in sorted({RECIPES[way].features for way in wanted}):
        try:
            features[kind] = _features(kind, config, study, device)
        except (OutputError, StudyError, FederationError) as error:
            faults[kind] = error
    if kinds & faults.keys():
        raise _refusal({kind: error for kind, error in faults.items() if kind in kinds}, demanded)
    notes = tuple(_note(_of(kind, wanted), _words(error)) for kind, error in faults.items())
    names = tuple(way for way in wanted if RECIPES[way].features in features)
    return Ways(names, features, bool(demanded), notes)


def _features(kind: Features, config: SiteConfig, study: Study, device: torch.device) -> FeaturesOf:
    if kind == "handcrafted":
        check_installed()
        return edges_and_textures
    _check_pretrained(study)
    return backbone_features(first_model(config, study, device=device).model, device)


def _of(kind: Features, ways: Collection[Way]) -> list[Way]:
    return [way for way in dict.fromkeys(ways) if RECIPES[way].features == kind]


def _refusal(faults: Mapping[Features, RarefedError], demanded: Collection[Way]) -> RarefedError:
    """Return the error of demanded ways; of several reasons the first one's class, with all."""
    first, *others = faults.values()
    if not others:
        return first
    lines = [f"  - {', '.join(_of(kind, demanded))}: {e.message}" for kind, e in faults.items()]
    return type(first)(
        "Ways that are asked for cannot be fitted:\n" + "\n".join(lines),
        remedy=" ".join(error.remedy for error in faults.values()),
    )


def _words(error: RarefedError) -> str:
    """Return an error's message for a page that a clinician looks at: no file stands in it."""
    if isinstance(error, OrderError):
        return (
            "what the site keeps of the study's beginning is damaged; asked for with --classical, "
            "the way says which file."
        )
    return error.message


def _note(ways: Collection[Way], why: str) -> str:
    return f"Not compared with {', '.join(ways)}, as the study would have it: {why}"


def ask_ways(
    study: Study,
    site: str,
    tasks: Mapping[str, TaskData],
    ways: Ways,
    tell: Callable[[str], None],
) -> dict[str, Said]:
    """Fit each way to a site's training images of each task, and ask it about the test images.

    Args:
        study: The study.
        site: The site's name.
        tasks: Its images by task.
        ways: As ``ways_at_site`` returns them.
        tell: Called with a word on what is being done.

    Raises:
        DataError: A task has too few training patients for what is demanded.
        DivergedError: A feature of the backbone is not finite, and a way is demanded.
    """
    few = _too_few(study, tasks) if ways.names else {}
    if few and ways.demanded:
        raise DataError(
            f"No classifier can be fitted to {'; '.join(few.values())}.",
            remedy=f"Two classes need {LEAST_PATIENTS} training patients each: add patients to "
            "the manifest, or leave --classical out.",
        )
    found = {}
    for name, data in tasks.items():
        if name in few:
            why = f"no two classes have {LEAST_PATIENTS} training patients each."
            found[name] = Said({}, (*ways.notes, _note(ways.names, why)))
            continue
        try:
            found[name] = Said(_ask_task(study, site, name, data, ways, tell), ways.notes)
        except DivergedError:
            if ways.demanded:
                raise
            why = "a feature of the backbone is not finite."
            found[name] = Said({}, (*ways.notes, _note(ways.names, why)))
    return found


def _ask_task(
    study: Study, site: str, name: str, data: TaskData, ways: Ways, tell: Callable[[str], None]
) -> dict[str, Floats]:
    train, test = data.splits["train"], data.splits["test"]
    computed = {}
    for kind, of in ways.features.items():
        tell(f"{kind} features of {name}")
        computed[kind] = of(train), of(test)
    found = {}
    for way in ways.names:
        tell(f"{way} of {name}")
        kind, classifier = RECIPES[way]
        known_ND, asked_MD = computed[kind]
        found[way.value] = fit_task(
            study, name, known_ND, train.labels.numpy(), asked_MD, classifier, whose=site
        )
    return found


def _too_few(study: Study, tasks: Mapping[str, TaskData]) -> dict[str, str]:
    """Return the tasks whose training patients tell no two classes apart, with their counts."""
    found = {}
    for name, data in tasks.items():
        counts = _patients_by_class(data.splits["train"], study.tasks[name].classes)
        if sorted(counts.values())[-2] < LEAST_PATIENTS:
            said = ", ".join(f"{count} of {label}" for label, count in counts.items())
            found[name] = f"{name} (training patients: {said})"
    return found


def _patients_by_class(images: Images, classes: Sequence[str]) -> dict[str, int]:
    pairs = set(zip(images.labels.tolist(), images.patients, strict=True))
    return {label: sum(k == own for own, _ in pairs) for k, label in enumerate(classes)}


def _check_pretrained(study: Study) -> None:
    if any(member.backbone.weights == "none" for member in study.members):
        raise StudyError(
            f"The study {study.name} began with a random backbone, whose features tell nothing.",
            remedy=f"Ask for {Way.HANDCRAFTED_SVM} or {Way.HANDCRAFTED_FOREST}, which look at "
            "edges and textures instead.",
        )
