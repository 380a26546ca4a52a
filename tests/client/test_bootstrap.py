"""Laws of the intervals of a site's own figures."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, norm
from sklearn.metrics import brier_score_loss, roc_auc_score

from client.bootstrap import LEAST_PATIENTS, Estimate, differences, draw_patients, intervals
from client.weighted_metrics import NAMES, Cases, metrics_of


def simulated(patients: int, shift: float, seed: int, images: int = 2) -> Cases:
    """Normal scores; a third of the patients is ill, and images of one resemble one another."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(patients), images)
    ill = (np.arange(patients) < patients / 3)[owners].astype(np.int64)
    own, noise = rng.normal(size=patients)[owners], rng.normal(size=len(owners))
    score = shift * (ill - 0.5) + np.sqrt(0.6) * own + np.sqrt(0.4) * noise
    return Cases(np.stack([np.zeros(len(score)), score], axis=1), ill, owners, 1)


def test_intervals_are_those_of_scipy() -> None:
    """Ends of AUROC and Brier score are scipy's BCa of scikit-learn's metrics over patients."""
    cases = simulated(60, 1.5, seed=1)
    found = intervals(cases, seed=2, draws=4000)
    rows = [np.flatnonzero(cases.owners == patient) for patient in range(60)]

    def resampled(name: str, patients: np.ndarray) -> float:
        chosen = np.concatenate([rows[int(p)] for p in patients])
        score, truth = cases.logits[chosen, 1], cases.labels[chosen]
        if name == "auroc":
            return float(roc_auc_score(truth, score))
        return float(brier_score_loss(truth, 1 / (1 + np.exp(-score))))

    for name in ("auroc", "brier"):
        expected = bootstrap(
            (np.arange(60),),
            lambda chosen, name=name: resampled(name, chosen),
            vectorized=False,
            n_resamples=1000,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
        width = expected.high - expected.low
        assert found[name].value == pytest.approx(resampled(name, np.arange(60)))
        assert found[name].low == pytest.approx(expected.low, abs=0.1 * width)
        assert found[name].high == pytest.approx(expected.high, abs=0.1 * width)


def test_a_draw_takes_whole_patients() -> None:
    """Each draw holds as many patients as there are, and no class is lost."""
    cases = simulated(15, 1.0, seed=0)
    drawn = draw_patients(cases, seed=1, draws=500)
    assert drawn.shape == (500, 15)
    assert (drawn.sum(axis=1) == 15).all()
    assert (drawn[:, :5].sum(axis=1) > 0).all()
    assert drawn.mean(axis=0) == pytest.approx(1, abs=0.2)


def test_images_that_say_the_same_add_nothing() -> None:
    """Ten equal images of each patient give the interval of one, which copies would narrow."""
    once = simulated(40, 1.5, seed=4, images=1)
    logits, labels, owners = (np.repeat(values, 10, axis=0) for values in once[:3])
    many = Cases(logits.astype(np.float64), labels.astype(np.int64), owners.astype(np.int64), 1)
    one, ten = (intervals(cases, seed=3, draws=300) for cases in (once, many))
    for name in ("auroc", "accuracy", "loss"):
        assert one[name].low == pytest.approx(ten[name].low)
        assert one[name].high == pytest.approx(ten[name].high)


def test_a_difference_that_is_not_defined_is_none() -> None:
    """Where neither model calls anybody ill, precision has no difference, not one that is NaN."""
    one = simulated(60, 1.5, seed=3, images=1)
    nobody = one._replace(logits=one.logits - np.array([0.0, 100.0]))
    found = differences(nobody, nobody, seed=1)["precision"]
    assert (found.value, found.low, found.high) == (None, None, None)
    assert "undefined" in found.reason


@pytest.mark.slow
def test_many_patients_are_left_out_together() -> None:
    """Of 1200 patients the ends are still scipy's, within a sixth of the width."""
    cases = simulated(1200, 2.5, seed=8, images=1)
    found = intervals(cases, seed=2)["auroc"]
    expected = bootstrap(
        (np.arange(1200),),
        lambda rows: roc_auc_score(cases.labels[rows], cases.logits[rows, 1]),
        vectorized=False,
        n_resamples=500,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.15 * width)
    assert found.high == pytest.approx(expected.high, abs=0.15 * width)


def test_the_seed_decides() -> None:
    """The same seed gives the same ends, another one others."""
    cases = simulated(40, 1.0, seed=4)
    assert intervals(cases, seed=1) == intervals(cases, seed=1)
    assert intervals(cases, seed=1)["auroc"] != intervals(cases, seed=2)["auroc"]


def test_too_few_patients_have_no_interval() -> None:
    """Four ill patients give figures alone; specificity, of the many healthy, has its interval."""
    cases = simulated(60, 1.0, seed=6)
    kept = (cases.labels == 0) | (cases.owners < LEAST_PATIENTS - 1)
    owners = np.unique(cases.owners[kept], return_inverse=True)[1]
    found = intervals(Cases(cases.logits[kept], cases.labels[kept], owners, 1), seed=1)
    for name in ("sensitivity", "auroc", "f1"):
        assert found[name].value is not None
        assert found[name].low is None
        assert "too few" in found[name].reason
    assert found["specificity"].low is not None
    assert found["accuracy"].low is not None


def test_what_is_undefined_is_said() -> None:
    """One class alone has no AUROC, and no patients have nothing, each with a reason."""
    cases = simulated(30, 1.0, seed=6)
    healthy = cases.labels == 0
    owners = np.unique(cases.owners[healthy], return_inverse=True)[1]
    found = intervals(Cases(cases.logits[healthy], cases.labels[healthy], owners, 1), seed=1)
    assert found["auroc"] == Estimate(None, None, None, "these patients leave it undefined")
    assert found["specificity"].low is not None
    nobody = Cases(np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64), 1)
    for found in (intervals(nobody, seed=1), differences(nobody, nobody, seed=1)):
        assert {e.value for e in found.values()} == {None}
        assert {e.reason for e in found.values()} == {"there are no patients"}


