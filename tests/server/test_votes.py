"""Laws of members that vote by their validation scores, over a real grid with fake sites."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import log_loss, roc_auc_score

from common import metrics, metrics_wire
from common.arrays import Array, Arrays
from common.errors import QuorumError, ReplyError
from common.layout import Layout, votes_group, votes_name
from common.messages import Order, Reply
from common.seeds import stream
from common.study import Study
from server import votes
from server.checkpoint import MODEL, find_checkpoint
from server.history import RoundRecord
from server.ingress import admit
from server.roster import Member
from server.rounds import Outcome, begin_study, run_study

Make = Callable[..., Any]
Metrics = dict[tuple[str, str], Arrays]
VOTES, GROUP = votes_name("ct"), votes_group("ct")
MEMBERS = 3
EQUAL = np.full(MEMBERS, 1 / MEMBERS, np.float32)
LABELS = np.array([0, 1])
"""Of the two validation patients of each site."""


def said_by(site: str, order: Order, member: int) -> np.ndarray:
    """Return the logits of a site's two patients, which hang on the model and the member alone."""
    model = order.groups["shared"]["backbone.weight"].tobytes().hex()
    rng = np.random.default_rng(stream(site, model, member))
    logits: np.ndarray = rng.normal(scale=3.0, size=(2, 2))
    return logits


def state_of(logits: np.ndarray, labels: np.ndarray, patients: int = 2) -> dict[str, Array]:
    state = metrics.update(metrics.zero(2, 1), logits, labels, 1)
    return dict(metrics_wire.to_arrays(metrics.with_patients(state, patients)))


def figures_of(reply: Reply, order: Order) -> Reply:
    """Give a reply states of two patients with two images each, and those of the members."""
    whole = said_by(reply.site, order, -1)
    found: Metrics = {}
    for split in ("validation", "test"):
        found["ct", split] = state_of(whole.repeat(2, axis=0), LABELS.repeat(2))
        found["ct", f"{split}_patients"] = state_of(whole, LABELS)
    for member in range(MEMBERS if order.kind == "evaluate" else 0):
        found["ct", f"validation.{member}"] = state_of(said_by(reply.site, order, member), LABELS)
    return reply._replace(metrics=found)


@pytest.fixture
def study_of(make_study: Make) -> Callable[..., Study]:
    """Return the maker of a study of three members that vote by their scores."""

    def make(rounds: int = 2, **federation: Any) -> Study:
        task = {"modality": "CT", "classes": ["a", "b"], "positive": "b"}
        values = {"quorum": 2, "deadline_s": 20.0, "votes": "validation"} | federation
        sections: dict[str, Any] = {"rounds": rounds, "tasks": {"ct": task}, "federation": values}
        study: Study = make_study(ensemble=[{}] * MEMBERS, **sections)
        return study

    return make


@pytest.fixture
def layout(small_layout: Layout) -> Layout:
    return replace(small_layout, groups={**small_layout.groups, GROUP: (VOTES,)})


@pytest.fixture
def play(
    make_site: Make, make_grid: Make, small_arrays: Mapping[str, Array], layout: Layout
) -> Callable[..., Outcome]:
    """Return what plays a study; ``spoil`` changes a site's honest replies."""

    def run(
        study: Study,
        folder: Path,
        *,
        spoil: Callable[[Reply, Order], Reply] = figures_of,
        orders: list[Order] | None = None,
        watch: Callable[[RoundRecord], None] = lambda _: None,
    ) -> Outcome:
        def answer(reply: Reply, order: Order) -> Reply:
            if orders is not None and reply.site == "a":
                orders.append(order)
            return spoil(reply, order)

        begin_study(study, {**small_arrays, VOTES: EQUAL}, folder)
        grid = make_grid([make_site(name, spoil=answer) for name in ("a", "b")])
        return run_study(study, grid, layout, folder, sites=2, watch=watch)

    return run


def expected(order: Order, kind: str = "auroc") -> np.ndarray:
    """Return what the members weigh by scikit-learn's scores of the four patients of both sites."""
    truth, worth = np.tile(LABELS, 2), []
    for member in range(MEMBERS):
        logits = np.concatenate([said_by(site, order, member) for site in ("a", "b")])
        if kind == "auroc":
            worth.append(max(roc_auc_score(truth, logits[:, 1] - logits[:, 0]), 1e-6))
        else:
            p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            worth.append(np.exp(-log_loss(truth, p)))
    shares: np.ndarray = np.array(worth) / sum(worth)
    return shares


def told(records: list[RoundRecord]) -> list[tuple[int, int, bool]]:
    return [(record.round, record.model_round, record.trained) for record in records]


