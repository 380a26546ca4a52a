"""Laws of rounds whose patients lie in one place; the reference is a cut run, or numpy."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss, roc_auc_score

from client.alone import train_alone
from client.dataset import Images, round_of_batches
from client.evaluate import evaluate, logits_of
from client.own_rounds import Ended, Patients, train_rounds
from client.own_scores import figures_of
from client.train import train
from common.arrays import Array, digest
from common.models import FederatedModel, build_model
from common.seeds import stream
from common.study import Study
from common.weights import put, take

MakeStudy = Callable[..., Study]
CPU = torch.device("cpu")
FAST = {"head_lr": 3e-2, "backbone_lr": 1e-2}
"""Rates at which validation scores rise and fall."""


def images_of(patients: int, *, seed: int, contrast: float = 0.1) -> Images:
    """Return one image of every other patient and two of the rest, of two classes."""
    rng = np.random.default_rng(seed)
    owner = [i for i in range(patients) for _ in range(1 + i % 2)]
    labels = np.array([i // 2 % 2 for i in owner])
    pixels = rng.uniform(0, 0.8, (len(owner), 1, 32, 32)) + contrast * labels[:, None, None, None]
    return Images(
        torch.from_numpy(pixels).to(torch.float16),
        torch.from_numpy(labels),
        tuple(f"{seed}-{i}" for i in owner),
    )


TRAIN, VALIDATION = images_of(10, seed=1), images_of(16, seed=2)


def patients(*validation: Images, **parts: Any) -> Patients:
    return Patients("site-a", {"ct": TRAIN}, [{"ct": part} for part in validation], **parts)


def arrays_of(model: FederatedModel) -> dict[str, Array]:
    return take(model, model.state_dict())


def trained(
    study: Study, place: Patients, **how: Any
) -> tuple[Ended, dict[str, Array], list[dict[str, Array]]]:
    """Return how the rounds ended, the network's arrays, and those after each round."""
    model, each = build_model(study), []
    ended = train_rounds(
        model, place, study, device=CPU, progress=lambda _: each.append(arrays_of(model)), **how
    )
    return ended, arrays_of(model), each


def cut(study: Study, rounds: int) -> Study:
    """Return a study of so many rounds that ends with its last network."""
    values = study.model_dump(exclude_none=True) | {"rounds": rounds, "federation": {}}
    return Study.parse(values)


def scores_of(study: Study, each: Sequence[dict[str, Array]]) -> list[float]:
    """Return each network's score by scikit-learn; each patient counts once."""
    found, model = [], build_model(study)
    owners = np.array(VALIDATION.patients)
    names = list(dict.fromkeys(VALIDATION.patients))
    truth = [int(VALIDATION.labels[int(np.flatnonzero(owners == name)[0])]) for name in names]
    for arrays in each:
        put(model, arrays)
        p_NK = softmax(logits_of(model, VALIDATION, "ct", device=CPU).astype(float), axis=1)
        p_PK = np.array([p_NK[owners == name].mean(axis=0) for name in names])
        loss = study.federation.score == "loss"
        found.append(-log_loss(truth, p_PK) if loss else roc_auc_score(truth, p_PK[:, 1]))
    return found


def rounds_by_hand(found: Sequence[float], patience: int) -> int:
    """Return after how many rounds early stopping ends: the last one's score is not yet known."""
    for number in range(1, len(found) + 1):
        known = list(found[: number - 1])
        if known and len(known) - 1 - known.index(max(known)) >= patience:
            return number
    return len(found)


def test_rounds_end_as_by_hand_from_their_scores(make_study: MakeStudy) -> None:
    """Early stopping makes as many rounds as the rule says of the scores of a run without it."""
    study = make_study(rounds=8, training=FAST, federation={"score": "loss"})
    _, _, each = trained(study, patients())
    assert len(each) == 8
    found = scores_of(study, each)
    for patience in (1, 2):
        expected = rounds_by_hand(found, patience)
        assert 2 < expected < 8
        stopping = {"score": "loss", "early_stopping": {"patience": patience}}
        ending = make_study(rounds=8, training=FAST, federation=stopping)
        ended, arrays, _ = trained(ending, patients(VALIDATION))
        assert ended == Ended(expected, expected)
        assert digest(arrays) == digest(each[expected - 1])


@pytest.mark.parametrize("score", ["loss", "auroc"])
def test_the_best_network_is_that_of_a_run_that_is_cut_there(
    make_study: MakeStudy, score: str
) -> None:
    """Array for array, running statistics and counters of batches included."""
    study = make_study(rounds=6, training=FAST, federation={"score": score, "keep": "best"})
    ended, arrays, each = trained(study, patients(VALIDATION))
    found = scores_of(study, each)
    best = int(np.argmax(found)) + 1
    assert ended == Ended(6, best)
    assert best < 6
    assert digest(arrays) == digest(trained(cut(study, best), patients())[1])


