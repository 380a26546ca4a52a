"""Laws of how a study ends, over a real grid with fake sites that train nothing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from common import metrics, metrics_wire
from common.arrays import Array
from common.errors import OutputError
from common.layout import Layout
from common.messages import Order, Reply
from common.study import Study
from server import endings, scores
from server.checkpoint import MODEL, find_checkpoint, model_round_of
from server.history import RoundRecord
from server.rounds import Outcome

Make = Callable[..., Any]
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
LABELS = np.array([0, 0, 1, 1])
START, CHANGE = 0.25, 0.5
"""What ``backbone.scalar`` is at first, and by how much each round changes it."""


def state_with(auroc: float) -> dict[str, Array]:
    """Return the state of two patients with four images, with one of ``LEVELS`` as its AUROC."""
    positives = {0.0: (-3, -3), 0.25: (-3, 0), 0.5: (0, 0), 0.75: (0, 3), 1.0: (3, 3)}[auroc]
    logits = np.zeros((4, 2))
    logits[:, 1] = (-1, 1, *positives)
    state = metrics.update(metrics.zero(2, 1), logits, LABELS, 1)
    return dict(metrics_wire.to_arrays(metrics.with_patients(state, 2)))


def trained_for(order: Order) -> float:
    """Return how many rounds the model has gone through that came with an order."""
    return (float(order.groups["shared"]["backbone.scalar"]) - START) / CHANGE


@pytest.fixture
def play(make_site: Make, make_grid: Make, play_on: Make) -> Callable[..., Outcome]:
    """Return a function that plays a study whose models have these AUROCs, by their rounds."""

    def run(
        study: Study,
        folder: Path,
        aurocs: Sequence[float],
        orders: list[Order] | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> Outcome:
        def spoil(reply: Reply, order: Order) -> Reply:
            watch()
            if orders is not None and reply.site == "a":
                orders.append(order)
            number = trained_for(order)
            found = aurocs[int(number)] if number < len(aurocs) else 0.0
            return reply._replace(metrics={key: state_with(found) for key in reply.metrics})

        sites = [make_site(name, change=CHANGE, spoil=spoil) for name in ("a", "b")]
        outcome: Outcome = play_on(study, make_grid(sites), folder)
        return outcome

    return run


def arrays_after(rounds: int, study: Make, play: Make, folder: Path) -> dict[str, Array]:
    """Return the last model of a study of so many rounds."""
    play(study(rounds=rounds), folder / f"plain-{rounds}", LEVELS)
    return load_file(folder / f"plain-{rounds}" / MODEL)


def record_of(number: int, auroc: float) -> RoundRecord:
    """Return the record of a round whose arriving model had this AUROC."""
    tasks = {"ct": {"validation": {"pooled": {"auroc": auroc}}}}
    return RoundRecord(number, number - 1, trained=True, combined=True, tasks=tasks)


def same(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one
    )


def told(records: Sequence[RoundRecord]) -> list[tuple[int, int, bool]]:
    return [(record.round, record.model_round, record.trained) for record in records]


STOPPING = {"patience": 2}
RISING_THEN_FLAT = (0.0, 0.5, 0.75, 0.75, 0.75, 1.0, 1.0, 1.0, 1.0)


def test_a_study_that_gains_nothing_more_ends_with_a_measurement(
    make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """The exchange after the round in which that shows trains nothing, and says why it is last."""
    study = make_small_study(rounds=8, early_stopping=STOPPING)
    orders: list[Order] = []
    outcome = play(study, tmp_path, RISING_THEN_FLAT, orders)
    # The model of round 2 is not bettered by those of 3 and 4; the latter is measured in round 5.
    assert told(outcome.records) == [(n, n - 1, n < 6) for n in range(1, 7)]
    assert [order.kind for order in orders] == ["train"] * 5 + ["evaluate"]
    assert outcome.records[-1].stopped == (
        "Stopped early after round 5 of 8: the validation AUROC of round 2, 0.7500, was not "
        "bettered in 2 rounds."
    )
    assert [record.stopped for record in outcome.records[:-1]] == [""] * 5
    assert find_checkpoint(tmp_path, study).round == 5
    assert same(load_file(tmp_path / MODEL), arrays_after(5, make_small_study, play, tmp_path))


def test_a_study_that_has_stopped_early_trains_no_more(
    make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """Begun again it is measured again, although the last model was the best of all."""
    study = make_small_study(rounds=8, early_stopping=STOPPING)
    first = play(study, tmp_path, RISING_THEN_FLAT)
    assert first.records[-1].score == 1.0
    before = (tmp_path / MODEL).read_bytes()
    again = play(study, tmp_path, RISING_THEN_FLAT)
    assert told(again.records)[6:] == [(6, 5, False)]
    assert again.records[-1].stopped == first.records[-1].stopped
    assert (tmp_path / MODEL).read_bytes() == before


def test_a_study_that_goes_on_gaining_has_all_its_rounds(
    make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """What would have ended it after its last round has not stopped it early."""
    study = make_small_study(rounds=4, early_stopping={"patience": 1})
    outcome = play(study, tmp_path, (0.0, 0.25, 0.5, 0.5, 0.75))
    assert [record.round for record in outcome.records] == [1, 2, 3, 4, 5]
    assert outcome.records[-1].stopped == ""


@pytest.mark.parametrize(
    ("training", "stages", "last"),
    [
        ({}, 0, 5),
        ({"phases": [{"rounds": 5, "train": "head"}]}, 0, 10),
        ({"unfreeze_every": 2, "train": "last:2"}, 9, 9),
        ({"unfreeze_every": 2}, 3, 11),
    ],
)
def test_no_phase_before_the_last_one_ends_a_study(
    training: dict[str, Any], stages: int, last: int, make_small_study: Make
) -> None:
    """Of flat scores the patience counts from the first round that trains all: here it is 3.

    The model of round ``last - 4`` is the first of the last phase. Three more that are no better
    are known after round ``last``.
    """
    values = make_small_study(rounds=30, early_stopping={"patience": 3}).model_dump(
        exclude_none=True, mode="json"
    )
    backbone = {"name": "test_resnet", "weights": "start.safetensors"}
    study = Study.parse(values | {"training": training, "backbone": backbone})
    layout = Layout({}, (), (), stages=stages)
    records = [record_of(n, 0.5) for n in range(1, 31)]
    found = [endings.stopped(study, layout, records[:n]) for n in range(1, 31)]
    assert [n for n, said in enumerate(found, 1) if said] == list(range(last, 30))
    assert found[last - 1].startswith(
        f"Stopped early after round {last} of 30: the validation AUROC of round {last - 4}, 0.5000"
    )


def test_a_rise_within_the_last_phase_counts_from_its_own_beginning(
    make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """Scores that fall as all layers begin to train, and then rise, end no study."""
    values = make_small_study(rounds=8, early_stopping=STOPPING).model_dump(exclude_none=True)
    phases = [{"rounds": 2, "train": "head"}]
    backbone = {"name": "test_resnet", "weights": "start.safetensors", "image_size": 32}
    study = Study.parse(values | {"training": {"phases": phases}, "backbone": backbone})
    outcome = play(study, tmp_path, (0.0, 1.0, 1.0, 0.25, 0.5, 0.75, 0.5, 0.5, 0.5))
    assert [record.round for record in outcome.records] == [*range(1, 10)]
    assert outcome.records[-1].stopped == ""


def test_the_best_model_takes_the_place_of_the_last(
    make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """It is the best round's, array for array; it is measured, and sites are told which it is."""
    study = make_small_study(rounds=5, keep="best")
    orders: list[Order] = []
    outcome = play(study, tmp_path, (1.0, 0.5, 0.75, 0.75, 0.25, 0.5), orders)
    assert told(outcome.records)[5:] == [(6, 5, False), (7, 2, False)]
    assert [(order.kind, order.model_round) for order in orders[4:]] == [
        ("train", None), ("evaluate", None), ("evaluate", 2)
    ]  # fmt: skip
    assert trained_for(orders[-1]) == 2
    assert outcome.records[-1].score == 0.75
    assert same(load_file(tmp_path / MODEL), arrays_after(2, make_small_study, play, tmp_path))
    done = find_checkpoint(tmp_path, study)
    assert (done.round, done.model_round, done.has_ended) == (5, 2, True)
    assert model_round_of(tmp_path / MODEL) == 2
    assert not list(tmp_path.glob("model-*"))


