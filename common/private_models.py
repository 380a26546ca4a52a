"""What a network must be to be trained with differential privacy: no image may touch another.

Noise covers what one patient does to its own gradient. A layer that mixes the images of a batch
gives each patient a hand in the others' gradients, and one that keeps statistics while training
writes them down without any noise.
"""

from timm.layers import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from common.errors import PrivacyError
from common.models import FederatedModel


def check_private(model: FederatedModel) -> None:
    """Refuse a network with a layer that mixes images or keeps statistics while training.

    Nothing is converted: group norm in the place of a pretrained batch norm loses most of what
    the weights knew. A batch norm in the frozen part of a network that ``build_model`` made is
    none any more: timm replaced it by constants, which do not change in training mode either.

    Raises:
        PrivacyError: Lists every such layer.
    """
    found = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if _is_shared(module)
    ]
    if found:
        raise PrivacyError(
            f"{len(found)} layers mix the images of a batch or keep statistics of them:\n"
            + "\n".join(f"  - {layer}" for layer in found),
            remedy='Use backbone.normalisation = "frozen", or a backbone with group or layer norm.',
        )


def _is_shared(module: nn.Module) -> bool:
    # timm's BatchNormAct2d and torch's SyncBatchNorm derive from _BatchNorm; Opacus'
    # ModuleValidator looks for exact types and lets the former pass.
    if isinstance(module, _InstanceNorm):
        return module.track_running_stats
    return isinstance(module, _BatchNorm | EvoNorm2dB0 | EvoNorm2dB1 | EvoNorm2dB2)