@pytest.mark.parametrize("score", ["auroc", "loss"])
def test_members_weigh_their_share_of_the_scores(
    score: str, study_of: Make, play: Make, tmp_path: Path
) -> None:
    """Weights are those of scikit-learn's scores on all patients; one more exchange measures it."""
    orders: list[Order] = []
    outcome = play(study_of(score=score), tmp_path, orders=orders)
    assert told(outcome.records) == [(1, 0, True), (2, 1, True), (3, 2, False), (4, 2, False)]
    assert [order.kind for order in orders] == ["train", "train", "evaluate", "evaluate"]
    wanted = expected(orders[2], score)
    assert wanted.std() > 0.01
    found = load_file(tmp_path / MODEL)[VOTES]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert [record.votes for record in outcome.records[:2]] == [{}, {}]
    assert outcome.records[2].votes == {"ct": EQUAL.tolist()}
    assert outcome.records[3].votes == {"ct": found.tolist()}
    assert np.array_equal(orders[3].groups[GROUP][VOTES], found)
    members = outcome.records[2].tasks["ct"]["validation"]["members"]
    assert [(one["n_patients"], one["n_images"]) for one in members] == [(4, 4)] * MEMBERS
    assert "members" not in outcome.records[1].tasks["ct"]["validation"]
    assert "members" not in outcome.records[3].tasks["ct"]["test"]


STRATEGIES: list[dict[str, Any]] = [
    {"strategy": name}
    for name in ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
]


@pytest.mark.parametrize("federation", STRATEGIES, ids=lambda f: str(f["strategy"]))
def test_rounds_leave_the_votes_alone(
    federation: dict[str, Any], study_of: Make, play: Make, tmp_path: Path
) -> None:
    """No order to train has them and no reply: whatever combines changes, they stay to the bit."""
    orders: list[Order] = []
    study = study_of(rounds=1, update_dtype="float16", update_norm=0.1, **federation)

    def shorter(reply: Reply, order: Order) -> Reply:
        small = {g: {n: v * 0 for n, v in of.items()} for g, of in reply.groups.items()}
        return figures_of(reply._replace(groups=small), order)

    outcome = play(study, tmp_path, orders=orders, spoil=shorter)
    assert [GROUP in order.groups for order in orders] == [False, True, True]
    assert outcome.records[1].votes == {"ct": EQUAL.tolist()}


def test_noise_at_the_coordinator_leaves_the_votes_alone(
    play: Make, layout: Layout, study_of: Make, tmp_path: Path
) -> None:
    """Central privacy adds noise to what sites changed, and to nothing else."""
    values = study_of(rounds=2, weighting="equal").model_dump(exclude_none=True)
    study = Study.parse(values | {"central_privacy": {"noise_multiplier": 1.0, "clip_norm": 1.0}})
    quiet = {g: n for g, n in layout.groups.items() if g != "statistics"}
    object.__setattr__(layout, "groups", quiet)

    def equal(reply: Reply, order: Order) -> Reply:
        weights = dict.fromkeys(reply.groups, 1.0)
        return figures_of(reply._replace(weights=weights), order)

    outcome = play(study, tmp_path, spoil=equal)
    assert outcome.records[0].combined
    assert outcome.records[2].votes == {"ct": EQUAL.tolist()}
    assert outcome.records[3].votes != outcome.records[2].votes


@pytest.mark.parametrize(
    ("federation", "last"),
    [({"keep": "best"}, None), ({"average_last": 2}, (4, 3))],
    ids=["best", "average"],
)
def test_the_model_that_a_study_ends_with_is_weighed(
    federation: dict[str, Any],
    last: tuple[int, int] | None,
    study_of: Make,
    play: Make,
    tmp_path: Path,
) -> None:
    """Weights are of the scores of that very model, whose other arrays stay as they were."""
    study = study_of(rounds=3, **federation)
    orders: list[Order] = []
    outcome = play(study, tmp_path, orders=orders)
    measured, final = outcome.records[-2:]
    assert (measured.trained, final.trained) == (False, False)
    assert (final.round, final.model_round) == (measured.round + 1, measured.model_round)
    assert final.averaged == measured.averaged
    found = load_file(tmp_path / MODEL)
    np.testing.assert_allclose(found[VOTES], expected(orders[-2]), rtol=1e-6)
    for name in ("backbone.weight", "backbone.scalar"):
        assert np.array_equal(found[name], orders[-2].groups["shared"][name])
    done = find_checkpoint(tmp_path, study)
    assert (done.round, done.model_round, done.has_votes) == (3, final.model_round, True)
    if last is None:
        assert final.score is not None
    else:
        assert final.averaged == [2, 3]
        assert done.averaged == (2, 3)


