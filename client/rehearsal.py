"""One training step of a study on invented images, to see what this machine gives it."""

from dataclasses import dataclass

import numpy as np
import torch

from client.anchor import initial_of, near_of
from client.dataset import Batch, Images
from client.train import train
from common.models import FederatedModel, build_model
from common.study import Study


@dataclass(frozen=True)
class Gpu:
    """What a graphics card has, and what a step of the study took of it, in bytes."""

    name: str
    total: int
    free: int
    """Before the step."""
    peak: int | None
    """Most that was in use during the step; None when the step did not fit."""


def size_of(model: FederatedModel) -> int:
    """Return the bytes of all arrays of the network."""
    return sum(value.nbytes for value in model.state_dict().values())


def model_of(study: Study) -> FederatedModel:
    """Build the study's network.

    Raises:
        UnknownBackboneError: timm knows no such model.
        StudyError: The backbone cannot be what the study asks of it.
    """
    return build_model(study)


def find_cuda(device: str) -> torch.device | None:
    """Return the graphics card that ``device`` of ``site.toml`` means, if it is there."""
    wanted = torch.device("cuda" if device == "auto" else device)
    found = torch.cuda.is_available() and (wanted.index or 0) < torch.cuda.device_count()
    return wanted if found else None


def try_gpu(model: FederatedModel, study: Study, device: torch.device) -> Gpu:
    """Train one full batch on the graphics card and measure its memory."""
    name = torch.cuda.get_device_name(device)
    free, total = torch.cuda.mem_get_info(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        one_step(model, study, device)
        # Reserved, not only allocated: what the allocator holds is gone for others.
        return Gpu(name, total, free, torch.cuda.max_memory_reserved(device))
    except torch.cuda.OutOfMemoryError:
        return Gpu(name, total, free, None)
    finally:
        model.to("cpu")
        torch.cuda.empty_cache()


def one_step(model: FederatedModel, study: Study, device: torch.device) -> float:
    """Train ``model`` in place on one batch of random colour images; return the loss."""
    task, settings = next(iter(study.tasks.items()))
    count, size = study.training.batch_size, study.backbone.image_size
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.random((count, 3, size, size), dtype=np.float32))
    labels = torch.arange(count) % len(settings.classes)
    images = Images(pixels.to(torch.float16), labels, tuple(map(str, range(count))))
    model.to(device).to(memory_format=torch.channels_last)
    batch = Batch(task, np.arange(count))
    near = near_of(model, study, initial_of(model, study))
    return train(model, {task: images}, [batch], study, device=device, near=near).loss
