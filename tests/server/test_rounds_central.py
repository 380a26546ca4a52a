"""Laws of a whole study with central privacy, over a real grid with fake sites."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.arrays import Array
from common.errors import QuorumError, StudyError
from common.layout import Layout
from common.messages import Order, Reply
from common.study import Study
from server.central_accounting import epsilon
from server.checkpoint import MODEL
from server.history import HISTORY
from server.rounds import begin_study, run_study
from server.stored_arrays import StoredArrays

Make = Callable[..., Any]
LAYOUT = Layout(
    {"shared": ("w",), "statistics": (), "head:ct": ("b",)}, local=(), base=("counter",)
)
SIZE = 20_000
START: Mapping[str, Array] = {
    "w": np.zeros(SIZE, np.float32), "b": np.zeros(2, np.float32), "counter": np.array(3),
}  # fmt: skip
NO_NOISE = 1e-9
ADAPTIVE = {"clipping": "adaptive", "noise_multiplier": NO_NOISE, "count_noise": 1e-6}


def study_of(central: dict[str, Any], rounds: int = 2, **federation: Any) -> Study:
    return Study.parse(
        {
            "name": "noisy",
            "rounds": rounds,
            "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
            "tasks": {"ct": {"modality": "CT", "classes": ["a", "b"], "positive": "b"}},
            "federation": {"weighting": "equal", "deadline_s": 20.0} | federation,
            "central_privacy": central,
        }
    )


def of_length(length: float) -> Callable[[Reply, Order], Reply]:
    """Return what makes a site's change one of this length, over all its arrays."""

    def change(reply: Reply, order: Order) -> Reply:
        if order.kind != "train":
            return reply
        number = length / math.sqrt(sum(START[name].size for name in ("w", "b")))
        groups = {
            group: {n: np.full(own[n].shape, number, np.float32) for n in own}
            for group, own in order.groups.items()
        }
        return reply._replace(groups=groups, weights=dict.fromkeys(groups, 1.0))

    return change


def broken_in(number: int, length: float) -> Callable[[Reply, Order], Reply]:
    """Return what makes of a site one whose reply to a round is refused."""

    def change(reply: Reply, order: Order) -> Reply:
        made = of_length(length)(reply, order)
        return made._replace(weights={}) if order.round == number else made

    return change


@pytest.fixture
def play(make_site: Make, make_grid: Make) -> Callable[..., None]:
    """Return a function that begins a study with three sites, or goes on with it."""

    def run(study: Study, folder: Path, spoils: Mapping[str, Any]) -> None:
        sites = [make_site(name, spoil=spoil) for name, spoil in spoils.items()]
        begin_study(study, START, folder)
        grid = make_grid(sites)
        run_study(study, grid, LAYOUT, folder, sites=len(sites), watch=lambda _: None)

    return run


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / HISTORY).read_text("utf-8").splitlines()]


def model_of(folder: Path) -> dict[str, Array]:
    stored = StoredArrays(folder / MODEL, tuple(START))
    return {name: np.array(stored[name]) for name in stored}


def length_of(arrays: Mapping[str, Array]) -> float:
    return math.sqrt(sum(float(np.square(arrays[n], dtype=np.float64).sum()) for n in ("w", "b")))


def test_a_study_adds_up_to_shortened_changes(play: Make, tmp_path: Path) -> None:
    """With next to no noise each round moves the model by the mean of the shortened changes."""
    spoils = {"a": of_length(0.5), "b": of_length(4.0), "c": of_length(100.0)}
    play(study_of({"noise_multiplier": NO_NOISE, "clip_norm": 2.0}), tmp_path, spoils)
    found = model_of(tmp_path)
    assert length_of(found) == pytest.approx(2 * (0.5 + 2.0 + 2.0) / 3, rel=1e-4)
    assert found["w"].std() < 1e-6
    assert found["counter"] == 3


