"""Laws of the site's ledger."""

import fcntl
import json
import math
import multiprocessing
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client import ledger as ledger_file
from client.accounting import Mechanism, default_delta, epsilon
from client.config import Limits
from client.ledger import Ledger
from client.plan import Plan
from common.chained_log import ChainedLog
from common.errors import BudgetError, ChainError, DataError, RarefedError, ServiceError
from common.study import Study

MakeStudy = Callable[..., Study]

LIMITS = Limits(extra_rounds=0)
PEOPLE = [f"{number:032x}" for number in range(12)]
PATIENTS = {"ct": frozenset(PEOPLE[:4])}
PLAN = Plan(
    noise_multiplier=2.0,
    sample_rate=0.5,
    steps=4,
    patients=4,
    clip_norm=1.0,
    images_per_patient=1,
    epsilon=100.0,
    delta=1e-2,
)


def order(number: int) -> str:
    return f"{number:064x}"


def lines(state: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (state / "ledger.jsonl").read_text().splitlines()]


def cost(rounds: float, plan: Plan = PLAN, delta: float | None = None) -> float:
    """What so many rounds of a plan cost a patient."""
    steps = round(rounds * plan.steps)
    mechanism = Mechanism(plan.noise_multiplier, plan.sample_rate, steps)
    return epsilon([mechanism], delta or plan.delta)


def limits(**values: Any) -> Limits:
    return Limits(**({"extra_rounds": 10} | values))


def test_a_training_stands_in_the_ledger(make_study: MakeStudy, tmp_path: Path) -> None:
    """With study, round, order, patients of each task and cohort, for its owner alone to read."""
    study, ledger = make_study(), Ledger(tmp_path)
    entered = ledger.enter(study, 1, order(1), PATIENTS, limits=LIMITS, plan=None)
    (entry,) = lines(tmp_path)
    assert entered == (entry["hash"], None)
    expected = {
        "event": "training",
        "study": study.digest(),
        "name": "study",
        "round": 1,
        "order": order(1),
        "patients": {"ct": 4},
        "privacy": None,
    }
    assert expected.items() <= entry.items()
    assert stat.S_IMODE((tmp_path / "ledger.jsonl").stat().st_mode) == 0o600
    kept = tmp_path / "cohorts" / f"{entry['cohort']}.json"
    assert json.loads(kept.read_text()) == PEOPLE[:4]


def test_a_patient_of_two_tasks_is_one(make_study: MakeStudy, tmp_path: Path) -> None:
    """The cohort is the union over the tasks; the counts are of each task."""
    patients = {"ct": frozenset(PEOPLE[:4]), "mr": frozenset(PEOPLE[2:6])}
    ledger = Ledger(tmp_path)
    ledger.enter(make_study(), 1, order(1), patients, limits=LIMITS, plan=PLAN)
    assert lines(tmp_path)[0]["patients"] == {"ct": 4, "mr": 4}
    assert ledger.spent().patients == 6


def test_what_a_training_costs_stands_with_it(make_study: MakeStudy, tmp_path: Path) -> None:
    """All that its epsilon can be composed from."""
    Ledger(tmp_path).enter(make_study(), 1, order(1), PATIENTS, limits=LIMITS, plan=PLAN)
    assert lines(tmp_path)[0]["privacy"] == {
        "noise_multiplier": 2.0,
        "sample_rate": 0.5,
        "steps": 4,
        "epsilon": 100.0,
        "delta": 1e-2,
        "clip_norm": 1.0,
    }


def test_a_study_has_its_rounds_and_the_extra_ones(make_study: MakeStudy, tmp_path: Path) -> None:
    """The training after that is refused and leaves no line, also after a restart."""
    study = make_study()  # of three rounds
    ledger, two = Ledger(tmp_path), Limits(extra_rounds=2)
    for number in range(1, 6):
        ledger.enter(study, number, order(number), PATIENTS, limits=two, plan=None)
    for again in (ledger, Ledger(tmp_path)):
        with pytest.raises(BudgetError, match="5 trainings") as refusal:
            again.enter(study, 6, order(6), PATIENTS, limits=two, plan=None)
        assert "extra_rounds" in refusal.value.remedy
    assert len(lines(tmp_path)) == 5
    ledger.enter(study, 6, order(6), PATIENTS, limits=Limits(extra_rounds=3), plan=None)


