"""Laws of a coordinator that is killed: the study goes on in the same folder, as if it had not."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import metrics, metrics_wire
from common.errors import OutputError, QuorumError
from common.messages import Order, Reply
from common.seeds import stream
from common.study import Study
from server.checkpoint import MODEL
from server.history import HISTORY
from server.rounds import begin_study

Make = Callable[..., Any]
STRATEGIES = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
KILLED = 9
EACH_HALF = pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
"""The moments in question are too many for each run of the tests: the other half is slow."""
NAMES = ("a", "b", "c")
ENDINGS: dict[str, dict[str, Any]] = {
    "early": {"rounds": 9, "early_stopping": {"patience": 1}},
    "best": {"rounds": 3, "keep": "best"},
    "average": {"rounds": 3, "average_last": 2},
    "early and best": {"rounds": 9, "keep": "best", "early_stopping": {"patience": 2}},
}
TOLD = (
    "round", "model_round", "combined", "answered", "tasks", "training", "score", "averaged",
    "stopped",
)  # fmt: skip


def of_its_own(reply: Reply, order: Order) -> Reply:
    """Make each site's change of each round another one."""
    rng = np.random.default_rng(stream(reply.site, order.round))
    changes = {
        group: {n: rng.normal(scale=0.1, size=v.shape).astype(np.float32) for n, v in own.items()}
        for group, own in reply.groups.items()
    }
    return reply._replace(groups=changes)


def judged(reply: Reply, order: Order) -> Reply:
    """Make the AUROC that a site reports hang on the model that it was sent, and nothing else."""
    model = order.groups["shared"]["backbone.weight"]
    rng = np.random.default_rng(model.view(np.uint32).ravel())
    state = metrics.update(
        metrics.zero(2, 1), rng.normal(scale=3.0, size=(4, 2)), np.array([0, 1, 0, 1]), 1
    )
    told = dict(metrics_wire.to_arrays(metrics.with_patients(state, 2)))
    return reply._replace(metrics=dict.fromkeys(reply.metrics, told))


def broken(reply: Reply, _order: Order) -> Reply:
    return reply._replace(weights={})


class Clock:
    """Counts the moments of a process, and ends it at one of them as SIGKILL would.

    A moment is each order before it is followed, each reply before it is on its way, and each
    time that Python opens, renames, changes or removes something in the study's folder.
    """

    def __init__(self, folder: Path, fatal: int) -> None:
        self.folder, self.fatal, self.now = str(folder), fatal, 0

    def tick(self) -> None:
        """Let a moment pass."""
        self.now += 1
        if self.now == self.fatal:
            os._exit(KILLED)

    def hear(self, event: str, args: tuple[object, ...]) -> None:
        """Take Python's audit events (PEP 578), each raised before its deed is done."""
        if event in ("open", "os.rename", "os.chmod", "os.remove") and any(
            isinstance(a, (str, os.PathLike)) and os.fspath(a).startswith(self.folder) for a in args
        ):
            self.tick()


@pytest.fixture
def coordinator(make_site: Make, make_grid: Make, play_on: Make) -> Callable[..., None]:
    """Return a function that plays a study, to its end or to a moment of the clock.

    ``sites`` says what is otherwise at a site than at an honest one.
    """

    def play(
        study: Study, folder: Path, clock: Clock | None = None, *, sites: Mapping[str, Any] = {}
    ) -> None:
        def spoil(reply: Reply, order: Order) -> Reply:
            sent = judged(of_its_own(reply, order), order)
            if clock is not None:
                clock.tick()
            return sent

        def before(_order: Order) -> None:
            if clock is not None:
                clock.tick()

        honest = {"spoil": spoil, "meanwhile": before}
        chosen = [
            make_site(name, {"ct": 10 * n}, **honest | sites.get(name, {}))
            for n, name in enumerate(NAMES, 1)
        ]
        play_on(study, make_grid(chosen), folder)

    return play


def in_a_process_that_dies(play: Make, study: Study, folder: Path, fatal: int) -> bool:
    """Play in a process of its own; tell whether the moment came before the study's end."""
    child = os.fork()
    if child == 0:
        clock = Clock(folder, fatal)
        sys.addaudithook(clock.hear)
        try:
            play(study, folder, clock)
        except BaseException:  # noqa: BLE001 - whatever it is, the child must not become a pytest
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / HISTORY).read_text("utf-8").splitlines()]


