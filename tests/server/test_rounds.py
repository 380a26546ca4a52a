"""Laws of a whole study, over a real grid with fake sites that train nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors import safe_open

from common.arrays import Array, digest
from common.errors import QuorumError, TaskWithoutSiteError
from common.layout import Layout
from common.messages import Order, Reply
from common.models import build_model
from common.packed_arrays import PackedArrays
from common.study import Study
from common.weights import layout_of, take
from server.checkpoint import MODEL, NOTES
from server.history import HISTORY, RoundRecord
from server.rounds import Outcome, begin_study, run_study, sample
from server.stored_arrays import StoredArrays

Make = Callable[..., Any]
Play = Callable[..., Outcome]


class Start(NamedTuple):
    """The initial arrays and how they are divided."""

    layout: Layout
    arrays: dict[str, Array]


@pytest.fixture
def start_of() -> Callable[[Study], Start]:
    def start(study: Study) -> Start:
        model = build_model(study)
        return Start(layout_of(model, study), take(model, model.state_dict()))

    return start


@pytest.fixture
def play(start_of: Callable[[Study], Start], make_grid: Make, tmp_path: Path) -> Play:
    """Return a function that runs a study with fake sites in the test's folder."""

    def run(
        study: Study, sites: list[Any], deaf: tuple[str, ...] = (), folder: Path = tmp_path
    ) -> Outcome:
        watched: list[RoundRecord] = []
        grid = make_grid(sites, deaf)
        start = start_of(study)
        begin_study(study, start.arrays, folder)
        outcome = run_study(
            study, grid, start.layout, folder, sites=len(sites), watch=watched.append
        )
        assert watched == outcome.records
        return outcome

    return run


def history_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / HISTORY).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def model_of(folder: Path, layout: Layout) -> dict[str, Array]:
    names = [*layout.sent_once, *(name for group in layout.groups.values() for name in group)]
    stored = StoredArrays(folder / MODEL, tuple(names))
    return {name: stored[name] for name in stored}


def round_of(folder: Path) -> int:
    with safe_open(folder / MODEL, framework="numpy") as file:
        return int(json.loads(file.metadata()[NOTES])["round"])


def with_nan(reply: Reply, order: Order) -> Reply:
    if order.kind != "train":
        return reply
    broken = {name: value * np.float32("nan") for name, value in reply.groups["shared"].items()}
    return reply._replace(groups={**reply.groups, "shared": broken})


def failing(_reply: Reply, _order: Order) -> Reply:
    raise RuntimeError("patient 17")


def test_the_history_says_where_patients_are_unknown(
    make_study: Make, make_site: Make, play: Play, tmp_path: Path
) -> None:
    """Each line names the tasks in which a site counts images for patients; others are absent."""
    sites = [make_site("a", {"ct": 10, "mr": 10}, unknown=("mr",)), make_site("b", {"ct": 10})]
    play(make_study(), sites)
    assert [line["each_image"] for line in history_of(tmp_path)] == [{"a": ["mr"]}] * 3


def test_the_history_says_what_each_site_declared(
    make_study: Make, make_site: Make, play: Play, tmp_path: Path
) -> None:
    """Each line has the patients and images of every split as the sites stated them."""
    play(make_study(), [make_site("a", {"ct": 10, "mr": 3}), make_site("b", {"ct": 7})])
    for line in history_of(tmp_path):
        said = line["declared"]
        assert {site: list(tasks) for site, tasks in said.items()} == {
            "a": ["ct", "mr"],
            "b": ["ct"],
        }
        assert [said[site]["ct"]["train"]["patients"] for site in ("a", "b")] == [10, 7]
        assert set(said["a"]["ct"]) == {"train", "validation", "test"}


ONE_TASK = {"ct": {"modality": "CT", "classes": ["a", "b"], "positive": "b"}}