def test_a_study_that_has_ended_is_weighed_no_more(
    study_of: Make, play: Make, tmp_path: Path
) -> None:
    """Begun again it measures the weighted model again, whatever the sites say of its members."""
    study = study_of()
    first = play(study, tmp_path)
    before = (tmp_path / MODEL).read_bytes()

    def otherwise(reply: Reply, order: Order) -> Reply:
        sent = dict(figures_of(reply, order).metrics)
        for member in range(MEMBERS):
            sent["ct", f"validation.{member}"] = state_of(np.eye(2) * member, LABELS)
        return reply._replace(metrics=sent)

    again = play(study, tmp_path, spoil=otherwise)
    assert told(again.records)[4:] == told(first.records)[-1:]
    assert again.records[-1].votes == first.records[-1].votes
    assert (tmp_path / MODEL).read_bytes() == before


def test_without_the_members_figures_they_weigh_the_same(
    study_of: Make, play: Make, tmp_path: Path
) -> None:
    """Where all sites keep them to themselves, the record says equal weights and no figures."""

    def silent(reply: Reply, order: Order) -> Reply:
        sent = figures_of(reply, order).metrics
        kept = {key: state for key, state in sent.items() if "." not in key[1]}
        return reply._replace(metrics=kept)

    outcome = play(study_of(rounds=1), tmp_path, spoil=silent)
    assert len(outcome.records) == 3
    assert outcome.records[-1].votes == {"ct": EQUAL.tolist()}
    assert "members" not in outcome.records[1].tasks["ct"]["validation"]
    assert np.array_equal(load_file(tmp_path / MODEL)[VOTES], EQUAL)


def test_a_site_that_keeps_its_figures_is_left_out(
    study_of: Make, play: Make, tmp_path: Path
) -> None:
    """Scores are of the patients of the sites that told theirs."""

    def partly(reply: Reply, order: Order) -> Reply:
        return figures_of(reply, order) if reply.site == "a" else reply._replace(metrics={})

    outcome = play(study_of(rounds=1), tmp_path, spoil=partly)
    members = outcome.records[1].tasks["ct"]["validation"]["members"]
    assert {one["n_patients"] for one in members} == {2}


def test_too_few_replies_weigh_nothing(study_of: Make, play: Make, tmp_path: Path) -> None:
    """The study waits, its model without votes, and goes on as if all had answered at once."""

    def broken(reply: Reply, order: Order) -> Reply:
        sent = figures_of(reply, order)
        return sent._replace(round=9) if order.kind == "evaluate" and reply.site == "b" else sent

    study = study_of(rounds=1)
    play(study, tmp_path / "whole")
    with pytest.raises(QuorumError):
        play(study, tmp_path / "paused", spoil=broken)
    assert not find_checkpoint(tmp_path / "paused", study).has_votes
    play(study, tmp_path / "paused")
    whole, paused = ((tmp_path / name / MODEL).read_bytes() for name in ("whole", "paused"))
    assert whole == paused


