"""Laws of a deployed federation's daemons."""

from pathlib import Path

import pytest

from common.errors import ServiceError
from simulations.deployment import deployment


def test_a_daemon_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    """What it said last is the error: here, a folder too deep for the vault's socket."""
    hospital = tmp_path / ("x" * 100) / "site-1"
    hospital.mkdir(parents=True)
    text = 'name = "site-1"\n[data.ct]\nmanifest = "labels.csv"\n'
    (hospital / "site.toml").write_text(text, encoding="utf-8")
    fault = "path of the vault's socket is too long"
    with (
        deployment(tmp_path / "coordinator") as deployed,
        pytest.raises(ServiceError, match=fault) as told,
    ):
        deployed.start_hospital(hospital)
    assert f"exit code {ServiceError.exit_code}" in told.value.message
    assert "at most 107 bytes" in told.value.message
