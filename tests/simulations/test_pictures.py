"""Laws of the curves."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from server.history import RoundRecord
from simulations.pictures import draw_curves


def record(number: int, auroc: float | None, *tasks: str) -> RoundRecord:
    figures: dict[str, Any] = {"auroc": auroc, "balanced_accuracy": 0.5, "loss": 0.7}
    splits = {split: {"pooled": figures} for split in ("validation", "test")}
    found = dict.fromkeys(tasks, splits)
    return RoundRecord(number, model_round=number - 1, trained=True, tasks=found)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_curves_are_a_picture(tmp_path: Path) -> None:
    """The file is a PNG with lines in it, made with its folder."""
    file = tmp_path / "new" / "curves.png"
    draw_curves([record(1, 0.5, "a", "b"), record(2, 0.9, "a", "b")], file)
    picture = pixels(file)
    assert picture.shape[1] > picture.shape[0] > 100
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_an_undefined_figure_is_left_out(tmp_path: Path) -> None:
    """A round without an AUROC, or without a task, is a gap and no failure."""
    records = [record(1, None, "a"), record(2, 0.8), record(3, 0.9, "a")]
    draw_curves(records, tmp_path / "gap.png")
    draw_curves([record(1, None, "a")], tmp_path / "nothing.png")
    draw_curves([record(1, 0.5, "a"), record(3, 0.9, "a")], tmp_path / "full.png")
    full, gap = pixels(tmp_path / "full.png"), pixels(tmp_path / "gap.png")
    assert full.shape == gap.shape
    assert not np.array_equal(full, gap)


def test_the_same_records_give_the_same_picture(tmp_path: Path) -> None:
    """Drawing has no chance in it."""
    for name in ("one.png", "two.png"):
        draw_curves([record(1, 0.5, "a"), record(2, 0.6, "a")], tmp_path / name)
    assert np.array_equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png"))
