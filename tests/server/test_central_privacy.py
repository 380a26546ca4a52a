"""Laws of the bound on a site's change, of the noise, and of which networks can have them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.arrays import Array
from common.errors import StudyError
from common.layout import Layout
from common.privacy import CentralPrivacy
from common.study import Study
from server.begin import begin
from server.central_accounting import epsilon
from server.central_privacy import CARRIED, SiteNoise, check_layout, make_noise
from server.checkpoint import has_begun

NUMBERS = 400_000
NO_NOISE = 1e-9
ADAPTIVE: dict[str, Any] = {
    "clipping": "adaptive",
    "noise_multiplier": NO_NOISE,
    "count_noise": 1e-6,
}


def noise_of(**settings: Any) -> SiteNoise:
    return SiteNoise(CentralPrivacy(**{"noise_multiplier": 1.0} | settings))


def change(norm: float, size: int = 4) -> dict[str, dict[str, Array]]:
    """Return a change of this norm, in two groups."""
    half = np.full(size, norm / math.sqrt(2 * size), np.float32)
    return {"shared": {"w": half}, "head:t": {"b": half.copy()}}


def study_of(
    normalisation: str = "average", backbone: str = "test_resnet", **central: Any
) -> Study:
    return Study.parse(
        {
            "name": "noisy",
            "rounds": 2,
            "backbone": {
                "name": backbone, "weights": "none", "image_size": 32,
                "normalisation": normalisation,
            },
            "tasks": {"t": {"modality": "CT", "classes": ["a", "b"]}},
            "federation": {"weighting": "equal"},
            "central_privacy": {"noise_multiplier": 1.0} | central,
        }
    )  # fmt: skip


@pytest.mark.parametrize("sites", [1, 2, 7])
def test_the_noise_is_the_bound_times_the_multiplier_over_the_sites(sites: int) -> None:
    """Measured over many numbers, whatever their shape; the mean stays in its middle."""
    noise = noise_of(noise_multiplier=3.0, clip_norm=0.5)
    mean = np.full((4, NUMBERS // 4), 2.0, np.float32)
    noise.add_to(mean, sites)
    expected = 3.0 * 0.5 / sites
    assert noise.std(sites) == pytest.approx(expected)
    assert mean.std() == pytest.approx(expected, rel=0.01)  # nine standard errors
    assert mean.mean() == pytest.approx(2.0, abs=6 * expected / math.sqrt(NUMBERS))
    assert len(np.unique(mean)) > 0.9 * NUMBERS


def test_no_seed_gives_the_noise_again() -> None:
    """Two of one study, with NumPy's own generator begun alike, draw other noise; so do rounds."""
    drawn = []
    for _ in range(2):
        np.random.seed(1)  # noqa: NPY002 - what must not matter
        noise = noise_of()
        for _ in range(2):
            values = np.zeros(1000, np.float32)
            noise.add_to(values, 1)
            drawn.append(values)
    for number, one in enumerate(drawn):
        for other in drawn[:number]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


def test_the_bound_is_on_all_groups_together() -> None:
    """A change of 3 in one group and 4 in another has the length 5; a shorter one stays."""
    groups = {"shared": {"w": np.array([3.0])}, "head:t": {"b": np.array([[0.0], [4.0]])}}
    assert noise_of(clip_norm=1.0).factor_for(groups) == pytest.approx(0.2)
    assert noise_of(clip_norm=5.0).factor_for(groups) == 1.0
    assert noise_of(clip_norm=1.0).factor_for({"shared": {"w": np.zeros(3)}}) == 1.0


def close(noise: SiteNoise, norms: list[float]) -> dict[str, float | int]:
    noise.begin_round()
    for norm in norms:
        noise.factor_for(change(norm))
    return noise.close_round(len(norms))


def test_a_bound_adapts_by_its_equation() -> None:
    """Andrew et al. 2021: C exp(-rate (share within - quantile)), by hand over three rounds."""
    noise = noise_of(**ADAPTIVE, clip_norm=2.0, target_quantile=0.7, clip_learning_rate=0.5)
    norms, bound = [0.5, 1.0, 1.9, 3.0, 4.0], 2.0
    for _ in range(3):
        share = sum(norm <= bound for norm in norms) / len(norms)
        found = close(noise, norms)
        assert found["clip_norm"] == pytest.approx(bound, rel=1e-5)
        bound *= math.exp(-0.5 * (share - 0.7))
    assert noise.clip_norm == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize("first", [0.1, 50.0])
@pytest.mark.parametrize(("quantile", "low", "high"), [(0.55, 4.5, 7.5), (0.25, 1.5, 4.0)])
def test_a_bound_comes_to_its_quantile(
    first: float, quantile: float, low: float, high: float
) -> None:
    """From far below and far above, with noise on the count, it ends near that norm and stays."""
    settings = {"noise_multiplier": 0.2, "count_noise": 0.5, "target_quantile": quantile}
    noise = noise_of(clipping="adaptive", clip_norm=first, **settings)
    norms = [float(norm) for norm in range(1, 11)]
    bounds = [close(noise, norms)["clip_norm"] for _ in range(150)]
    assert bounds[0] == first
    assert all(low < bound < high for bound in bounds[-50:])


