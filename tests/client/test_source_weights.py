"""Laws of training images from elsewhere: where they may be, and what they weigh."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from client.config import SiteConfig
from client.dataset import Batch, Images, Origin
from client.features import channel_statistics, frozen_features
from client.manifest import Row, read_manifest
from client.pictures import Facts
from client.preprocess import normalise
from client.site import Site
from client.source_weights import MOST, similarity_weights, source_weights
from client.split import split_rows
from client.train import train
from common.arrays import digest
from common.errors import ManifestError, SplitError
from common.messages import Order
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import take

CPU = torch.device("cpu")
KEY = bytes(range(32))
MakeStudy = Callable[..., Study]
MakeImages = Callable[..., Images]
Floats = NDArray[np.float64]


def patients_of(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def gaussians(
    own: int, source: int, *, apart: float, seed: int = 0
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return features, (N, 1), of own images around ``apart`` and of others around 0."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(apart, 1, own), rng.normal(0, 1, source)])
    return x[:, None], np.arange(own + source) >= own


# What an image weighs


def test_weights_are_the_ratio_of_the_densities() -> None:
    """Of two Gaussians of one width it is exp(x - 1/2); the weight is in proportion to it."""
    x, source = gaussians(1500, 1500, apart=1.0)
    weights = similarity_weights(x, source, patients_of(3000), seed=0)
    assert (weights[~source] == 1).all()
    assert weights[source].mean() == pytest.approx(1)
    between = source & (np.abs(x[:, 0] - np.median(x[source])) < 1.5)
    slope, _ = np.polyfit(x[between, 0], np.log(weights[between]), 1)
    assert slope == pytest.approx(1, abs=0.1)
    ratio = np.exp(x[between, 0] - 0.5)
    scale = weights[between] / ratio
    assert scale.std() / scale.mean() < 0.1


def test_images_like_the_own_ones_weigh_more() -> None:
    """Of a source that is in part like them, that part; none beyond the bounds."""
    rng = np.random.default_rng(0)
    own, like, unlike = (rng.normal(mean, 1, (60, 40)) for mean in (2, 2, -2))
    source = np.arange(180) >= 60
    x = np.concatenate([own, like, unlike])
    weights = similarity_weights(x, source, patients_of(180), seed=0)
    assert weights[60:120].min() > weights[120:].max()
    assert weights.max() / weights[source].min() <= MOST**2 * (1 + 1e-9)


def test_a_source_like_the_own_images_weighs_one() -> None:
    """Where there is nothing to tell them by, no image weighs much more than another."""
    x, source = gaussians(500, 500, apart=0.0)
    weights = similarity_weights(x, source, patients_of(1000), seed=0)
    assert np.abs(weights - 1).max() < 0.3


def test_an_image_is_judged_by_other_patients() -> None:
    """What one image is like changes nothing between others of its own patient."""
    x, source = gaussians(40, 40, apart=1.0)
    names = [*patients_of(40), "a", "a", "a", *patients_of(37)]
    before, other = (
        similarity_weights(features, source, names, seed=0)
        for features in (x, np.where(np.arange(80)[:, None] == 40, 3.0, x))
    )
    assert other[40] > 1.5 * before[40]
    assert other[41] / other[42] == pytest.approx(before[41] / before[42], rel=1e-9)
    assert other[50] / other[60] != pytest.approx(before[50] / before[60], rel=1e-9)


def test_the_seed_fixes_every_bit() -> None:
    """The same seed deals the same folds."""
    x, source = gaussians(30, 30, apart=1.0)
    one, same, other = (similarity_weights(x, source, patients_of(60), seed=s) for s in (5, 5, 6))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("names", [["a", "a", "b", "c"], ["a", "b", "c", "c"]])
def test_one_patient_tells_nothing(names: list[str]) -> None:
    """With a single patient on either side all images weigh one."""
    x = np.arange(8.0).reshape(4, 2)
    source = np.array([False, False, True, True])
    assert similarity_weights(x, source, names, seed=0).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("count", [4, 6, 9])
def test_few_images_are_enough(count: int) -> None:
    """Two patients on each side, and as many components as they allow."""
    x = np.random.default_rng(0).normal(size=(count, 100)).astype(np.float32)
    weights = similarity_weights(x, np.arange(count) >= 2, patients_of(count), seed=0)
    assert np.isfinite(weights).all()
    assert weights.mean() == pytest.approx(1)


@pytest.mark.parametrize(
    ("source", "own"),
    [((100, 1), (1, 1)), ((100, 10), (2, 2)), ((120, 4), (4, 4)), ((40, 1), (2, 2)),
     ((60, 60), (1, 40)), ((1, 1), (200, 1))],
)  # fmt: skip
def test_patients_may_have_unequal_numbers_of_images(
    source: tuple[int, ...], own: tuple[int, ...]
) -> None:
    """A fold that is left with few images to fit on has fewer components, and no error."""
    counts = (*source, *own)
    names = [
        name for name, n in zip(patients_of(len(counts)), counts, strict=True) for _ in range(n)
    ]
    from_there = np.arange(len(names)) < sum(source)
    x = np.random.default_rng(0).normal(size=(len(names), 64))
    for seed in range(3):
        weights = similarity_weights(x, from_there, names, seed=seed)
        assert np.isfinite(weights).all()
        assert weights.min() > 0
        assert (weights[~from_there] == 1).all()
        assert weights[from_there].mean() == pytest.approx(1)


# Training


def from_elsewhere(images: Images, places: NDArray[np.bool_]) -> Images:
    """Return the images with a source at some places."""
    rows = [
        Row(i + 2, Path("/x.png"), 0, patient, patient, source="open" if there else "")
        for i, (patient, there) in enumerate(zip(images.patients, places.tolist(), strict=True))
    ]
    return dataclasses.replace(images, origins=tuple(Origin(row, "", Facts("")) for row in rows))


@pytest.fixture
def mixed(make_images: MakeImages) -> Images:
    """Twenty images, the last twelve of them from elsewhere."""
    return from_elsewhere(make_images(20), np.arange(20) >= 8)


def step(model: FederatedModel, images: Images, study: Study, *, kept: bool = False) -> None:
    features = frozen_features(model, CPU, 32) if kept else None
    batch = Batch("ct", np.arange(len(images)))
    train(model, {"ct": images}, [batch], study, device=CPU, features=features)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_a_step_follows_the_weighted_mean(
    class_weights: str, loss: str, make_study: MakeStudy, mixed: Images
) -> None:
    """A step of plain SGD is the gradient of the mean of weight times loss, by hand."""
    training = {
        "source_weighting": "similarity", "class_weights": class_weights, "loss": loss,
        "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "head_lr": 0.5,
        "train": "head",
    }  # fmt: skip
    study = make_study(training=training)
    model = build_model(study)
    mixed = dataclasses.replace(mixed, labels=(torch.arange(20) % 3 == 0).long())
    weights = source_weights(model, {"ct": mixed}, study, device=CPU)["ct"]
    with torch.no_grad():
        x = normalise(mixed.pixels[:], *channel_statistics(model, CPU))
        features = model.features(x)
    weight = model.get_parameter("heads.ct.weight").detach().clone().requires_grad_()
    log_p = F.log_softmax(
        features @ weight.T + model.get_parameter("heads.ct.bias").detach(), dim=1
    )
    log_p = log_p[torch.arange(20), mixed.labels]
    counts = torch.bincount(mixed.labels)
    each = -log_p if loss == "cross_entropy" else -((1 - log_p.exp()) ** 2) * log_p
    if class_weights == "balanced":
        each = each * (20 / (2 * counts))[mixed.labels]
    (weights * each).mean().backward()
    assert weight.grad is not None
    expected = weight.detach() - 0.5 * weight.grad
    assert weights[8:].std() > 0.05
    step(model, mixed, study)
    assert torch.allclose(model.get_parameter("heads.ct.weight"), expected, atol=1e-5)


def test_kept_features_give_the_same_weights(make_study: MakeStudy, mixed: Images) -> None:
    """Whether the whole network is run, or what is behind its frozen part."""
    study = make_study(training={"source_weighting": "similarity", "train": "head"})
    model = build_model(study)
    features = frozen_features(model, CPU, 32)
    assert features is not None
    plain, kept = (
        source_weights(model, {"ct": mixed}, study, device=CPU, features=of)["ct"]
        for of in (None, features)
    )
    assert torch.allclose(plain, kept, atol=1e-4)
    other = build_model(study)
    step(model, mixed, study)
    step(other, mixed, study, kept=True)  # what was kept can be trained on
    one, same = (network.get_parameter("heads.ct.weight") for network in (model, other))
    assert torch.allclose(one, same, atol=1e-5)


def test_without_the_key_or_a_source_nothing_changes(
    make_study: MakeStudy, make_images: MakeImages, mixed: Images
) -> None:
    """The network is the same to the last bit."""
    plain, weighted = make_study(), make_study(training={"source_weighting": "similarity"})
    own = make_images(20)

    def trained(images: Images, study: Study) -> str:
        model = build_model(plain)
        step(model, images, study)
        return digest(take(model, model.state_dict()))

    assert trained(mixed, plain) == trained(own, plain) == trained(own, weighted)
    everything = from_elsewhere(own, np.ones(20, bool))
    assert trained(everything, weighted) == trained(own, plain)
    assert trained(mixed, weighted) != trained(own, plain)


# The manifest


def rows_of(folder: Path, text: str) -> list[Row]:
    file = folder / "labels.csv"
    file.write_text("path,label,patient_id,split,source\n" + text, encoding="utf-8")
    return read_manifest(file, task="ct", classes=("a", "b"), key=KEY).rows


def test_a_source_is_for_training_alone(tmp_path: Path) -> None:
    """Its rows train whatever the key says, and so does all else of its patient."""
    lines = [f"{n}.png,a,Q{n},,open\n" for n in range(50)]
    lines += ["x.png,a,Q1,,\n", "y.png,a,Q2,train,open\n"]
    dealt = split_rows(rows_of(tmp_path, "".join(lines)), key=KEY, validation=0.4, test=0.5)
    assert {split: len(rows) for split, rows in dealt.items()} == {
        "train": 52, "validation": 0, "test": 0,
    }  # fmt: skip


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_source_is_a_fault(split: str, tmp_path: Path) -> None:
    """It is told with its line; a patient of both kinds who is held out is refused, too."""
    with pytest.raises(ManifestError, match=r"line 2, split: an image with a source"):
        rows_of(tmp_path, f"1.png,a,Q1,{split},open\n2.png,a,Q2,,open\n")
    rows = rows_of(tmp_path, f"1.png,a,Q1,{split},\n2.png,a,Q1,,open\n")
    with pytest.raises(SplitError):
        split_rows(rows, key=KEY, validation=0.2, test=0.2)


def test_a_site_trains_on_images_from_elsewhere(
    make_study: MakeStudy,
    make_hospital: Callable[..., SiteConfig],
    make_order: Callable[..., Order],
) -> None:
    """A round's change depends on the key, and is the same each time."""
    config = make_hospital()
    table = config.data["ct"].manifest
    header, *lines = table.read_text().splitlines()
    cells = [f"{line},{'open' if n % 4 < 2 and n < 8 else ''}" for n, line in enumerate(lines)]
    table.write_text("\n".join([f"{header},source", *cells]) + "\n", encoding="utf-8")

    def change(weighting: str) -> str:
        study = make_study(training={"source_weighting": weighting})
        reply = Site(config).answer(make_order(study)).reply
        assert reply.refusal == ""
        return digest({k: v for of in reply.groups.values() for k, v in of.items()})

    assert change("similarity") == change("similarity") != change("none")