def test_the_same_order_counts_once(make_study: MakeStudy, tmp_path: Path) -> None:
    """Trained again after a crash it gets its own line, and the study loses no training."""
    study, ledger = make_study(), Ledger(tmp_path)
    for number in (1, 1, 2, 3, 3, 3):
        ledger.enter(study, number, order(number), PATIENTS, limits=LIMITS, plan=None)
    assert ledger.trainings(study.digest()) == {order(1), order(2), order(3)}
    assert len(lines(tmp_path)) == 6
    with pytest.raises(BudgetError):
        ledger.enter(study, 4, order(4), PATIENTS, limits=LIMITS, plan=None)


def test_the_same_order_costs_each_time(make_study: MakeStudy, tmp_path: Path) -> None:
    """Trained again it draws new noise: the patients have paid twice."""
    study, ledger = make_study(), Ledger(tmp_path)
    for times in (1, 2, 3):
        entered = ledger.enter(study, 1, order(1), PATIENTS, limits=LIMITS, plan=PLAN)
        assert entered == (lines(tmp_path)[-1]["hash"], cost(times, delta=default_delta(4)))
        assert ledger.spent(delta=PLAN.delta).epsilon == cost(times)


def test_studies_do_not_share_a_budget(make_study: MakeStudy, tmp_path: Path) -> None:
    """Each study counts for itself, in trainings and in its own epsilon."""
    one, other = make_study(), make_study(("mr",))
    ledger, tight = Ledger(tmp_path), PLAN._replace(epsilon=cost(3))
    for number in range(1, 4):
        ledger.enter(one, number, order(number), PATIENTS, limits=LIMITS, plan=tight)
    spent = ledger.enter(other, 1, order(9), PATIENTS, limits=LIMITS, plan=tight)
    assert ledger.trainings(other.digest()) == {order(9)}
    assert spent.epsilon == cost(4, delta=default_delta(4))
    assert ledger.spent(other.digest(), PLAN.delta).epsilon == cost(1)


def test_a_study_has_its_epsilon(make_study: MakeStudy, tmp_path: Path) -> None:
    """Its planned rounds fit exactly; one more is refused and leaves neither line nor cohort."""
    study, ledger, plan = make_study(), Ledger(tmp_path), PLAN._replace(epsilon=cost(2))
    for number in (1, 2):
        ledger.enter(study, number, order(number), PATIENTS, limits=limits(), plan=plan)
    others = {"ct": frozenset(PEOPLE[:5])}
    with pytest.raises(BudgetError, match="epsilon") as refusal:
        Ledger(tmp_path).enter(study, 3, order(3), others, limits=limits(), plan=plan)
    assert refusal.value.code == "budget"
    assert len(lines(tmp_path)) == 2
    assert len(list((tmp_path / "cohorts").iterdir())) == 1


def test_all_studies_share_the_hospitals_epsilon(make_study: MakeStudy, tmp_path: Path) -> None:
    """What a patient has spent elsewhere counts, at the hospital's delta."""
    capped = limits(max_epsilon=cost(2, delta=1e-3), delta=1e-3)
    ledger = Ledger(tmp_path)
    for number, tasks in ((1, ("ct",)), (2, ("mr",))):
        study = make_study(tasks)
        spent = ledger.enter(study, 1, order(number), PATIENTS, limits=capped, plan=PLAN)
        assert spent.epsilon == cost(number, delta=1e-3)
    with pytest.raises(BudgetError, match="max_epsilon"):
        ledger.enter(make_study(("ct", "mr")), 1, order(3), PATIENTS, limits=capped, plan=PLAN)
    assert len(lines(tmp_path)) == 2