def test_a_perfect_model_is_not_sure() -> None:
    """Where all are right the proportion has Wilson's interval; AUROC has none."""
    cases = simulated(30, 500.0, seed=1)
    found = intervals(cases, seed=1)
    for name, n in (("sensitivity", 10), ("accuracy", 30)):
        expected = binomtest(n, n).proportion_ci(method="wilson")
        assert found[name].low == pytest.approx(expected.low)
    assert found["accuracy"].high == 1.0
    assert found["auroc"] == Estimate(1.0, None, None, "every draw gives the same value")


@pytest.mark.parametrize("classes", [3, 5])
def test_several_classes_have_intervals_too(classes: int) -> None:
    """Every metric of a task of several classes has ends on both sides of it or a reason."""
    rng = np.random.default_rng(classes)
    owners = np.arange(80)
    labels = owners % classes
    logits = rng.normal(size=(80, classes)) + 1.5 * np.eye(classes)[labels]
    for name, found in intervals(Cases(logits, labels, owners, None), seed=1).items():
        assert found.value is not None
        assert found.low is not None, name
        assert found.high is not None
        assert found.low < found.value < found.high or name == "calibration_error"
        assert found.low <= found.value <= found.high


def test_a_difference_is_paired() -> None:
    """Of two models that err alike the difference is surer than the figures; its sign is theirs."""
    one = simulated(60, 1.5, seed=1)
    noise = np.random.default_rng(0).normal(size=len(one.labels)) / 4
    worse = one._replace(logits=one.logits + np.stack([np.zeros_like(noise), noise], axis=1))
    found, single = differences(one, worse, seed=1)["auroc"], intervals(one, seed=1)["auroc"]
    both = [metrics_of(c, np.ones((1, len(c.labels))))["auroc"][0] for c in (one, worse)]
    assert found.value == pytest.approx(both[0] - both[1])
    assert found.high is not None
    assert found.low is not None
    assert single.high is not None
    assert single.low is not None
    assert found.high - found.low < (single.high - single.low) / 2
    mirrored = differences(worse, one, seed=1)["auroc"]
    assert mirrored.low == pytest.approx(-found.high)


def test_two_equal_models_have_no_interval() -> None:
    """A difference that no draw shows is nothing to be sure of."""
    one = simulated(40, 1.0, seed=2)
    for name, found in differences(one, one, seed=1).items():
        assert (found.value, found.low, found.high) == (0.0, None, None), name
        assert found.reason
    with pytest.raises(ValueError, match="same patients"):
        differences(one, simulated(41, 1.0, seed=2), seed=1)
    assert set(differences(one, one, seed=1)) == set(NAMES)


def test_few_differing_patients_are_no_difference() -> None:
    """Where two models differ on four ill patients, sensitivity's difference has no interval."""
    one = simulated(60, 1.5, seed=3, images=1)
    logits = one.logits.copy()
    caught = np.flatnonzero((one.labels == 1) & (logits[:, 1] > 0))
    logits[caught[: LEAST_PATIENTS - 1], 1] = -0.1
    found = differences(one, one._replace(logits=logits), seed=1)
    assert found["sensitivity"].value == pytest.approx(4 / 20)
    assert found["sensitivity"].low is None
    assert "differ on fewer" in found["sensitivity"].reason
    assert found["loss"].low is not None
    logits[caught[LEAST_PATIENTS - 1], 1] = -0.1
    found = differences(one, one._replace(logits=logits), seed=1)
    assert found["sensitivity"].low is not None
    assert found["sensitivity"].low > 0


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "shift", "least"), [(60, 1.5, 0.91), (120, 2.0, 0.91)])
def test_intervals_hold_the_truth(patients: int, shift: float, least: float) -> None:
    """Over simulated sites about 95 in 100 intervals hold the true AUROC and sensitivity."""
    truths = {"auroc": norm.cdf(shift / np.sqrt(2)), "sensitivity": norm.cdf(shift / 2)}
    held = dict.fromkeys(truths, 0)
    for trial in range(300):
        found = intervals(simulated(patients, shift, seed=1000 + trial), seed=trial, draws=400)
        for name, truth in truths.items():
            low, high = found[name].low, found[name].high
            assert low is not None
            assert high is not None
            held[name] += bool(low <= truth <= high)
    for name, count in held.items():
        assert least <= count / 300 <= 0.985, name


@pytest.mark.slow
def test_paired_intervals_hold_the_truth() -> None:
    """Of two models that are equally good, about 95 in 100 intervals of the difference hold 0."""
    held = 0
    for trial in range(300):
        one = simulated(80, 1.5, seed=trial)
        rng = np.random.default_rng(10_000 + trial)
        scores = [one.logits[:, 1] + rng.normal(size=len(one.labels)) / 2 for _ in range(2)]
        models = [
            one._replace(logits=np.stack([np.zeros_like(score), score], axis=1)) for score in scores
        ]
        found = differences(*models, seed=trial, draws=400)["auroc"]
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    assert 0.91 <= held / 300 <= 0.985