def test_a_study_adds_up_to_its_sites_changes(
    make_study: Make, make_site: Make, play: Play, start_of: Make, tmp_path: Path
) -> None:
    """After two rounds the backbone moved by twice the weighted mean over all sites.

    Each head moved by that over the sites that have its task; the base did not move at all.
    """
    study = make_study()
    sites = [
        make_site("a", {"ct": 10}, 0.5),
        make_site("b", {"ct": 30, "mr": 10}, 0.25),
        make_site("c", {"mr": 50}, -1.0),
    ]
    outcome = play(study, sites)
    start: Start = start_of(study)
    found = model_of(tmp_path, start.layout)
    assert set(found) == set(start.arrays)
    mean = {
        "shared": (10 * 0.5 + 40 * 0.25 - 50) / 100,
        "statistics": (10 * 0.5 + 40 * 0.25 - 50) / 100,
        "head:ct": (10 * 0.5 + 30 * 0.25) / 40,
        "head:mr": (10 * 0.25 - 50) / 60,
    }
    for group, names in start.layout.groups.items():
        for name in names:
            expected = start.arrays[name] + np.float32(2 * mean[group])
            np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-6)
    base = {name: start.arrays[name] for name in start.layout.base}
    assert base
    assert digest({name: found[name] for name in base}) == digest(base)
    assert [member.name for member in outcome.members] == ["a", "b", "c"]
    assert outcome.model == tmp_path / MODEL


def test_each_round_is_recorded(
    make_study: Make, make_site: Make, play: Play, tmp_path: Path
) -> None:
    """Two rounds train, a last exchange only evaluates; each is one line with its figures."""
    sites = [make_site("a", {"ct": 10}), make_site("b", {"ct": 10, "mr": 5})]
    outcome = play(make_study(), sites)
    lines = history_of(tmp_path)
    assert [(x["round"], x["model_round"], x["trained"]) for x in lines] == [
        (1, 0, True), (2, 1, True), (3, 2, False),
    ]  # fmt: skip
    assert round_of(tmp_path) == 2
    for line in lines:
        assert line["asked"] == line["answered"] == ["a", "b"]
        assert (line["refused"], line["silent"]) == ({}, [])
        ct, mr = line["tasks"]["ct"]["test"], line["tasks"]["mr"]["validation"]
        assert (ct["pooled"]["n_images"], set(ct["per_site"])) == (8, {"a", "b"})
        assert (mr["pooled"]["n_images"], set(mr["per_site"])) == (4, {"b"})
        assert line["bytes"]["a"]["down"] > 0
        assert line["seconds"]["total"] > 0
    assert lines[0]["training"] == {name: {"steps": 3, "loss": 0.25} for name in ("a", "b")}
    assert lines[0]["seconds"]["training"] == 1.0
    assert lines[0]["seconds"]["evaluation"] == 0.25
    assert lines[2]["training"] == {}
    kinds = [[(order.kind, order.round) for order in site.orders] for site in sites]
    assert kinds == [[("check", 0), ("train", 1), ("train", 2), ("evaluate", 3)]] * 2
    assert len(outcome.records) == 3


@pytest.mark.parametrize("train", ["head", "last:1"])
def test_frozen_arrays_travel_once_with_the_base(
    train: str, make_study: Make, make_site: Make, play: Play, start_of: Make, tmp_path: Path
) -> None:
    """Groups hold what trains and no more; the base comes with the first order alone."""
    (tmp_path / "start.safetensors").touch()
    backbone = {"name": "test_resnet", "weights": "start.safetensors", "image_size": 32}
    study = make_study(tasks=ONE_TASK, backbone=backbone, training={"train": train})
    sites = [make_site("a"), make_site("b")]
    play(study, sites)
    layout = start_of(study).layout
    for site in sites:
        assert [order.base is not None for order in site.orders] == [False, True, False, False]
        assert set(site.base) == set(layout.base)
        for order in site.orders[1:]:
            assert set(order.groups) == set(layout.groups_of(["ct"]))
            for group, arrays in order.groups.items():
                assert tuple(arrays) == layout.groups[group]
                assert not set(arrays) & set(layout.base)
    down = [line["bytes"]["a"]["down"] for line in history_of(tmp_path)]
    start = start_of(study)
    base = PackedArrays.of({name: start.arrays[name] for name in layout.base})
    packs = sum(len(array.data) for array in base.record.values())
    assert down[0] - down[1] == packs
    assert down[1] < down[0]


def test_local_arrays_begin_everywhere_alike_and_stay(
    make_study: Make, make_site: Make, play: Play, start_of: Make, tmp_path: Path
) -> None:
    """Batch norm that each site keeps is sent once; the coordinator's copy never changes."""
    backbone = {
        "name": "test_resnet", "weights": "none", "image_size": 32, "normalisation": "local",
    }  # fmt: skip
    study = make_study(tasks=ONE_TASK, backbone=backbone)
    sites = [make_site("a"), make_site("b")]
    play(study, sites)
    start = start_of(study)
    local = {name: start.arrays[name] for name in start.layout.local}
    found = model_of(tmp_path, start.layout)
    assert local
    assert digest({name: found[name] for name in local}) == digest(local)
    for site in sites:
        assert digest({name: site.base[name] for name in local}) == digest(local)