def test_each_round_says_what_was_spent(play: Make, tmp_path: Path) -> None:
    """A combined round has multiplier, bound, sites, and epsilon of all rounds; the last none."""
    central = {"noise_multiplier": 3.0, "clip_norm": 0.5, "delta": 1e-4}
    play(study_of(central, rounds=3), tmp_path, dict.fromkeys("abc", of_length(1.0)))
    found = [line["central_privacy"] for line in lines_of(tmp_path)]
    assert found == [
        {**central, "sites": 3, "epsilon": epsilon(3.0, rounds, 1e-4)} for rounds in (1, 2, 3)
    ] + [{}]


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm"])
@pytest.mark.parametrize("replies", [3, 2])
def test_the_noise_is_for_the_sites_that_replied(
    strategy: str, replies: int, play: Make, tmp_path: Path
) -> None:
    """A reply that is refused makes the mean one over fewer, with the noise that this needs."""
    spoils = {"a": of_length(0.1), "b": of_length(0.1), "c": of_length(0.1)}
    if replies == 2:
        spoils["c"] = broken_in(1, 0.1)
    study = study_of({"noise_multiplier": 2.0, "clip_norm": 0.5}, rounds=1, strategy=strategy)
    play(study, tmp_path, spoils)
    line = lines_of(tmp_path)[0]
    assert line["central_privacy"]["sites"] == len(line["answered"]) == replies
    assert model_of(tmp_path)["w"].std() == pytest.approx(2.0 * 0.5 / replies, rel=0.04)


def test_a_round_that_is_skipped_costs_nothing(play: Make, tmp_path: Path) -> None:
    """It is recorded, its model is not released, and neither bound nor epsilon moves."""
    study = study_of({**ADAPTIVE, "clip_norm": 1.0}, quorum=3)
    spoils = dict.fromkeys("abc", of_length(5.0))
    with pytest.raises(QuorumError):
        play(study, tmp_path, {**spoils, "c": broken_in(2, 5.0)})
    before = (tmp_path / MODEL).read_bytes()
    for _ in range(2):
        with pytest.raises(QuorumError):
            play(study, tmp_path, {**spoils, "c": broken_in(2, 5.0)})
    assert (tmp_path / MODEL).read_bytes() == before
    play(study, tmp_path, spoils)
    lines = lines_of(tmp_path)
    told = [(line["round"], line["combined"]) for line in lines]
    assert told == [(1, True), (2, False), (2, False), (2, False), (2, True), (3, False)]
    assert [line["central_privacy"] for line in lines if not line["combined"]] == [{}] * 4
    spent = [line["central_privacy"]["epsilon"] for line in lines if line["combined"]]
    assert spent == [epsilon(NO_NOISE, rounds, 1e-5) for rounds in (1, 2)]


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_restart_goes_on_with_the_bound(strategy: str, play: Make, tmp_path: Path) -> None:
    """The bound of each round is that of the equation, with a restart before the second and third.

    Andrew et al. 2021, by hand: two of three changes are longer than any bound here.
    """
    study = study_of({**ADAPTIVE, "clip_norm": 1.0}, rounds=3, quorum=3, strategy=strategy)
    lengths = {"a": 0.1, "b": 50.0, "c": 50.0}
    for number in (2, 3):
        spoils = {n: of_length(v) for n, v in lengths.items()} | {"b": broken_in(number, 50.0)}
        with pytest.raises(QuorumError):
            play(study, tmp_path, spoils)
    play(study, tmp_path, {name: of_length(length) for name, length in lengths.items()})
    found = [line["central_privacy"] for line in lines_of(tmp_path) if line["combined"]]
    step = math.exp(-0.2 * (1 / 3 - 0.5))
    assert [line["clip_norm"] for line in found] == pytest.approx([1.0, step, step**2], rel=1e-5)
    assert [line["sites"] for line in found] == [3, 3, 3]


def test_two_runs_of_one_study_differ(play: Make, tmp_path: Path) -> None:
    """The study's seed gives the noise to nobody."""
    study = study_of({"noise_multiplier": 1.0}, rounds=1)
    models = []
    for name in ("one", "two"):
        play(study, tmp_path / name, dict.fromkeys("abc", of_length(1.0)))
        models.append(model_of(tmp_path / name)["w"])
    assert abs(np.corrcoef(models[0], models[1])[0, 1]) < 0.06  # eight standard errors


def test_statistics_that_travel_stop_the_study_before_a_site_is_asked(
    make_site: Make, make_grid: Make, small_layout: Layout, small_arrays: Mapping[str, Array],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Whoever made the folder, the rounds look at the layout for themselves."""
    study, sites = study_of({"noise_multiplier": 1.0}), [make_site("a"), make_site("b")]
    begin_study(study, small_arrays, tmp_path)
    with pytest.raises(StudyError, match="running statistics"):
        run_study(study, make_grid(sites), small_layout, tmp_path, sites=2, watch=lambda _: None)
    assert [site.orders for site in sites] == [[], []]
