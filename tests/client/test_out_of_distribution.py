"""Laws of the warning of images that are unlike those of the site."""

import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from client.dataset import Images, TaskData
from client.out_of_distribution import (
    FEWEST,
    LEVEL,
    NEIGHBOURS,
    Known,
    distances,
    learn,
    likeness,
    load,
    pooled_features,
    save,
    unit,
)
from common.models import build_model
from common.study import Study

CPU = torch.device("cpu")


def cloud(n: int, seed: int, shift: float = 0.0) -> NDArray[np.float32]:
    """Return vectors about (1, 1, ...), or about another direction."""
    rng = np.random.default_rng(seed)
    middle = np.ones(12)
    middle[:6] -= shift
    return (middle + 0.3 * rng.normal(size=(n, 12))).astype(np.float32)


def known_of(n: int, m: int, seed: int) -> Known:
    trained = unit(cloud(n, seed))
    return Known(trained, np.sort(distances(trained, unit(cloud(m, seed + 1)))))


def test_distances_are_those_of_scikit_learn() -> None:
    """The distance is that to the k-th nearest of the training images, for any number of images."""
    trained, asked = unit(cloud(40, 0)), unit(cloud(600, 1))
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(trained.astype(float))
    expected = nearest.kneighbors(asked.astype(float))[0][:, -1]
    np.testing.assert_allclose(distances(trained, asked), expected, atol=1e-3)


def test_the_length_of_features_does_not_matter() -> None:
    """Only their direction is compared, and features of zeros are no error."""
    known = known_of(50, 40, 2)
    asked = cloud(5, 9)
    same = [one.p_value for one in likeness(known, 7 * asked)]
    assert same == [one.p_value for one in likeness(known, asked)]
    assert np.isfinite(distances(known.trained, unit(np.zeros((1, 12), np.float32)))).all()


def test_images_like_the_sites_own_are_seldom_warned_of() -> None:
    """Of images of the same kind no more than ``LEVEL`` are warned of, over many sites."""
    warned = [
        np.mean([one.far for one in likeness(known_of(60, 59, seed), cloud(100, seed + 2))])
        for seed in range(0, 300, 3)
    ]
    assert np.mean(warned) == pytest.approx(LEVEL, abs=0.012)


def test_images_of_another_kind_are_warned_of() -> None:
    """Where features point elsewhere, every image is warned of, with the least p-value there is."""
    known = known_of(60, 59, 0)
    found = likeness(known, cloud(20, 5, shift=3.0))
    assert all(one.far for one in found)
    assert found[0].p_value == pytest.approx(1 / 60)


def test_with_few_held_out_images_nothing_is_said(
    make_study: Callable[..., Study], make_images: Callable[..., Images]
) -> None:
    """Below ``FEWEST`` held-out images no p-value could be small enough, so there is no answer."""
    model = build_model(make_study()).eval()
    none, train = make_images(0), make_images(12)
    for held, enough in ((FEWEST - 1, False), (FEWEST, True)):
        splits = {"train": train, "validation": make_images(held, seed=1), "test": none}
        assert (learn(model, TaskData(splits, 0), device=CPU) is not None) is enough
    few = {"train": make_images(4), "validation": make_images(30), "test": none}
    assert learn(model, TaskData(few, 0), device=CPU) is None


def test_features_are_the_networks_own(
    make_study: Callable[..., Study], make_images: Callable[..., Images]
) -> None:
    """The head on the pooled features gives what the whole network gives."""
    model, images = build_model(make_study()).eval(), make_images(6, channels=3)
    features = torch.from_numpy(pooled_features(model, images, device=CPU))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    with torch.inference_mode():
        expected = model((images.pixels[:].float() - mean) / std, "ct")
        torch.testing.assert_close(model.heads["ct"](features), expected)


def test_what_is_kept_is_private_and_for_one_network(tmp_path: Path) -> None:
    """It is read back bit for bit with the same notes; with others, or damaged, it is nothing."""
    known, file = known_of(20, 30, 0), tmp_path / "likeness" / "a.safetensors"
    assert load(file, {}) is None
    save(known, file, {"model": "a"})
    found = load(file, {"model": "a"})
    assert found is not None
    assert all(np.array_equal(one, two) for one, two in zip(found, known, strict=True))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load(file, {"model": "b"}) is None
    file.write_bytes(file.read_bytes()[:100])
    assert load(file, {"model": "a"}) is None