def test_who_was_not_there_has_not_paid(make_study: MakeStudy, tmp_path: Path) -> None:
    """A cohort pays for the patient of it who has spent most, not for others of the hospital."""
    study, ledger = make_study(), Ledger(tmp_path)
    capped = limits(max_epsilon=cost(2, delta=1e-2), delta=1e-2)
    old, new, both = PEOPLE[:4], PEOPLE[4:8], PEOPLE[3:5]

    def enter(number: int, people: list[str]) -> float | None:
        patients = {"ct": frozenset(people)}
        entered = ledger.enter(study, number, order(number), patients, limits=capped, plan=PLAN)
        return entered.epsilon

    assert enter(1, old) == enter(2, new) == cost(1)
    assert enter(3, both) == cost(2)
    with pytest.raises(BudgetError):
        enter(4, both)
    assert enter(5, PEOPLE[:3]) == enter(6, PEOPLE[5:8]) == cost(2)
    assert ledger.spent(delta=1e-2).epsilon == cost(2)


def test_a_training_without_privacy_stands_out(make_study: MakeStudy, tmp_path: Path) -> None:
    """It has no share in the finite epsilon, forbids no private study, and is told."""
    ledger = Ledger(tmp_path)
    ledger.enter(make_study(), 1, order(1), PATIENTS, limits=LIMITS, plan=None)
    private, capped = make_study(("mr",)), limits(max_epsilon=100.0, delta=1e-2)
    spent = ledger.enter(private, 1, order(2), PATIENTS, limits=capped, plan=PLAN)
    assert spent.epsilon == cost(1)
    overall = ledger.spent(delta=1e-2)
    assert (overall.trainings, overall.without_privacy, overall.epsilon) == (2, 1, cost(1))
    assert ledger.spent(make_study().digest()).epsilon == 0.0


def test_lines_of_old_versions_are_read(make_study: MakeStudy, tmp_path: Path) -> None:
    """They have neither cohort nor privacy: trainings without it, of unknown patients."""
    study = make_study()
    old = {"event": "training", "study": study.digest(), "name": "study", "round": 1}
    ChainedLog(tmp_path / "ledger.jsonl").append(old | {"order": order(1), "patients": {"ct": 4}})
    ledger = Ledger(tmp_path)
    ledger.enter(study, 2, order(2), PATIENTS, limits=LIMITS, plan=PLAN)
    assert ledger.trainings(study.digest()) == {order(1), order(2)}
    found = ledger.spent(delta=PLAN.delta)
    assert (found.trainings, found.without_privacy, found.unknown) == (2, 1, 1)
    assert (found.patients, found.epsilon) == (4, cost(1))


