"""What all tests share: where the real data lie, and quiet libraries."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ["COLUMNS"] = "200"  # rich asks once, when a console is made, and cuts what is wider

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights; without it the test is skipped."""
    folder = Path(os.environ.get("RAREFED_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; set RAREFED_SHARED to their folder")
    return folder
