"""Laws of measuring a network on held-out images."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as sk

from client.dataset import Images
from client.evaluate import evaluate, logits_of, state_of
from client.features import BATCH, channel_statistics
from client.patients import state_of_patients
from client.preprocess import normalise
from common import metrics, metrics_wire
from common.arrays import digest
from common.errors import DivergedError
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import take

CPU = torch.device("cpu")
MakeStudy = Callable[..., Study]
MakeImages = Callable[..., Images]


def part(images: Images, which: slice) -> Images:
    return Images(images.pixels[which], images.labels[which], images.patients[which])


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return make_study(("ct", "mr"))


@pytest.fixture
def model(study: Study) -> FederatedModel:
    return build_model(study).train()


@pytest.mark.parametrize(("task", "classes"), [("ct", 2), ("mr", 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_are_the_models(
    task: str, classes: int, channels: int, model: FederatedModel, make_images: MakeImages
) -> None:
    """Logits are those of the network in evaluation mode on the normalised images."""
    images = make_images(9, classes=classes, channels=channels)
    reference = copy.deepcopy(model).eval()
    with torch.no_grad():
        expected = reference(normalise(images.pixels, *channel_statistics(model, CPU)), task)
    found = logits_of(model, images, task, device=CPU)
    assert found.shape == (9, classes)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected.numpy())


def test_measuring_changes_nothing(
    study: Study, model: FederatedModel, make_images: MakeImages
) -> None:
    """Every bit of the network's state, counters and statistics included, is as it was."""
    before = digest(take(model, model.state_dict()))
    gradients = [value.requires_grad for value in model.parameters()]
    evaluate(model, make_images(10), "ct", study.tasks["ct"], device=CPU)
    assert digest(take(model, model.state_dict())) == before
    assert [value.requires_grad for value in model.parameters()] == gradients


def test_an_images_company_does_not_matter(model: FederatedModel, make_images: MakeImages) -> None:
    """Images measured together, beyond one batch, get the logits that each gets alone."""
    images = make_images(BATCH + 6)
    together = logits_of(model, images, "ct", device=CPU)
    alone = [
        logits_of(model, part(images, slice(i, i + 1)), "ct", device=CPU)
        for i in range(len(images))
    ]
    assert np.allclose(together, np.concatenate(alone), atol=1e-6)


def test_no_images_are_measured_as_none(
    study: Study, model: FederatedModel, make_images: MakeImages
) -> None:
    """An empty split gives an empty state, which still has the task's shape."""
    nothing = part(make_images(4, classes=3), slice(0))
    assert logits_of(model, nothing, "mr", device=CPU).shape == (0, 3)
    state = evaluate(model, nothing, "mr", study.tasks["mr"], device=CPU)
    blank = metrics.zero(3, None)
    assert digest(metrics_wire.to_arrays(state.of_images)) == digest(metrics_wire.to_arrays(blank))
    assert state.of_patients is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_network_that_came_broken_is_refused(
    value: float, model: FederatedModel, make_images: MakeImages
) -> None:
    """Logits that are not finite are a divergence, not a metric."""
    weight = model.get_parameter("heads.ct.weight")
    with torch.no_grad():
        weight.fill_(value)
        weight[0].neg_()
        model.get_parameter("heads.ct.bias").fill_(torch.finfo(torch.float32).max)
    with pytest.raises(DivergedError):
        logits_of(model, make_images(4), "ct", device=CPU)


def sharpened(model: FederatedModel, images: Images, task: str) -> NDArray[np.float32]:
    """Return the network's logits, spread out so that not all images are of one class."""
    logits = logits_of(model, images, task, device=CPU)
    spread: NDArray[np.float32] = 3 * (logits - logits.mean(axis=0)) / logits.std(axis=0)
    return spread


def test_metrics_with_a_positive_class_are_scikit_learns(
    study: Study, model: FederatedModel, make_images: MakeImages
) -> None:
    """What the state computes to is what scikit-learn computes from the same logits."""
    images = make_images(61)
    logits = sharpened(model, images, "ct")
    found = metrics.compute(state_of(logits, images, study.tasks["ct"]), 1)
    y, shares = images.labels.numpy(), torch.from_numpy(logits).double().softmax(1).numpy()
    predicted = logits.argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "precision": sk.precision_score(y, predicted),
        "sensitivity": sk.recall_score(y, predicted),
        "specificity": sk.recall_score(y, predicted, pos_label=0),
        "f1": sk.f1_score(y, predicted),
        "brier": sk.brier_score_loss(y, shares[:, 1]),
        "loss": sk.log_loss(y, shares),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(y, shares[:, 1]), abs=0.003)
    assert found["average_precision"] == pytest.approx(
        sk.average_precision_score(y, shares[:, 1]), abs=0.01
    )


def test_metrics_of_many_classes_are_scikit_learns(
    study: Study, model: FederatedModel, make_images: MakeImages
) -> None:
    """Without a positive class they are scikit-learn's macro means, each class against the rest."""
    images = make_images(62, classes=3)
    logits = sharpened(model, images, "mr")
    found = metrics.compute(state_of(logits, images, study.tasks["mr"]), None)
    y, shares = images.labels.numpy(), torch.from_numpy(logits).double().softmax(1).numpy()
    predicted = logits.argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(y, predicted),
        "sensitivity": sk.recall_score(y, predicted, average="macro"),
        "precision": sk.precision_score(y, predicted, average="macro"),
        "f1": sk.f1_score(y, predicted, average="macro"),
        "loss": sk.log_loss(y, shares),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    auroc = sk.roc_auc_score(y, shares, multi_class="ovr")
    assert found["auroc"] == pytest.approx(auroc, abs=0.003)


def test_evaluation_is_logits_then_sums(
    study: Study, model: FederatedModel, make_images: MakeImages
) -> None:
    """The states are those of the network's own logits, by image and by patient."""
    images, task = make_images(11), study.tasks["ct"]
    state, of_patients = evaluate(model, images, "ct", task, device=CPU)
    logits = logits_of(model, images, "ct", device=CPU)
    by_hand = state_of(logits, images, task)
    assert of_patients is not None
    assert digest(metrics_wire.to_arrays(of_patients)) == digest(
        metrics_wire.to_arrays(state_of_patients(logits, images, task))
    )
    assert digest(metrics_wire.to_arrays(state)) == digest(metrics_wire.to_arrays(by_hand))
    assert (state.n_patients, state.n_images) == (6, 11)
    assert state.confusion.sum(axis=1).tolist() == [6, 5]