def test_an_epsilon_too_large_to_be_told_is_over_every_budget(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """With next to no noise nothing is entered."""
    plan = PLAN._replace(noise_multiplier=1e-3)
    with pytest.raises(BudgetError, match="inf"):
        Ledger(tmp_path).enter(make_study(), 1, order(1), PATIENTS, limits=LIMITS, plan=plan)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_an_empty_ledger_has_spent_nothing(make_study: MakeStudy, tmp_path: Path) -> None:
    """And is not made by a look at it."""
    ledger = Ledger(tmp_path / "state")
    assert ledger.spent()[:5] == (0, 0, 0, 0, 0.0)
    assert ledger.studies() == {}
    assert ledger.rounds_left(make_study().digest(), LIMITS) is None
    assert ledger.plan_limits(make_study().digest()) is None
    assert ledger.first_plan(make_study().digest()) is None
    assert ledger.torn() == []
    assert not (tmp_path / "state").exists()


def test_the_default_delta_is_of_all_patients_ever(make_study: MakeStudy, tmp_path: Path) -> None:
    """Of every study and cohort, each patient once."""
    ledger = Ledger(tmp_path)
    for number, people in enumerate((PEOPLE[:4], PEOPLE[2:8]), start=1):
        patients = {"ct": frozenset(people)}
        ledger.enter(make_study(), number, order(number), patients, limits=LIMITS, plan=PLAN)
    found = ledger.spent(make_study().digest())
    assert (found.patients, found.delta) == (8, default_delta(8))


def test_as_many_rounds_fit_as_are_left(make_study: MakeStudy, tmp_path: Path) -> None:
    """So many can be entered and no more, within the study's epsilon and the hospital's."""
    study, ledger, plan = make_study(), Ledger(tmp_path), PLAN._replace(epsilon=cost(6))
    capped = limits(max_epsilon=cost(4.5, delta=1e-3), delta=1e-3)
    for number in range(1, 5):
        ledger.enter(study, number, order(number), PATIENTS, limits=capped, plan=plan)
        assert ledger.rounds_left(study.digest(), capped) == (6 - number, 4 - number)
        assert ledger.rounds_left(study.digest(), limits()) == (6 - number, None)
    with pytest.raises(BudgetError, match="max_epsilon"):
        ledger.enter(study, 5, order(5), PATIENTS, limits=capped, plan=plan)
    assert ledger.studies() == {study.digest(): "study"}
    assert ledger.plan_limits(study.digest()) == (cost(6), 1e-2)


def test_the_first_private_training_is_kept_in_mind(make_study: MakeStudy, tmp_path: Path) -> None:
    """Of each study by itself, whatever came later, after a restart, and none without privacy."""
    one, other = make_study(), make_study(("mr",))
    ledger = Ledger(tmp_path)
    ledger.enter(one, 1, order(1), PATIENTS, limits=limits(), plan=None)
    assert ledger.first_plan(one.digest()) is None
    stricter = PLAN._replace(noise_multiplier=3.0, epsilon=9.0, delta=1e-3)
    for number, (study, plan) in enumerate(((one, PLAN), (other, stricter), (one, stricter)), 2):
        ledger.enter(study, number, order(number), PATIENTS, limits=limits(), plan=plan)
    for found in (ledger, Ledger(tmp_path)):
        assert found.first_plan(one.digest()) == (Mechanism(2.0, 0.5, 4), 100.0, 1e-2)
        assert found.first_plan(other.digest()) == (Mechanism(3.0, 0.5, 4), 9.0, 1e-3)
    assert ledger.plan_limits(one.digest()) == (9.0, 1e-3)


def test_a_damaged_ledger_stops_everything(make_study: MakeStudy, tmp_path: Path) -> None:
    """A line that was changed or taken out is found before the next training, and at a start."""
    study, ledger = make_study(), Ledger(tmp_path)
    for number in range(1, 4):
        ledger.enter(study, number, order(number), PATIENTS, limits=limits(), plan=None)
    path = tmp_path / "ledger.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::2]))
    with pytest.raises(ChainError):
        ledger.enter(study, 4, order(4), PATIENTS, limits=limits(), plan=None)
    with pytest.raises(ChainError):
        Ledger(tmp_path)


def test_a_damaged_cohort_stops_a_private_training(make_study: MakeStudy, tmp_path: Path) -> None:
    """What its patients have spent is unknown; nothing is written, and nothing mended."""
    study, ledger = make_study(), Ledger(tmp_path)
    ledger.enter(study, 1, order(1), PATIENTS, limits=LIMITS, plan=PLAN)
    (file,) = (tmp_path / "cohorts").iterdir()
    file.write_text("[]")
    with pytest.raises(ChainError, match="not as it was written"):
        ledger.enter(study, 2, order(2), PATIENTS, limits=LIMITS, plan=PLAN)
    assert (len(lines(tmp_path)), file.read_text()) == (1, "[]")
    file.unlink()
    with pytest.raises(ChainError, match="missing"):
        ledger.spent()


def test_a_line_of_another_form_is_told(make_study: MakeStudy, tmp_path: Path) -> None:
    """A training that cannot be read is never taken for one that cost nothing."""
    entry = {"event": "training", "study": make_study().digest(), "order": order(1)}
    for privacy in ({}, {"noise_multiplier": 1.0}, "none", 3):
        state = Path(tempfile.mkdtemp(dir=tmp_path))
        ChainedLog(state / "ledger.jsonl").append(entry | {"cohort": "", "privacy": privacy})
        with pytest.raises(ChainError, match="not as this version writes it"):
            Ledger(state).spent()


def test_a_torn_line_is_no_training(make_study: MakeStudy, tmp_path: Path) -> None:
    """A vault killed while it wrote had not begun to train; the ledger goes on, and says so."""
    study, ledger = make_study(), Ledger(tmp_path)
    ledger.enter(study, 1, order(1), PATIENTS, limits=LIMITS, plan=None)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes() * 2)
    path.write_bytes(path.read_bytes()[:-9])
    assert Ledger(tmp_path).trainings(study.digest()) == {order(1)}
    assert [line["event"] for line in lines(tmp_path)] == ["training", "torn"]
    (torn,) = ledger.torn()
    assert torn["file"] == "ledger.jsonl.torn-1"
    assert torn["at"] == lines(tmp_path)[1]["at"]