def told(line: dict[str, Any]) -> dict[str, Any]:
    """Return of a round's line what does not depend on when and how often it was played."""
    return {key: line[key] for key in TOLD}


def left_over(folder: Path, whole: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {path.name for path in whole.iterdir()}


@EACH_HALF
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_at_any_moment_the_study_ends_as_if_it_had_not_been(
    strategy: str, half: int, coordinator: Make, make_small_study: Make, tmp_path: Path
) -> None:
    """Whichever moment it dies at, the next coordinator ends with the same bytes.

    Each round is in the history once, with every site's reply counted once. The strategies share
    the moments among them: each takes every tenth, and in its other half the one after.
    """
    study = make_small_study(strategy=strategy)
    whole = tmp_path / "whole"
    coordinator(study, whole)
    expected = [told(line) for line in lines_of(whole)]
    died = 0
    for fatal in range(1 + 2 * STRATEGIES.index(strategy) + half, 1000, 10):
        folder = tmp_path / str(fatal)
        if not in_a_process_that_dies(coordinator, study, folder, fatal):
            break
        died += 1
        coordinator(study, folder)
        assert (folder / MODEL).read_bytes() == (whole / MODEL).read_bytes(), fatal
        found = [told(line) for line in lines_of(folder)]
        assert [line for line in found if line["combined"]] == expected[:2], fatal
        assert found[-1] == expected[-1]
        assert left_over(folder, whole) <= {"strategies-1.safetensors"}
    assert died > 4


@EACH_HALF
@pytest.mark.parametrize("ending", ENDINGS)
def test_killed_at_any_moment_a_study_ends_after_the_same_round_with_the_same_model(
    ending: str, half: int, coordinator: Make, make_small_study: Make, tmp_path: Path
) -> None:
    """Whether it stops early, or ends with its best model or an average, is as undisturbed.

    Each way to end takes every sixteenth moment, and in its other half the second after.
    """
    study, whole = make_small_study(**ENDINGS[ending]), tmp_path / "whole"
    coordinator(study, whole)
    expected = [told(line) for line in lines_of(whole)]
    combined = [line for line in expected if line["combined"]]
    assert ("early" in ending) == (expected[-1]["stopped"] != "") == (len(combined) < study.rounds)
    for fatal in range(1 + 4 * list(ENDINGS).index(ending) + 2 * half, 1000, 16):
        folder = tmp_path / str(fatal)
        if not in_a_process_that_dies(coordinator, study, folder, fatal):
            break
        coordinator(study, folder)
        assert (folder / MODEL).read_bytes() == (whole / MODEL).read_bytes(), fatal
        found = [told(line) for line in lines_of(folder)]
        assert [line for line in found if line["combined"]] == combined, fatal
        assert found[-1] == expected[-1]
        assert not left_over(folder, whole)
    assert fatal > 30


def test_killed_over_and_over_the_study_comes_to_its_end(
    coordinator: Make, make_small_study: Make, tmp_path: Path
) -> None:
    """One coordinator after the other dies, each two moments later than the one before."""
    study = make_small_study(strategy="fedadam")
    coordinator(study, tmp_path / "whole")
    folder = tmp_path / "killed"
    fatal = 1
    while in_a_process_that_dies(coordinator, study, folder, fatal):
        fatal += 2
    assert fatal > 15
    assert (folder / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    found = [told(line) for line in lines_of(folder)]
    assert [line for line in found if line["combined"]] == [
        told(line) for line in lines_of(tmp_path / "whole")[:2]
    ]
    assert left_over(folder, tmp_path / "whole") <= {"strategies-1.safetensors"}


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_after_a_round_with_too_few_sites_the_study_can_go_on(
    strategy: str, coordinator: Make, make_small_study: Make, tmp_path: Path
) -> None:
    """The round is played again from where the last one ended, and its replies are not kept.

    The history tells of both attempts, the first of them not combined.
    """
    study = make_small_study(rounds=3, strategy=strategy, quorum=3)
    coordinator(study, tmp_path / "whole")
    folder = tmp_path / "paused"

    def later(reply: Reply, order: Order) -> Reply:
        return broken(reply, order) if order.round == 2 else of_its_own(reply, order)

    for _ in range(2):
        with pytest.raises(QuorumError, match="Round 2: 2 usable replies, but the quorum is 3"):
            coordinator(study, folder, sites={"b": {"spoil": later}})
    coordinator(study, folder)
    assert (folder / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    found = [(line["round"], line["combined"]) for line in lines_of(folder)]
    assert found == [(1, True), (2, False), (2, False), (2, True), (3, True), (4, False)]


def test_a_study_that_too_few_joined_can_begin_later(
    coordinator: Make, make_small_study: Make, tmp_path: Path
) -> None:
    """Neither the model nor the history knows of an enrolment that failed."""
    study = make_small_study()
    coordinator(study, tmp_path / "whole")
    folder = tmp_path / "paused"
    refusing = {name: {"refusal": "data"} for name in ("a", "b")}
    with pytest.raises(QuorumError, match="1 sites are ready, the quorum is 2"):
        coordinator(study, folder, sites=refusing)
    assert not (folder / HISTORY).exists()
    coordinator(study, folder)
    assert (folder / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()


@pytest.mark.parametrize("blocked", ["strategies-2.safetensors", HISTORY])
def test_what_cannot_be_written_can_be_later(
    blocked: str, coordinator: Make, make_small_study: Make, tmp_path: Path
) -> None:
    """A round that cannot be written down is told as such, and played again once it can be."""
    study = make_small_study(strategy="fedyogi")
    coordinator(study, tmp_path / "whole")
    folder = tmp_path / "blocked"

    def block(order: Order) -> None:
        if order.round == 2:
            (folder / blocked).rename(folder / "kept") if blocked == HISTORY else None
            (folder / blocked).mkdir(exist_ok=True)

    with pytest.raises(OutputError, match=f"Cannot write .*{blocked}") as refused:
        coordinator(study, folder, sites={"c": {"meanwhile": block}})
    assert refused.value.remedy
    (folder / blocked).rmdir()
    if blocked == HISTORY:
        (folder / "kept").rename(folder / HISTORY)
    coordinator(study, folder)
    assert (folder / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    assert [line["round"] for line in lines_of(folder) if line["combined"]] == [1, 2]


def test_a_study_that_is_done_is_measured_again_and_no_more(
    coordinator: Make, make_small_study: Make, tmp_path: Path
) -> None:
    """A coordinator that is started once more leaves every byte of the model as it is."""
    study = make_small_study(strategy="fedavgm")
    coordinator(study, tmp_path)
    before = (tmp_path / MODEL).read_bytes()
    coordinator(study, tmp_path)
    assert (tmp_path / MODEL).read_bytes() == before
    assert [line["combined"] for line in lines_of(tmp_path)] == [True, True, False, False]


def test_the_folder_of_another_study_is_left_alone(
    coordinator: Make, make_small_study: Make, tmp_path: Path
) -> None:
    """Neither begun anew nor gone on with: no site is asked, and no byte is changed."""
    coordinator(make_small_study(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = make_small_study(rounds=3)
    with pytest.raises(OutputError, match="holds another study, study, or another version") as no:
        coordinator(other, tmp_path)
    assert "folder of its own" in no.value.remedy
    with pytest.raises(OutputError, match="holds another study"):
        begin_study(other, {}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_history_stops_the_study_before_it_asks_anyone_to_train(
    coordinator: Make, make_small_study: Make, tmp_path: Path
) -> None:
    """A line that is no record is told with its remedy; moved away, the study goes on."""
    study = make_small_study(quorum=3)
    with pytest.raises(QuorumError):
        coordinator(study, tmp_path, sites={"b": {"spoil": broken}})
    (tmp_path / HISTORY).write_text("{}\n", encoding="utf-8")
    orders: list[Order] = []
    with pytest.raises(OutputError, match=f"{HISTORY} is damaged") as refused:
        coordinator(study, tmp_path, sites={"a": {"meanwhile": orders.append}})
    assert "move it away" in refused.value.remedy
    assert {order.kind for order in orders} <= {"check"}
    (tmp_path / HISTORY).unlink()
    coordinator(study, tmp_path)
    assert len(lines_of(tmp_path)) == 3
