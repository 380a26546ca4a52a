"""What a site knows of its own images, so that it can warn of others; learnt once and kept."""

import logging

import torch

from client.config import SiteConfig
from client.dataset import TaskData
from client.final_model import FinalModel
from client.out_of_distribution import FEWEST, Known, learn, load, save
from client.prepared import deal, load_tasks
from common.errors import DataError
from common.files import sha256_of


def known_images(
    config: SiteConfig, final: FinalModel, task: str, *, device: torch.device, log: logging.Logger
) -> tuple[Known | None, str]:
    """Return what is known of the site's own images, learnt once for each network and manifest.

    Returns:
        What is known, or None; and why there is none, in words.

    Raises:
        DivergedError: The network gives no finite features.
    """
    if task not in config.data:
        return None, f"This site has no images of {task}: likeness to them is unknown."
    file = config.state / "likeness" / f"{final.study.digest()[:16]}-{task}.safetensors"
    try:
        notes = {"model": final.sha256, "manifest": sha256_of(config.data[task].manifest)}
        if (known := load(file, notes)) is not None:
            return known, ""
        data = _own_images(config, final, task, log)
    except (DataError, OSError) as error:
        log.warning("no likeness to the images of %s: %s", task, error)
        return None, "The site's own images cannot be read: likeness to them is unknown."
    known = learn(final.model, data, device=device)
    if known is None:
        why = f"Fewer than {FEWEST} of the site's images are held out: likeness is unknown."
        return None, why
    save(known, file, notes)
    return known, ""


def _own_images(config: SiteConfig, final: FinalModel, task: str, log: logging.Logger) -> TaskData:
    """Read the site's images of a task, from the cache where they are kept."""
    dealt = deal(final.study, config)
    return load_tasks(final.study, config, {task: dealt[task]}, log)[task]