def test_a_ledger_that_cannot_be_written_is_told(make_study: MakeStudy, tmp_path: Path) -> None:
    """Before the images are read and when a training is entered, with the remedy."""
    Ledger(tmp_path).check_writable()
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.lock"]
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    for state in (blocked, Path("/proc/rarefed")):
        ledger = Ledger(tmp_path)
        ledger._state = state
        for use in (
            ledger.check_writable,
            lambda ledger=ledger: ledger.enter(
                make_study(), 1, order(1), PATIENTS, limits=LIMITS, plan=None
            ),
        ):
            with pytest.raises(DataError, match="Cannot use the ledger") as refusal:
                use()
            assert "disk" in refusal.value.remedy


def test_a_full_disk_enters_nothing(make_study: MakeStudy, tmp_path: Path) -> None:
    """A file may grow to so many bytes and no further: the training is refused, the chain holds."""
    Ledger(tmp_path).enter(make_study(), 1, order(1), PATIENTS, limits=LIMITS, plan=None)
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from client.ledger import Ledger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "state = Path(sys.argv[1])\n"
        "size = (state / 'ledger.jsonl').stat().st_size + 100\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        f"{ENTER}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, make_study().wire(), order(2)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "DataError: Cannot use the ledger" in done.stderr
    ledger = Ledger(tmp_path)
    assert ledger.trainings(make_study().digest()) == {order(1)}
    assert len(ledger.torn()) == 1