@pytest.mark.parametrize(("rounds", "last"), [(4, 3), (2, 2), (3, 1)])
def test_the_average_is_numpys_mean_of_the_last_networks(
    make_study: MakeStudy, rounds: int, last: int
) -> None:
    """Each floating-point array is the mean over the last rounds; counters are the last one's."""
    study = make_study(rounds=rounds, federation={"average_last": last})
    ended, arrays, each = trained(study, patients())
    assert ended == Ended(rounds, rounds)
    assert_mean(arrays, each[-last:])


def assert_mean(arrays: dict[str, Array], models: Sequence[dict[str, Array]]) -> None:
    for name, value in arrays.items():
        expected = models[-1][name]
        if np.issubdtype(value.dtype, np.floating):
            stacked = np.stack([model[name] for model in models])
            expected = stacked.mean(axis=0, dtype=float).astype(value.dtype)
        assert np.array_equal(value, expected)
        assert value.dtype == expected.dtype


def says(study: Study, losses: Sequence[float]) -> Callable[[str, int], FederatedModel]:
    """Return networks that have these losses of patients without the finding, by their rounds."""
    constant = build_model(study)
    with torch.no_grad():
        constant.get_parameter("heads.ct.weight").zero_()

    def form(task: str, number: int) -> FederatedModel:
        model = copy.deepcopy(constant)
        odds = np.log(np.expm1(losses[number - 1]))  # loss = log(1 + exp(odds))
        with torch.no_grad():
            model.get_parameter(f"heads.{task}.bias").copy_(torch.tensor([0.0, float(odds)]))
        return model

    return form


WITHOUT = Images(VALIDATION.pixels[:2], torch.zeros(2, dtype=torch.int64), ("p", "q"))


@pytest.mark.parametrize(
    ("losses", "federation", "expected"),
    [
        # The third and fourth better nothing; the fourth's score is known after round 5.
        ((0.9, 0.5, 0.6, 0.7, 0.8, 0.1, 0.1), {"early_stopping": {"patience": 2}}, (5, 5)),
        ((0.9, 0.5, 0.6, 0.7, 0.8, 0.1, 0.1), {"keep": "best"}, (7, 6)),
        (
            (0.9, 0.5, 0.6, 0.7, 0.4, 0.1, 0.1),
            {"early_stopping": {"patience": 2}, "keep": "best"},
            (5, 5),  # the last one's counts, although it ended nothing
        ),
        ((0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3), {"early_stopping": {"patience": 1}}, (7, 7)),
        (
            (0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6),
            {"early_stopping": {"patience": 1, "least_gain": 0.07}},
            (3, 3),
        ),
    ],
)  # fmt: skip
def test_the_scores_alone_decide(
    make_study: MakeStudy,
    losses: Sequence[float],
    federation: dict[str, Any],
    expected: tuple[int, int],
) -> None:
    """Rounds that are made, and whose network is left, follow from the scores of the networks."""
    federation = {"score": "loss", **federation}
    study = make_study(rounds=7, training={"train": "head"}, federation=federation)
    ended, arrays, each = trained(study, patients(WITHOUT), form=says(study, losses))
    assert ended == Ended(*expected)
    assert digest(arrays) == digest(each[expected[1] - 1])


def test_who_stops_early_averages_the_rounds_that_there_were(make_study: MakeStudy) -> None:
    """The last rounds are those before the end."""
    federation = {"score": "loss", "early_stopping": {"patience": 1}, "average_last": 3}
    study = make_study(rounds=8, federation=federation)
    losses = (0.5, 0.4, 0.3, 0.6, 0.6, 0.6, 0.6, 0.6)
    ended, arrays, each = trained(study, patients(WITHOUT), form=says(study, losses))
    assert ended == Ended(5, 5)
    assert_mean(arrays, each[2:5])


@pytest.mark.parametrize(
    ("score", "validation"), [("loss", ()), ("auroc", ()), ("auroc", (WITHOUT,))]
)
def test_without_a_score_all_rounds_are_made(
    make_study: MakeStudy, score: str, validation: tuple[Images, ...]
) -> None:
    """The last network stays: without patients, and where all are of one class without AUROC."""
    federation = {"score": score, "keep": "best", "early_stopping": {"patience": 1}}
    study = make_study(rounds=5, training={"train": "head"}, federation=federation)
    ended, arrays, each = trained(study, patients(*validation))
    assert ended == Ended(5, 5)
    assert digest(arrays) == digest(each[-1])