def dies(work: Callable[[], Any], folder: Path, fatal: int) -> bool:
    """Work in a process that ends at the nth thing it does in a folder; tell whether it did.

    A thing is each time that Python opens, renames, changes or removes something there (PEP 578).
    """
    child = os.fork()
    if child == 0:
        left = [fatal]

        def hear(event: str, args: tuple[object, ...]) -> None:
            if event in ("open", "os.rename", "os.chmod", "os.remove") and any(
                isinstance(a, (str, os.PathLike)) and os.fspath(a).startswith(str(folder))
                for a in args
            ):
                left[0] -= 1
                if not left[0]:
                    os._exit(9)

        sys.addaudithook(hear)
        try:
            work()
        except BaseException:  # noqa: BLE001 - whatever it is, the child must not become a pytest
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize(
    "ending",
    [
        {},
        pytest.param({"keep": "best"}, marks=pytest.mark.slow),
        pytest.param({"average_last": 2}, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_the_members_weigh_the_same(
    ending: dict[str, Any], study_of: Make, play: Make, tmp_path: Path
) -> None:
    """The next coordinator ends with the same bytes; each way to end takes every sixth moment."""
    study, whole = study_of(rounds=len(ending) + 1, **ending), tmp_path / "whole"
    last = play(study, whole).records[-1]
    first = [{}, {"keep": "best"}, {"average_last": 2}].index(ending)
    for fatal in range(12 + first, 1000, 6):
        folder = tmp_path / str(fatal)
        if not dies(lambda folder=folder: play(study, folder), folder, fatal):  # type: ignore[misc]
            break
        found = play(study, folder).records[-1]
        assert (folder / MODEL).read_bytes() == (whole / MODEL).read_bytes(), fatal
        assert (found.round, found.votes, found.tasks) == (last.round, last.votes, last.tasks)
    assert fatal > 20


def record_of(**figures: list[float | None]) -> dict[str, Any]:
    """Return the figures of a task's members as a record has them."""
    each = [dict(zip(figures, one, strict=True)) for one in zip(*figures.values(), strict=True)]
    return {"ct": {"validation": {"members": each}}}


def test_scores_of_chance_and_of_nothing(study_of: Make) -> None:
    """An undefined AUROC counts as 0.5, and none as less than 1e-6; no loss is too large."""
    by_auroc, by_loss = study_of(), study_of(score="loss")
    found = votes.arrays_of(by_auroc, record_of(auroc=[None, 1.0, 0.0]))[VOTES]
    np.testing.assert_allclose(found, np.array([0.5, 1.0, 1e-6]) / 1.500001, rtol=1e-6)
    hopeless = votes.arrays_of(by_auroc, record_of(auroc=[0.0, 0.0, 0.0]))[VOTES]
    assert np.array_equal(hopeless, EQUAL)
    assert np.array_equal(votes.arrays_of(by_auroc, {})[VOTES], EQUAL)
    far = votes.arrays_of(by_loss, record_of(loss=[1e4, 1e4 + 1, 2e4]))[VOTES]
    np.testing.assert_allclose(far, [1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0], rtol=1e-6)
    assert np.array_equal(votes.arrays_of(by_loss, record_of(loss=[None] * 3))[VOTES], EQUAL)


def without(*names: str) -> Callable[[Metrics], Metrics]:
    return lambda sent: {key: state for key, state in sent.items() if key[1] not in names}


def with_state(name: str, logits: np.ndarray, labels: np.ndarray) -> Callable[[Metrics], Metrics]:
    return lambda sent: {**sent, ("ct", name): state_of(logits, labels)}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without("validation.1"), ["metrics of ct: without those of validation.1"]),
        (
            without("validation.0", "validation.2"),
            ["metrics of ct: without those of validation.0, validation.2"],
        ),
        (
            with_state("validation.3", np.eye(2), LABELS),
            ["its metrics are not those of the site's tasks"],
        ),
        (
            with_state("test.0", np.eye(2), LABELS),
            ["its metrics are not those of the site's tasks"],
        ),
        (
            without("validation", "validation_patients"),
            ["metrics of ct: those of members without those of the ensemble"],
        ),
        (
            with_state("validation.2", np.eye(2), np.array([1, 1])),
            ["metrics of ct on validation.2: not of the patients of the ensemble's"],
        ),
        (
            with_state("validation.0", np.zeros((4, 2)), LABELS.repeat(2)),
            ["metrics of ct on validation.0: not of the patients of the ensemble's"],
        ),
        (
            without("validation_patients"),
            [
                f"metrics of ct on validation.{n}: not of the patients of the ensemble's"
                for n in range(MEMBERS)
            ],
        ),
    ],
)
def test_states_of_members_that_do_not_belong_are_refused(
    change: Callable[[Metrics], Metrics],
    why: list[str],
    study_of: Make,
    make_site: Make,
) -> None:
    """Missing and unexpected ones, and those of other patients, are all told at the door."""
    study = study_of()
    shared = {"shared": {"backbone.weight": np.zeros(2, np.float32)}}
    order = Order("evaluate", study, 3, shared, "ab" * 32, None)
    honest = figures_of(Reply("a", study.digest(), 3), order)
    member = Member(1, "a", make_site("a").declaration(), "")
    assert len(admit(honest, order, member)) == 4 + MEMBERS
    faults = metrics_faults(honest._replace(metrics=change(dict(honest.metrics))), order, member)
    assert faults == why


def metrics_faults(reply: Reply, order: Order, member: Member) -> list[str]:
    with pytest.raises(ReplyError) as refused:
        admit(reply, order, member)
    return [line.removeprefix("  - ") for line in refused.value.message.splitlines()[1:]]


def test_states_of_members_are_for_the_end_alone(study_of: Make, make_site: Make) -> None:
    """In a reply to an order to train they are refused, and so they are of equal votes."""
    shared = {"shared": {"backbone.weight": np.zeros(2, np.float32)}}
    member = Member(1, "a", make_site("a").declaration(), "")
    equal = study_of(votes="equal")
    for study, kind in ((study_of(), "train"), (equal, "evaluate")):
        order = Order(kind, study, 3, shared, "ab" * 32, None)  # type: ignore[arg-type]
        sent = figures_of(Reply("a", study.digest(), 3), order._replace(kind="evaluate"))
        assert "its metrics are not those of the site's tasks" in metrics_faults(
            sent, order, member
        )