def test_the_last_model_may_be_the_best(make_small_study: Make, play: Make, tmp_path: Path) -> None:
    """Then its measurement is the last one."""
    study = make_small_study(rounds=3, keep="best")
    outcome = play(study, tmp_path, (1.0, 0.5, 0.75, 1.0))
    assert told(outcome.records)[3:] == [(4, 3, False)]
    assert same(load_file(tmp_path / MODEL), arrays_after(3, make_small_study, play, tmp_path))
    assert not list(tmp_path.glob("model-*"))


@pytest.mark.parametrize("aurocs", [(1.0, 0.5, 0.75, 0.5), (1.0, 0.5, 0.5, 0.75)])
def test_what_a_study_has_ended_with_stays(
    aurocs: tuple[float, ...], make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """Begun again it measures that model again, whatever the sites say of it now."""
    study = make_small_study(rounds=3, keep="best")
    first = play(study, tmp_path, aurocs)
    before = (tmp_path / MODEL).read_bytes()
    again = play(study, tmp_path, (0.0,) * 5)
    assert told(again.records)[len(first.records) :] == told(first.records)[-1:]
    assert (tmp_path / MODEL).read_bytes() == before


def test_a_study_without_scores_ends_with_its_last_model(
    make_small_study: Make, make_site: Make, make_grid: Make, play_on: Make, tmp_path: Path
) -> None:
    """Where no site reports validation figures nothing is stopped, and none is the best."""

    def silent(reply: Reply, _order: Order) -> Reply:
        return reply._replace(metrics={})

    study = make_small_study(rounds=4, keep="best", early_stopping={"patience": 1})
    sites = [make_site(name, spoil=silent) for name in ("a", "b")]
    outcome = play_on(study, make_grid(sites), tmp_path)
    assert told(outcome.records) == [(n, n - 1, n < 5) for n in range(1, 6)]
    assert model_round_of(tmp_path / MODEL) == 4


@pytest.mark.parametrize(("rounds", "last"), [(5, 3), (5, 2), (4, 4), (3, 1)])
def test_the_average_is_numpys_mean_of_the_last_models(
    rounds: int, last: int, make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """Every travelling array is the mean over the last rounds; counters are as they were."""
    study = make_small_study(rounds=rounds, average_last=last)
    orders: list[Order] = []
    outcome = play(study, tmp_path, LEVELS, orders)
    of = range(rounds - last + 1, rounds + 1)
    models = [arrays_after(n, make_small_study, play, tmp_path) for n in of]
    expected = {n: np.mean([m[n] for m in models], axis=0, dtype=float) for n in models[0]}
    found = load_file(tmp_path / MODEL)
    assert same(found, {n: expected[n].astype(models[0][n].dtype) for n in expected})
    assert np.array_equal(found["counter"], models[-1]["counter"])
    assert outcome.records[-1].averaged == (list(of) if last > 1 else [])
    assert trained_for(orders[-1]) == pytest.approx(np.mean(of))
    assert not list(tmp_path.glob("model-*"))


def test_a_study_that_stops_early_averages_the_rounds_that_it_had(
    make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """The last rounds are those before it stopped."""
    study = make_small_study(rounds=8, average_last=3, early_stopping=STOPPING)
    outcome = play(study, tmp_path, RISING_THEN_FLAT)
    assert (outcome.records[-1].round, outcome.records[-1].averaged) == (6, [3, 4, 5])
    models = [arrays_after(n, make_small_study, play, tmp_path) for n in (3, 4, 5)]
    found = load_file(tmp_path / MODEL)["backbone.weight"]
    mean = np.mean([m["backbone.weight"] for m in models], axis=0, dtype=float)
    assert np.array_equal(found, mean.astype(np.float32))
    before = (tmp_path / MODEL).read_bytes()
    again = play(study, tmp_path, RISING_THEN_FLAT)
    assert again.records[-1].averaged == [3, 4, 5]
    assert (tmp_path / MODEL).read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 0),
        ({"keep": "best"}, 1),
        ({"average_last": 3}, 2),
        ({"average_last": 3, "early_stopping": {"patience": 5}}, 2),
    ],
)
def test_only_what_may_be_needed_lies_on_the_disk(
    settings: dict[str, Any], most: int, make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """Beside the last model lies the best one, or one less than are averaged; else none."""
    seen: list[int] = []
    study = make_small_study(rounds=8, **settings)
    rising = (0.0, 0.25, 0.5, 0.5, 0.75, 0.5, 1.0, 0.5, 0.25)
    play(study, tmp_path, rising, watch=lambda: seen.append(len(list(tmp_path.glob("model-*")))))
    assert max(seen) == most


def test_what_may_be_needed_follows_from_the_history(make_small_study: Make) -> None:
    """Of an average only the last rounds of the study, unless it may end before."""
    records = [record_of(n, auroc) for n, auroc in enumerate((0.9, 0.5, 0.8, 0.6), 1)]
    plain, best = make_small_study(rounds=9), make_small_study(rounds=9, keep="best")
    assert endings.wanted(plain, records, 4) == set()
    assert endings.wanted(best, records, 4) == {2}
    assert endings.wanted(best, records[:1], 1) == set()
    average = make_small_study(rounds=9, average_last=3)
    assert [endings.wanted(average, records, n) for n in (4, 7, 8, 9)] == [
        set(),
        set(),
        {7},
        {7, 8},
    ]
    early = make_small_study(rounds=9, average_last=3, early_stopping=STOPPING)
    assert [endings.wanted(early, records, n) for n in (1, 2, 4)] == [set(), {1}, {2, 3}]


def test_a_best_model_that_is_gone_is_told(
    make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """A study whose best model was removed by hand ends with an error and a remedy."""
    study = make_small_study(rounds=3, keep="best")

    def remove() -> None:
        for path in tmp_path.glob("model-*"):
            path.unlink()

    with pytest.raises(OutputError, match=r"model-1\.safetensors cannot be read") as caught:
        play(study, tmp_path, (0.0, 0.75, 0.5, 0.5), watch=remove)
    assert "backup" in caught.value.remedy


def test_orders_and_records_say_how_often_rates_were_lowered(
    make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """A round has the count of the scores that were known as it began; a measurement has none."""
    schedule = {"kind": "plateau", "patience": 2}
    values = make_small_study(rounds=8).model_dump(exclude_none=True)
    study = Study.parse(values | {"training": {"schedule": schedule}})
    orders: list[Order] = []
    outcome = play(study, tmp_path, (0.0, 0.5, 0.75, 0.75, 0.5, 0.5, 0.25, 0.0, 1.0), orders)
    found = [order.lowered for order in orders]
    assert found == [0, 0, 0, 0, 0, 1, 1, 2, 0]
    assert [record.lowered for record in outcome.records] == found
    for number in range(1, 9):
        assert found[number - 1] == scores.times_lowered(study, outcome.records[: number - 1])


def test_a_study_without_all_this_is_asked_as_ever(
    make_small_study: Make, play: Make, tmp_path: Path
) -> None:
    """Neither count nor round stands in an order, and no model lies beside the last one."""
    orders: list[Order] = []
    play(make_small_study(), tmp_path, LEVELS, orders)
    assert {(order.lowered, order.model_round) for order in orders} == {(0, None)}
    assert {path.name for path in tmp_path.iterdir()} == {MODEL, "history.jsonl"}
