"""What all tests share: where the real data lie, and quiet libraries."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
# Several processes run tests: threads of one would wait for those of another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "200"  # rich asks once, when a console is made, and cuts what is wider

ROOT = Path(__file__).resolve().parent.parent
LONGEST = (
    "test_guides.py",
    "simulations/test_federation.py",
    "server/test_rounds_killed.py",
    "simulations/test_cli.py",
    "simulations/test_ensembles.py",
    "simulations/test_lab",
    "deployment/",
    "server/test_daemon.py",
    "simulations/",
)
"""Tests that come first, by the beginning of their path: several processes share the files, and
none is to wait at the end for one that has just begun on a long one. Those of guides, deployment
and daemon wait most of their time for processes of their own, so they come while others compute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first, in the order of ``LONGEST``; all else stays as it is."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        return next((n for n, start in enumerate(LONGEST) if path.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights; without it the test is skipped."""
    folder = Path(os.environ.get("RAREFED_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; set RAREFED_SHARED to their folder")
    return folder