@pytest.mark.parametrize("train_what", ["all", "head"])
def test_measuring_changes_no_bit(make_study: MakeStudy, train_what: str) -> None:
    """Rounds whose networks are measured train as those of a plain study, dropout included."""
    results = []
    for keep in ("last", "best"):
        training = {"train": train_what, "dropout": 0.3}
        study = make_study(rounds=3, training=training, federation={"keep": keep})
        task = study.tasks["ct"].model_dump(exclude_none=True) | {"augmentation": {}}
        study = Study.parse(study.model_dump(exclude_none=True) | {"tasks": {"ct": task}})
        results.append([digest(arrays) for arrays in trained(study, patients(VALIDATION))[2]])
    assert results[0] == results[1]


def test_a_plain_study_is_its_rounds_and_nothing_else(make_study: MakeStudy) -> None:
    """Each round is one call of the local training, bit for bit; nobody looks at a label."""
    study = make_study(rounds=3, training={"dropout": 0.2})
    task = study.tasks["ct"].model_dump(exclude_none=True) | {"augmentation": {}}
    study = Study.parse(study.model_dump(exclude_none=True) | {"tasks": {"ct": task}})
    model = build_model(study)
    for number in range(1, 4):
        seed = stream(study.seed, "site-a", number)
        order = round_of_batches({"ct": TRAIN}, study.training, seed, steps=5)
        generator = torch.Generator().manual_seed(stream(seed, "augmentation"))
        with torch.random.fork_rng():
            torch.manual_seed(stream(seed, "dropout"))
            train(
                model, {"ct": TRAIN}, order, study,
                device=CPU, number=number, generator=generator,
            )  # fmt: skip
    no_class = Images(VALIDATION.pixels, VALIDATION.labels + 9, VALIDATION.patients)
    place = patients(no_class, steps=5)
    ended, arrays, _ = trained(study, place)
    assert ended == Ended(3, 3)
    assert digest(arrays) == digest(arrays_of(model))


def test_the_figure_of_several_sites_is_of_their_patients_together(make_study: MakeStudy) -> None:
    """As scikit-learn's over all of them, also where a site has one image of each patient."""
    study = make_study(federation={"score": "loss"})
    model = build_model(study)
    single = Images(WITHOUT.pixels, torch.tensor([1, 0]), WITHOUT.patients)

    def measure(task: str, images: Images) -> Any:
        return evaluate(model, images, task, study.tasks[task], device=CPU)

    (of_many,) = scores_of(study, [arrays_of(model)])
    p_NK = softmax(logits_of(model, single, "ct", device=CPU).astype(float), axis=1)
    of_two = -log_loss([1, 0], p_NK)
    found = figures_of(measure, [{"ct": VALIDATION}, {"ct": single}, {}], study)
    assert found == {"ct": pytest.approx((16 * of_many + 2 * of_two) / 18)}
    assert figures_of(measure, [], study) == {}


def moves(study: Study, rounds: int) -> list[float]:
    """Return how far each round of a site alone moves the head's weights."""
    model, each = build_model(study), []
    each.append(arrays_of(model)["heads.ct.weight"].astype(float))
    train_alone(
        model,
        {"ct": TRAIN},
        study,
        site="site-a",
        device=CPU,
        validation={"ct": VALIDATION},
        progress=lambda _: each.append(arrays_of(model)["heads.ct.weight"].astype(float)),
    )
    assert len(each) == rounds + 1
    return [float(np.abs(b - a).sum()) for a, b in itertools.pairwise(each)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"kind": "step", "period": 1, "factor": 0.25}, (1, 1 / 4, 1 / 16, 1 / 64)),
        # Equal scores of rounds 1 and 2 are known when round 4 begins.
        ({"kind": "plateau", "patience": 1, "factor": 0.25}, (1, 1, 1, 1 / 4)),
        ({"kind": "constant"}, (1, 1, 1, 1)),
    ],
)
def test_schedules_count_the_rounds_from_the_first(
    make_study: MakeStudy,
    plain_sgd: dict[str, Any],
    schedule: dict[str, Any],
    expected: Sequence[float],
) -> None:
    """Plain SGD moves each weight in proportion to its rate, too little to change a score."""
    rates = {"head_lr": 1e-4, "backbone_lr": 1e-9, "train": "head"}
    training = plain_sgd | {"batch_size": 4096} | rates
    constant = moves(make_study(rounds=4, training=training), 4)
    found = moves(make_study(rounds=4, training={**training, "schedule": schedule}), 4)
    assert np.array(found) == pytest.approx(np.array(expected) * constant, rel=0.01)
