"""Where torch computes at a site."""

import torch

from common.errors import DataError


def device_of(name: str) -> torch.device:
    """Return the device that ``device`` of ``site.toml`` means.

    Raises:
        DataError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DataError(
            f"torch finds no device {name} here.",
            remedy="Set 'device' in site.toml to cpu or auto, or install torch with CUDA.",
        )
    return device