def test_a_fixed_bound_stays() -> None:
    """Whatever the changes are, each round has the bound of the study."""
    noise = noise_of(clip_norm=2.0)
    assert [close(noise, [100.0, 50.0])["clip_norm"] for _ in range(3)] == [2.0] * 3


@pytest.mark.parametrize("count_noise", [None, 0.6, 30.0])
def test_count_and_changes_together_cost_the_noise_multiplier(count_noise: float | None) -> None:
    """Andrew et al. 2021, theorem 1: the inverse squares of both noises make up that of all."""
    noise = noise_of(clipping="adaptive", count_noise=count_noise, clip_norm=2.0)
    for_changes = noise.std(5) * 5 / 2.0
    count = 1.0 if count_noise is None else count_noise
    assert for_changes**-2 + (2 * count) ** -2 == pytest.approx(1.0)
    assert for_changes > 1.0


def test_the_count_has_its_noise() -> None:
    """The logarithm of the bound wanders by rate times count noise over sites, and not aside."""
    moves = []
    for _ in range(2000):
        noise = noise_of(clipping="adaptive", count_noise=3.0, clip_learning_rate=0.1)
        close(noise, [0.5] * 10 + [2.0] * 10)
        moves.append(math.log(noise.clip_norm))
    assert np.std(moves) == pytest.approx(0.1 * 3.0 / 20, rel=0.1)  # six standard errors
    assert np.mean(moves) == pytest.approx(0.0, abs=6 * 0.015 / math.sqrt(2000))


def test_no_noise_throws_the_bound_away() -> None:
    """However much noise the count has, a round moves the bound by e to the rate at most."""
    noise = noise_of(clipping="adaptive", count_noise=1e300)
    for _ in range(20):
        before = noise.clip_norm
        close(noise, [1.0])
        assert abs(math.log(noise.clip_norm / before)) <= 0.2 * (1 + 1e-9)


def test_a_round_tells_what_it_was() -> None:
    """Multiplier, bound, sites, and epsilon over the rounds so far, as JSON can hold them."""
    noise = noise_of(noise_multiplier=2.0, clip_norm=0.5, delta=1e-6)
    for rounds in (1, 2, 3):
        found = close(noise, [1.0] * 4)
        assert found == {
            "noise_multiplier": 2.0, "clip_norm": 0.5, "sites": 4,
            "epsilon": epsilon(2.0, rounds, 1e-6), "delta": 1e-6,
        }  # fmt: skip
        assert json.loads(json.dumps(found)) == found


def test_replies_of_a_round_that_was_not_combined_are_forgotten() -> None:
    """They neither move the bound nor cost anything."""
    noise = noise_of(**ADAPTIVE)
    noise.begin_round()
    for _ in range(100):
        noise.factor_for(change(0.1))
    close(noise, [10.0, 10.0])
    assert noise.clip_norm == pytest.approx(math.exp(0.2 * 0.5), rel=1e-5)
    assert noise.rounds == 1


def test_a_state_goes_on(small_layout: Layout) -> None:
    """Bound and rounds come back; a study that has just begun has none to go on from."""
    study = study_of(**ADAPTIVE)
    layout = Layout({**small_layout.groups, "statistics": ()}, (), ())
    noise = make_noise(study, layout, {})
    assert noise is not None
    assert (noise.clip_norm, noise.rounds) == (1.0, 0)
    close(noise, [10.0, 10.0])
    again = make_noise(study, layout, {CARRIED: noise.state(), "shared": {}})
    assert again is not None
    assert (again.clip_norm, again.rounds) == (noise.clip_norm, 1)
    assert make_noise(study.model_copy(update={"central_privacy": None}), layout, {}) is None


def test_statistics_that_travel_are_refused(small_layout: Layout) -> None:
    """Before a site is asked, with what to do; a study without central privacy may have them."""
    study = study_of()
    with pytest.raises(StudyError, match="running statistics") as refused:
        make_noise(study, small_layout, {})
    assert '"frozen" or "local"' in refused.value.remedy
    check_layout(study.model_copy(update={"central_privacy": None}), small_layout)
    check_layout(study, Layout({**small_layout.groups, "statistics": ()}, (), ()))


@pytest.mark.parametrize(
    ("normalisation", "backbone"), [("local", "test_resnet"), ("average", "test_vit")]
)
def test_a_network_without_them_begins(normalisation: str, backbone: str, tmp_path: Path) -> None:
    """Batch normalisation that stays at the sites, or none at all, is a beginning."""
    begin(study_of(normalisation, backbone), tmp_path)
    assert has_begun(tmp_path)


def test_a_network_with_them_begins_nothing(tmp_path: Path) -> None:
    """Batch normalisation that is averaged is refused before anything is written."""
    with pytest.raises(StudyError, match="running statistics"):
        begin(study_of(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
