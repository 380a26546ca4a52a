"""Laws of ``client/cam_layers``: every backbone has a layer that maps can be made of."""

import numpy as np
import pytest
import torch
from torch import nn

from client.cam_layers import LEAST_CELLS, cam_layer
from client.explain import explain
from common.errors import StudyError
from common.models import FederatedModel, build_model
from common.study import Study

CPU = torch.device("cpu")
BACKBONES = (
    ("test_byobnet", 64, "stages.1"),
    ("test_convnext", 64, "stages.2.downsample.0"),
    ("test_convnext2", 64, "stages.2.downsample.0"),
    ("test_convnext3", 64, "stages.2.downsample.0"),
    ("test_efficientnet", 64, "blocks.2"),
    ("test_efficientnet_gn", 64, "blocks.2"),
    ("test_efficientnet_ln", 64, "blocks.2"),
    ("test_efficientnet_evos", 64, "blocks.2"),
    ("test_mambaout", 64, "stages.2.downsample.norm"),
    ("test_nfnet", 64, "stages.1"),
    ("test_resnet", 64, "layer2"),
    ("test_vit", 160, "blocks.5.norm1"),
    ("test_vit2", 96, "blocks.7.norm1"),
    ("test_vit3", 96, "blocks.8.norm1"),
    ("test_vit4", 96, "blocks.8.norm1"),
    ("squeezenet1_1", 96, "features.7"),
    ("googlenet", 96, "inception4e"),
    ("alexnet", 128, "features.11"),
    ("lenet5", 32, "features.4"),
    ("baseline_cnn", 96, "features.3"),
    ("resnet18", 96, "layer3"),
    ("densenet121", 96, "features.denseblock3"),
    ("mobilenetv2_100", 96, "blocks.4"),
    ("mobilenetv3_small_100", 96, "blocks.3"),
    ("convnext_atto", 96, "stages.3.downsample.0"),
    ("vit_tiny_patch16_224", 96, "blocks.11.norm1"),
    ("mixer_s32_224", 224, "norm"),
    ("pvt_v2_b0", 96, "stages.2"),
)
SLOW = (
    ("swin_tiny_patch4_window7_224", 224, "norm"),
    ("inception_v3", 128, "Mixed_6e"),
    ("vgg11_bn", 96, "features.27"),
    ("efficientnet_b0", 224, "blocks.6"),
    ("hrnet_w18_small", 96, "downsamp_modules.1.2"),
    ("maxvit_pico_rw_256", 256, "norm"),
)


def network(name: str, size: int) -> FederatedModel:
    return build_model(
        Study.parse(
            {
                "name": "study",
                "rounds": 1,
                "backbone": {"name": name, "weights": "none", "image_size": size},
                "tasks": {"ct": {"modality": "CT", "classes": ["a", "b", "c"]}},
            }
        )
    )


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [*BACKBONES, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)],
)
def test_every_backbone_has_a_layer_that_maps_are_made_of(
    name: str, size: int, expected: str
) -> None:
    """At random weights: a fine grid, finite maps of its shape, and a batch equals its images."""
    model = network(name, size)
    layer = cam_layer(model.backbone, size, CPU)
    assert layer.name == expected
    assert min(layer.grid) >= LEAST_CELLS
    generator = torch.Generator().manual_seed(0)
    x_BCSS, labels = torch.randn((2, 3, size, size), generator=generator), np.array([0, 2])
    for method in ("gradcam", "layercam"):
        both = explain(model, x_BCSS, "ct", labels, layer, method)
        assert both.maps.shape == (2, *layer.grid)
        assert both.maps.min() >= 0
        assert set(both.maps.max(axis=(1, 2)).tolist()) <= {0.0, 1.0}
        for i in range(2):
            alone = explain(model, x_BCSS[i : i + 1], "ct", labels[i : i + 1], layer, method)
            np.testing.assert_allclose(both.maps[i], alone.maps[0], atol=1e-3)
            np.testing.assert_allclose(both.logits[i], alone.logits[0], rtol=1e-4, atol=1e-4)


def test_a_layer_ahead_of_a_normalisation_is_passed_over() -> None:
    """HiResCAM ahead of ConvNeXt's normalisation is rounding errors; behind it, it is a map."""
    model = network("test_convnext", 64)
    layer = cam_layer(model.backbone, 64, CPU)
    ahead = layer._replace(module=model.get_submodule("backbone.stages.1"))
    x_BCSS, labels = torch.randn((1, 3, 64, 64)), np.array([1])
    assert not explain(model, x_BCSS, "ct", labels, ahead, "hirescam").maps.any()
    assert explain(model, x_BCSS, "ct", labels, layer, "hirescam").maps.any()


def test_the_finest_layer_is_taken_where_none_is_fine() -> None:
    """At 32 pixels a vision transformer of patches of 16 has 2 x 2 cells, and keeps them."""
    model = network("test_vit", 32)
    assert cam_layer(model.backbone, 32, CPU).grid == (2, 2)


def test_more_cells_are_had_from_a_layer_that_is_less_deep() -> None:
    """The deepest of the layers that have so many cells is taken."""
    backbone = network("test_resnet", 64).backbone
    grids = [cam_layer(backbone, 64, CPU, cells).grid for cells in (2, 3, 6, 16)]
    assert grids == [(2, 2), (4, 4), (8, 8), (16, 16)]


def test_looking_for_the_layer_leaves_no_trace() -> None:
    """Modes of all parts are those of before, and no hook stays."""
    model = network("test_resnet", 64).train()
    model.backbone.get_submodule("layer1").eval()
    before = [module.training for module in model.modules()]
    cam_layer(model.backbone, 64, CPU)
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_a_grid_is_refused() -> None:
    """A network of vectors alone has no place to point at."""
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8))
    with pytest.raises(StudyError, match="no layer with a grid"):
        cam_layer(backbone, 32, CPU)