def test_a_site_that_holds_the_base_is_not_sent_it(
    make_study: Make, make_site: Make, play: Play, start_of: Make
) -> None:
    """A site that declares the right base from an earlier run gets only what travels."""
    study = make_study(tasks=ONE_TASK)
    start = start_of(study)
    base = {name: start.arrays[name] for name in start.layout.sent_once}
    stale = {name: value + value.dtype.type(1) for name, value in base.items()}
    sites = [make_site("a", base=base), make_site("b", base=stale), make_site("c")]
    play(study, sites)
    sent = [[order.base is not None for order in site.orders] for site in sites]
    assert sent == [[False] * 4, [False, True, False, False], [False, True, False, False]]


def test_a_bad_reply_costs_its_site_the_round(
    make_study: Make, make_site: Make, play: Play, start_of: Make, tmp_path: Path
) -> None:
    """NaN and exceptions are recorded, the round goes on with the others, and the model is theirs.

    The next order to such a site brings the base again.
    """
    study = make_study(tasks=ONE_TASK)
    sites = [
        make_site("a", {"ct": 10}, 0.5),
        make_site("b", {"ct": 90}, 0.5, spoil=with_nan),
        make_site("c", {"ct": 90}, 0.5, spoil=failing),
        make_site("d", {"ct": 30}, 0.25),
    ]
    play(study, sites)
    lines = history_of(tmp_path)
    for line in lines[:2]:
        assert line["answered"] == ["a", "d"]
        assert set(line["refused"]) == {"b", "c"}
        assert "values that are not finite" in line["refused"]["b"]
        assert "client failed" in line["refused"]["c"]
        assert set(line["tasks"]["ct"]["test"]["per_site"]) == {"a", "d"}
    assert lines[2]["answered"] == ["a", "b", "d"]
    assert "patient 17" not in (tmp_path / HISTORY).read_text(encoding="utf-8")
    start: Start = start_of(study)
    found = model_of(tmp_path, start.layout)
    mean = np.float32(2 * (10 * 0.5 + 30 * 0.25) / 40)
    for name in start.layout.groups["shared"]:
        np.testing.assert_allclose(found[name], start.arrays[name] + mean, rtol=1e-6, atol=1e-6)
    sent = {site.name: [order.base is not None for order in site.orders] for site in sites}
    assert sent["a"] == [False, True, False, False]
    assert sent["b"] == sent["c"] == [False, True, True, True]