def test_a_process_that_holds_the_ledger_is_waited_for(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For so long, and then named."""
    monkeypatch.setattr(ledger_file, "LOCK_SECONDS", 0.1)
    ledger = Ledger(tmp_path)
    with (tmp_path / "ledger.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ServiceError, match=r"ledger\.lock"):
            ledger.enter(make_study(), 1, order(1), PATIENTS, limits=LIMITS, plan=None)
    ledger.enter(make_study(), 1, order(1), PATIENTS, limits=LIMITS, plan=None)


ENTER = (
    "import json\n"
    "from client.config import Limits\n"
    "from common.study import Study\n"
    "study = Study.parse(json.loads(sys.argv[2]))\n"
    "patients = {'ct': {'0' * 32}}\n"
    "print('ready', flush=True)\n"
    "sys.stdin.read()\n"
    "Ledger(state).enter(study, 1, sys.argv[3], patients, limits=Limits(extra_rounds=0), "
    "plan=None)\n"
)
"""Enters a training once standard input ends."""


def test_two_processes_race_for_the_last_training(make_study: MakeStudy, tmp_path: Path) -> None:
    """Exactly one of several vaults gets it."""
    study = make_study()  # of three rounds
    for number in (1, 2):
        Ledger(tmp_path).enter(study, number, order(number), PATIENTS, limits=LIMITS, plan=None)
    head = "import sys\nfrom pathlib import Path\nfrom client.ledger import Ledger\n"
    code = f"{head}state = Path(sys.argv[1])\n{ENTER}"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path, study.wire(), order(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (3, 4, 5)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
        racer.stdout.close()
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
    told = []
    for racer in racers:
        assert racer.stderr is not None
        with racer.stderr as stream:
            told.append(stream.read())
        racer.wait()
    assert sorted(racer.returncode for racer in racers) == [0, 1, 1]
    assert sum("BudgetError" in text for text in told) == 2
    assert len(Ledger(tmp_path).trainings(study.digest())) == 3


def test_two_processes_race_for_the_last_epsilon(make_study: MakeStudy, tmp_path: Path) -> None:
    """Exactly one of several vaults gets it, however long they compose."""
    study, capped = make_study(), limits(max_epsilon=cost(2, delta=1e-2), delta=1e-2)
    Ledger(tmp_path).enter(study, 1, order(1), PATIENTS, limits=capped, plan=PLAN)
    context = multiprocessing.get_context("fork")  # a new interpreter would load torch first
    gate, codes = context.Barrier(3), context.SimpleQueue()

    def race(number: int) -> None:
        gate.wait()
        try:
            Ledger(tmp_path).enter(study, 2, order(number), PATIENTS, limits=capped, plan=PLAN)
            codes.put("")
        except RarefedError as error:
            codes.put(error.code)

    racers = [context.Process(target=race, args=(number,)) for number in (2, 3, 4)]
    for racer in racers:
        racer.start()
    assert sorted(codes.get() for _ in racers) == ["", "budget", "budget"]
    for racer in racers:
        racer.join()
    assert len(lines(tmp_path)) == 2


ACTIONS = st.lists(
    st.tuples(st.sampled_from(("trained", "killed", "restarted")), st.integers(0, 4)), max_size=8
)
COHORTS = (PEOPLE[:4], PEOPLE[2:6], PEOPLE[4:8], PEOPLE[:8], PEOPLE[:4])
PLANS = (PLAN, PLAN, PLAN._replace(noise_multiplier=3.0), PLAN, PLAN)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=ACTIONS)
def test_kills_and_restarts_never_lose_budget(actions: list[tuple[str, int]]) -> None:
    """The ledger reports what each patient's lines cost, and never less than the unbroken run.

    A kill comes after the line and before the reply, so the coordinator sends the order again.
    """
    study = Study.parse(STUDY)
    paid: dict[str, list[Mechanism]] = {person: [] for person in PEOPLE}
    unbroken: dict[str, list[Mechanism]] = {person: [] for person in PEOPLE}
    with tempfile.TemporaryDirectory() as name:
        ledger = Ledger(Path(name))
        for number, (what, which) in enumerate(actions):
            if what == "restarted":
                ledger = Ledger(Path(name))
                continue
            plan, people = PLANS[which], COHORTS[which]
            mechanism = Mechanism(plan.noise_multiplier, plan.sample_rate, plan.steps)
            times = 2 if what == "killed" else 1
            for _ in range(times):
                patients = {"ct": frozenset(people)}
                lax = Limits(extra_rounds=100)
                ledger.enter(study, number, order(number), patients, limits=lax, plan=plan)
                ledger = Ledger(Path(name)) if what == "killed" else ledger
            for person in people:
                paid[person] += [mechanism] * times
                unbroken[person].append(mechanism)
        reported = Ledger(Path(name)).spent(delta=1e-2).epsilon
    assert reported == max(epsilon(history, 1e-2) for history in paid.values())
    assert reported >= max(epsilon(history, 1e-2) for history in unbroken.values())


STUDY = {
    "name": "study",
    "rounds": 3,
    "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
    "tasks": {"ct": {"modality": "CT", "classes": ["normal", "gaucher"], "positive": "gaucher"}},
}


def test_a_long_ledger_is_quick_to_read(make_study: MakeStudy, tmp_path: Path) -> None:
    """Trainings alike are one to compose, however many."""
    study, plan = make_study(), PLAN._replace(noise_multiplier=40.0)
    Ledger(tmp_path).enter(study, 1, order(1), PATIENTS, limits=limits(), plan=plan)
    entry = {k: v for k, v in lines(tmp_path)[0].items() if k not in {"at", "previous", "hash"}}
    log = ChainedLog(tmp_path / "ledger.jsonl")
    for _ in range(299):
        log.append(entry)
    began = os.times()
    found = Ledger(tmp_path).spent(delta=1e-2)
    used = sum(os.times()[:2]) - sum(began[:2])
    assert found.trainings == 300
    assert math.isclose(found.epsilon, cost(300, plan))
    assert used < 3.0


def test_a_private_study_never_goes_back(make_study: MakeStudy, tmp_path: Path) -> None:
    """An older round than the last trained is refused and costs nothing; the last may be redone."""
    study, ledger = make_study(), Ledger(tmp_path)
    for number in (1, 2, 2):
        ledger.enter(study, number, order(number), PATIENTS, limits=limits(), plan=PLAN)
    with pytest.raises(BudgetError, match="after round 2"):
        ledger.enter(study, 1, order(1), PATIENTS, limits=limits(), plan=PLAN)
    assert len(lines(tmp_path)) == 3
    other = make_study(training={"head_lr": 0.5})
    ledger.enter(other, 1, order(9), PATIENTS, limits=limits(), plan=PLAN)
    for number in (2, 1):  # without privacy an older round may be redone
        ledger.enter(
            make_study(rounds=9), number, order(number), PATIENTS, limits=limits(), plan=None
        )
