"""Laws of ``client/faithfulness``: curves by hand, and a sanity check that tells networks apart."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.cam_layers import cam_layer
from client.faithfulness import STEPS, curve, faithfulness, likeness, randomised
from common.models import FederatedModel, build_model
from common.study import Study


class Corner(nn.Module):
    """A network that sees the mean of the upper left quarter alone."""

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """Return two logits, shape (B, 2)."""
        mean_B = x_BCSS[:, :, :8, :8].mean(dim=(1, 2, 3))
        return torch.stack([0 * mean_B, 4 * mean_B], dim=1)


@pytest.fixture
def network(make_study: Callable[..., Study]) -> FederatedModel:
    return build_model(make_study(backbone={"image_size": 64}))


def test_a_curve_exchanges_the_highest_pixels_first() -> None:
    """With the map on the quarter that counts, the curve is through after a quarter of it."""
    start, end = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    map_SS = np.zeros((16, 16), np.float32)
    map_SS[:8, :8] = 1
    found = curve(Corner(), start, end, 1, map_SS)
    shares = np.minimum(np.arange(STEPS + 1) / STEPS / 0.25, 1)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-4 * shares)), atol=1e-6)
    late = curve(Corner(), start, end, 1, 1 - map_SS)
    np.testing.assert_allclose(late[: 3 * STEPS // 4 + 1], 0.5, atol=1e-6)


def test_a_true_map_inserts_early_and_deletes_early(network: FederatedModel) -> None:
    """Of two maps the one on what the network sees has more insertion, less deletion, more ROAD."""
    network.backbone = Corner()
    network.heads["ct"] = nn.Identity()
    rng = torch.Generator().manual_seed(0)
    x_BCSS = 0.05 * torch.randn((2, 3, 16, 16), generator=rng)
    x_BCSS[:, :, :8, :8] += 1
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, :2, :2] = 1
    maps[1, 2:, 2:] = 1
    right, wrong = faithfulness(network, x_BCSS, "ct", np.array([1, 1]), maps)
    assert right.insertion > wrong.insertion
    assert right.deletion < wrong.deletion - 0.1
    assert right.road > wrong.road + 0.1


def test_figures_are_the_same_each_time(network: FederatedModel) -> None:
    """The imputer's noise is seeded, torch's own generator is left alone, and so are modes."""
    x_BCSS = torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    maps = np.random.default_rng(0).random((1, 8, 8), np.float32)
    network.train()
    state = torch.get_rng_state()
    first = faithfulness(network, x_BCSS, "ct", np.array([1]), maps)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert first == faithfulness(network, x_BCSS, "ct", np.array([1]), maps)


def test_a_randomised_network_keeps_the_numbers_and_loses_their_order(
    network: FederatedModel,
) -> None:
    """Each array holds the same values elsewhere; the network itself is left as it is."""
    kept = {name: p.detach().clone() for name, p in network.named_parameters()}
    other, again = randomised(network, 1), randomised(network, 1)
    for name, value in other.named_parameters():
        assert torch.equal(value.flatten().sort().values, kept[name].flatten().sort().values)
        assert torch.equal(value, again.get_parameter(name))
        assert torch.equal(network.get_parameter(name), kept[name])
    assert not torch.equal(other.get_parameter("heads.ct.weight"), kept["heads.ct.weight"])


def test_maps_of_one_network_are_alike_and_of_a_randomised_one_less(
    network: FederatedModel,
) -> None:
    """The rank correlation with itself is 1; with randomised weights it is lower."""
    x_BCSS = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    labels = np.array([1, 1])
    layer = cam_layer(network.backbone, 64, torch.device("cpu"))
    same = likeness(network, network, x_BCSS, "ct", labels, layer, "layercam")
    other = likeness(network, randomised(network, 0), x_BCSS, "ct", labels, layer, "layercam")
    assert same == pytest.approx([1, 1])
    assert all(value is None or value < 0.9 for value in other)
