"""Laws of a lab's figures: from predictions to metrics, and from seeds to intervals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax, softmax
from sklearn import metrics

from client.dataset import Images
from client.weighted_metrics import Cases
from common.study import Task
from simulations import lab_figures, lab_predictions
from simulations.lab_figures import GRID, figures_of, mean_figures, over_seeds
from simulations.lab_predictions import Held, held, joined

BINARY = Task(modality="other", classes=["no", "yes"], positive="yes")
THREE = Task(modality="other", classes=["a", "b", "c"])
RNG = np.random.default_rng(5)


def random_cases(n: int, k: int, positive: int | None, seed: int = 0) -> Cases:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[labels]
    return Cases(logits, labels, np.arange(n), positive)


def random_held(n: int, k: int, models: tuple[str, ...] = ("",), seed: int = 0) -> Held:
    """Return predictions of n images of n // 2 patients at two sites, half of them for testing."""
    rng = np.random.default_rng(seed)
    patients = [f"s{i // 2 % 2}/p{i // 2}" for i in range(n)]
    return Held(
        tuple("validation" if i < n // 2 else "test" for i in range(n)),
        tuple(p.split("/")[0] for p in patients),
        tuple(patients),
        np.repeat(rng.integers(0, k, (n + 1) // 2), 2)[:n],
        {model: log_softmax(rng.normal(size=(n, k)) * 3, axis=1) for model in models},
    )


def test_figures_with_a_positive_class_are_scikit_learns() -> None:
    """Each of them on the predictions that the logits make."""
    cases = random_cases(90, 2, 1)
    truth, said = cases.labels, cases.logits.argmax(axis=1)
    odds = cases.logits[:, 1] - cases.logits[:, 0]
    assert figures_of(cases) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(truth, said),
            "error_rate": 1 - metrics.accuracy_score(truth, said),
            "precision": metrics.precision_score(truth, said),
            "sensitivity": metrics.recall_score(truth, said),
            "specificity": metrics.recall_score(truth, said, pos_label=0),
            "f1": metrics.f1_score(truth, said),
            "auroc": metrics.roc_auc_score(truth, odds),
        }
    )


def test_figures_without_one_are_means_over_the_classes() -> None:
    """Macro averages, AUROC of each class against the rest; specificity from the counts."""
    cases = random_cases(120, 3, None)
    truth, said = cases.labels, cases.logits.argmax(axis=1)
    found = figures_of(cases)
    for name, score in (
        ("precision", metrics.precision_score),
        ("sensitivity", metrics.recall_score),
        ("f1", metrics.f1_score),
    ):
        assert found[name] == pytest.approx(score(truth, said, average="macro"))
    shares = softmax(cases.logits, axis=1)
    wanted = metrics.roc_auc_score(truth, shares, multi_class="ovr", average="macro")
    assert found["auroc"] == pytest.approx(wanted)
    by_hand = [np.mean(said[truth != k] != k) for k in range(3)]
    assert found["specificity"] == pytest.approx(np.mean(by_hand))


def test_what_is_not_defined_is_none() -> None:
    """One class alone has no AUROC; nothing called positive has no precision."""
    cases = Cases(np.array([[1.0, 0.0]] * 4), np.zeros(4, int), np.arange(4), 1)
    found = figures_of(cases)
    assert [name for name, value in found.items() if value is None] == [
        "precision", "sensitivity", "f1", "auroc",
    ]  # fmt: skip
    assert (found["accuracy"], found["specificity"]) == (1.0, 1.0)


def test_the_interval_over_seeds_is_students() -> None:
    """Mean, quantile of t with n - 1 degrees, standard error: scipy's interval."""
    values = [0.81, 0.84, 0.79, 0.9]
    found = over_seeds(values)
    wanted = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(wanted)
    assert found.mean == pytest.approx(np.mean(values))


def test_one_seed_has_no_interval() -> None:
    """A dash is better than a width of nothing; seeds that failed are left out."""
    assert over_seeds([0.5]) == (0.5, None, None, (0.5,))
    assert over_seeds([None, 0.5]) == (0.5, None, None, (None, 0.5))
    assert over_seeds([None]) == (None, None, None, (None,))
    assert over_seeds([0.5, 0.5])[:3] == (0.5, 0.5, 0.5)


def test_figures_of_models_are_their_means() -> None:
    """Where one of them leaves a figure undefined, the others' mean counts."""
    one, other = random_cases(50, 2, 1, 1), random_cases(50, 2, 1, 2)
    never = other._replace(logits=np.tile([1.0, 0.0], (50, 1)))
    found = mean_figures([one, never])
    assert found["precision"] == figures_of(one)["precision"]
    assert found["auroc"] == pytest.approx((figures_of(one)["auroc"] + 0.5) / 2)  # type: ignore[operator]


def test_a_curve_has_the_area_that_the_table_says() -> None:
    """The mean curve of models, and of classes, encloses the mean of their AUROCs."""
    for k, positive in ((2, 1), (3, None)):
        models = [random_cases(400, k, positive, seed) for seed in range(3)]
        curve = lab_figures.roc(models)
        assert curve is not None
        assert (curve[0], curve[-1]) == (0.0, 1.0)
        assert metrics.auc(GRID, curve) == pytest.approx(mean_figures(models)["auroc"], abs=0.01)


def test_confusion_matrices_are_summed() -> None:
    """Rows are the true classes."""
    models = [random_cases(40, 3, None, seed) for seed in range(2)]
    wanted = sum(metrics.confusion_matrix(c.labels, c.logits.argmax(axis=1)) for c in models)
    assert lab_figures.confusion(models).tolist() == wanted.tolist()


def test_predictions_come_back_to_the_last_bit(tmp_path: Path) -> None:
    """What is written is what is read, for several models too."""
    one = random_held(30, 3, ("hospital-1", "hospital-2"))
    lab_predictions.write(tmp_path / "p.csv", one, THREE.classes)
    back = lab_predictions.read(tmp_path / "p.csv", THREE.classes)
    assert back[:3] == one[:3]
    assert back.labels.tolist() == one.labels.tolist()
    assert all(np.array_equal(back.said[model], one.said[model]) for model in one.said)


def test_each_patient_counts_once() -> None:
    """Probabilities of a patient's test images are averaged; validation images are not among."""
    one = random_held(40, 2)
    (cases,) = lab_predictions.cases_of(one, BINARY)
    assert len(cases.labels) == 10
    rows = [i for i, p in enumerate(one.patients) if one.splits[i] == "test"]
    shares: dict[str, list[float]] = {}
    for i in rows:
        shares.setdefault(one.patients[i], []).append(float(np.exp(one.said[""][i, 1])))
    wanted = [np.mean(shares[patient]) for patient in sorted(shares)]
    assert softmax(cases.logits, axis=1)[:, 1] == pytest.approx(wanted)


def test_images_of_all_sites_are_laid_together() -> None:
    """A patient is named with the site, and logits become logarithms of probabilities."""
    images = Images(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]), ("x", "x", "y"))
    places = {"one": slice(0, 1), "two": slice(1, 3)}
    logits = RNG.normal(size=(3, 2))
    found = held({"test": images}, {"test": places}, {"": {"test": logits}})
    assert found.patients == ("one/x", "two/x", "two/y")
    assert found.sites == ("one", "two", "two")
    assert found.said[""] == pytest.approx(log_softmax(logits, axis=1))


def test_a_vote_is_the_weighted_mean_of_probabilities() -> None:
    """A member of two models divides its weight among them."""
    one, two = random_held(20, 3, ("a", "b"), 1), random_held(20, 3, ("",), 1)
    shares = {name: np.exp(of) for name, of in one.said.items()}
    wanted = 0.75 * (shares["a"] + shares["b"]) / 2 + 0.25 * np.exp(two.said[""])
    found = joined([one, two], [3.0, 1.0])
    assert np.exp(found.said[""]) == pytest.approx(wanted)
    assert np.exp(found.said[""]).sum(axis=1) == pytest.approx(np.ones(20))


def test_a_vote_needs_the_same_images() -> None:
    """Members that were asked about other images cannot vote."""
    with pytest.raises(ValueError, match="other images"):
        joined([random_held(20, 2), random_held(22, 2)], [1.0, 1.0])


def test_at_home_each_site_answers_for_itself() -> None:
    """An image gets what the model of its own site says."""
    one = random_held(12, 2, ("s0", "s1"))
    found = lab_predictions.alone_at_home(one).said[""]
    assert all(np.array_equal(found[i], one.said[site][i]) for i, site in enumerate(one.sites))
