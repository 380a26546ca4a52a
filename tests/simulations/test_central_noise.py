"""Laws of central privacy with real sites, which train."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from common.errors import StudyError
from common.study import Study
from common.weights import layout_of, take
from server.initial_weights import initial_model
from simulations.federation import find_hospitals, play

StudyOf = Callable[..., Study]


def noisy(study_of: StudyOf, normalisation: str, noise_multiplier: float) -> Study:
    return study_of(
        "spots",
        rounds=1,
        backbone={"normalisation": normalisation},
        federation={"weighting": "equal", "quorum": 2},
        central_privacy={"noise_multiplier": noise_multiplier, "clip_norm": 0.01},
    )


def test_real_sites_move_the_model_by_the_bound_at_most(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """With next to no noise the whole change of a round is no longer than the bound."""
    study = noisy(study_of, "local", 1e-9)
    folders = find_hospitals(small)[:2]
    records = play(study, folders, tmp_path / "run", threads=1).outcome.records
    model = initial_model(study).model
    start = take(model, model.state_dict())
    found = load_file(tmp_path / "run" / "model.safetensors")
    travelling = [n for names in layout_of(model, study).groups.values() for n in names]
    moved = np.sqrt(sum(np.square(found[n].astype(float) - start[n]).sum() for n in travelling))
    assert 0 < moved <= 0.01 * (1 + 1e-4)
    assert records[0].central_privacy["sites"] == 2


def test_averaged_statistics_are_refused_before_an_image_is_read(
    small: Path, study_of: StudyOf, tmp_path: Path
) -> None:
    """The network decides, so it is built; nothing is written."""
    with pytest.raises(StudyError, match="running statistics"):
        play(noisy(study_of, "average", 1.0), find_hospitals(small)[:2], tmp_path / "run")
    assert not (tmp_path / "run").exists()