def test_a_refusal_is_recorded_by_its_code(
    make_study: Make, make_site: Make, play: Play, tmp_path: Path
) -> None:
    """A site that says no in one round takes part in the next."""

    def once(reply: Reply, order: Order) -> Reply:
        no = Reply(reply.site, reply.digest, reply.round, refusal="diverged")
        return no if order.round == 1 else reply

    sites = [make_site("a"), make_site("b"), make_site("c", spoil=once)]
    play(make_study(tasks=ONE_TASK), sites)
    lines = history_of(tmp_path)
    assert [line["refused"] for line in lines] == [{"c": "diverged"}, {}, {}]
    assert [line["answered"] for line in lines] == [["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
    assert [order.base is not None for order in sites[2].orders] == [False, True, True, False]


def test_the_model_does_not_depend_on_who_answers_first(
    make_study: Make, make_site: Make, play: Play, tmp_path: Path
) -> None:
    """Sites at other nodes, and so in another order, leave the model's bytes as they were."""
    study = make_study(tasks=ONE_TASK)

    def honest() -> list[Any]:
        return [make_site(name, {"ct": n}, 0.1 * n) for name, n in (("a", 1), ("b", 2), ("c", 3))]

    play(study, honest(), folder=tmp_path / "one")
    play(study, honest()[::-1], folder=tmp_path / "two")
    one, two = (tmp_path / run / MODEL for run in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_fewer_replies_than_the_quorum_end_the_study(
    make_study: Make, make_site: Make, play: Play, tmp_path: Path
) -> None:
    """The refusal says who was why; the model of the round before and the history are kept."""

    def later(reply: Reply, order: Order) -> Reply:
        return with_nan(reply, order) if order.round == 2 else reply

    study = make_study(tasks=ONE_TASK, rounds=5)
    sites = [make_site("a"), make_site("b", spoil=later)]
    with pytest.raises(QuorumError, match="Round 2: 1 usable replies, but the quorum is 2") as no:
        play(study, sites)
    assert "- b: " in no.value.message
    assert no.value.remedy
    lines = history_of(tmp_path)
    assert [(line["round"], line["answered"]) for line in lines] == [(1, ["a", "b"]), (2, ["a"])]
    assert round_of(tmp_path) == 1


def test_a_silent_site_is_left_behind_at_the_deadline(
    make_study: Make, make_site: Make, play: Play, tmp_path: Path
) -> None:
    """The round closes with those who answered, and the silent one is recorded."""
    federation = {"quorum": 2, "deadline_s": 0.3}
    study = make_study(tasks=ONE_TASK, rounds=1, federation=federation)
    play(study, [make_site("a"), make_site("b"), make_site("c")], deaf=("b",))
    for line in history_of(tmp_path):
        assert (line["answered"], line["silent"]) == (["a", "c"], ["b"])
        assert 0.3 <= line["seconds"]["total"] < 10
    silent = make_study(tasks=ONE_TASK, federation={"quorum": 3, "deadline_s": 0.3})
    with pytest.raises(QuorumError, match="Silent: b"):
        play(
            silent,
            [make_site("a"), make_site("b"), make_site("c")],
            deaf=("b",),
            folder=tmp_path / "silent",
        )


def test_a_study_that_cannot_begin_trains_nobody(
    make_study: Make, make_site: Make, play: Play, tmp_path: Path
) -> None:
    """Without a site for each task no order to train is sent, and no round is recorded."""
    sites = [make_site("a"), make_site("b")]
    with pytest.raises(TaskWithoutSiteError):
        play(make_study(), sites)
    assert all([order.kind for order in site.orders] == ["check"] for site in sites)
    assert not (tmp_path / HISTORY).exists()
    assert round_of(tmp_path) == 0


@pytest.mark.parametrize(
    ("strategy", "quorum"), [("fedadam", 2), ("fedprox", 2), ("fedmedian", 3), ("krum", 3)]
)
def test_other_strategies_play_through(
    strategy: str, quorum: int, make_study: Make, make_site: Make, play: Play, tmp_path: Path
) -> None:
    """Any strategy runs a study to its end, heads of a single site and all."""
    study = make_study(federation={"strategy": strategy, "quorum": quorum, "deadline_s": 60.0})
    sites = [make_site(name, change=0.01) for name in ("a", "b", "c")]
    sites.append(make_site("d", {"mr": 3}, 0.01))
    play(study, sites)
    assert round_of(tmp_path) == 2
    assert len(history_of(tmp_path)) == 3


def test_a_fraction_of_the_sites_is_asked(
    make_study: Make, make_site: Make, play: Play, tmp_path: Path
) -> None:
    """Each round asks its own sample; the last exchange asks everyone."""
    federation = {"quorum": 1, "fraction": 0.5, "deadline_s": 60.0}
    study = make_study(tasks=ONE_TASK, rounds=6, federation=federation)
    names = ["a", "b", "c", "d"]
    play(study, [make_site(name) for name in names])
    *rounds, last = [line["asked"] for line in history_of(tmp_path)]
    assert all(len(asked) == 2 for asked in rounds)
    assert len({tuple(asked) for asked in rounds}) > 1
    assert last == names


def test_the_sample_depends_on_seed_and_round_alone(make_study: Make, make_site: Make) -> None:
    """The same study asks the same sites in the same round, never fewer than its quorum."""

    def chosen(number: int, *, seed: int = 0, fraction: float = 0.3, quorum: int = 2) -> list[str]:
        federation = {"fraction": fraction, "quorum": quorum}
        study = make_study(seed=seed, federation=federation)
        return [member.name for member in sample(study, members, number)]

    members = [make_site(f"site-{number:02}") for number in range(20)]
    assert chosen(1) == chosen(1) == sorted(chosen(1))
    assert len({tuple(chosen(number)) for number in range(1, 30)}) > 20
    assert chosen(1) != chosen(1, seed=1)
    assert len(chosen(1)) == 6
    assert len(chosen(1, quorum=11)) == 11
    assert len(chosen(1, fraction=0.01)) == 2
    assert len(chosen(1, fraction=1.0)) == len(chosen(1, quorum=50)) == 20
    asked = {name for number in range(1, 60) for name in chosen(number)}
    assert len(asked) == 20
