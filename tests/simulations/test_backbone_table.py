"""Laws of the table of backbones: what the documents say is what the networks have."""

from pathlib import Path

import pytest

from simulations.backbone_table import BACKBONES, COLUMNS, row_of

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
QUICK = {"alexnet", "baseline_cnn", "convnext_atto", "lenet5", "resnet18", "squeezenet1_1"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BACKBONES],
)
def test_a_backbones_row_is_what_was_measured(name: str) -> None:
    """The line in the documents is the one that the network gives."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert f"| {' | '.join(COLUMNS)} |" in lines
    assert [line for line in lines if line.startswith(f"| `{name}` |")] == [row_of(name)]
