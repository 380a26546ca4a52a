"""Laws of the site's ledger."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from client.ledger import Ledger
from common.errors import BudgetError, ChainError
from common.study import Study

MakeStudy = Callable[..., Study]

PATIENTS = {"ct": 4}


def order(number: int) -> str:
    return f"{number:064x}"


def lines(state: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (state / "ledger.jsonl").read_text().splitlines()]


def test_a_training_stands_in_the_ledger(make_study: MakeStudy, tmp_path: Path) -> None:
    """With study, round, order and the patients of each task, for its owner alone to read."""
    study, ledger = make_study(), Ledger(tmp_path)
    ledger.enter(study, 1, order(1), PATIENTS, extra_rounds=0)
    (entry,) = lines(tmp_path)
    expected = {
        "event": "training",
        "study": study.digest(),
        "name": "study",
        "round": 1,
        "order": order(1),
        "patients": PATIENTS,
    }
    assert expected.items() <= entry.items()
    assert stat.S_IMODE((tmp_path / "ledger.jsonl").stat().st_mode) == 0o600


def test_a_study_has_its_rounds_and_the_extra_ones(make_study: MakeStudy, tmp_path: Path) -> None:
    """The training after that is refused and leaves no line, also after a restart."""
    study = make_study()  # of three rounds
    ledger = Ledger(tmp_path)
    for number in range(1, 6):
        ledger.enter(study, number, order(number), PATIENTS, extra_rounds=2)
    for again in (ledger, Ledger(tmp_path)):
        with pytest.raises(BudgetError, match="5 trainings") as refusal:
            again.enter(study, 6, order(6), PATIENTS, extra_rounds=2)
        assert "extra_rounds" in refusal.value.remedy
    assert len(lines(tmp_path)) == 5
    ledger.enter(study, 6, order(6), PATIENTS, extra_rounds=3)


def test_the_same_order_counts_once(make_study: MakeStudy, tmp_path: Path) -> None:
    """Trained again after a crash it gets its own line, and the study loses no training."""
    study, ledger = make_study(), Ledger(tmp_path)
    for number in (1, 1, 2, 3, 3, 3):
        ledger.enter(study, number, order(number), PATIENTS, extra_rounds=0)
    assert ledger.trainings(study.digest()) == {order(1), order(2), order(3)}
    assert len(lines(tmp_path)) == 6
    with pytest.raises(BudgetError):
        ledger.enter(study, 4, order(4), PATIENTS, extra_rounds=0)


def test_studies_do_not_share_a_budget(make_study: MakeStudy, tmp_path: Path) -> None:
    """Each study counts for itself."""
    one, other = make_study(), make_study(("mr",))
    ledger = Ledger(tmp_path)
    for number in range(1, 4):
        ledger.enter(one, number, order(number), PATIENTS, extra_rounds=0)
    ledger.enter(other, 1, order(9), PATIENTS, extra_rounds=0)
    assert ledger.trainings(other.digest()) == {order(9)}


def test_a_damaged_ledger_stops_everything(make_study: MakeStudy, tmp_path: Path) -> None:
    """A line that was changed or taken out is found before the next training, and at a start."""
    study, ledger = make_study(), Ledger(tmp_path)
    for number in range(1, 4):
        ledger.enter(study, number, order(number), PATIENTS, extra_rounds=5)
    path = tmp_path / "ledger.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::2]))
    with pytest.raises(ChainError):
        ledger.enter(study, 4, order(4), PATIENTS, extra_rounds=5)
    with pytest.raises(ChainError):
        Ledger(tmp_path)


def test_a_torn_line_is_no_training(make_study: MakeStudy, tmp_path: Path) -> None:
    """A vault killed while it wrote had not begun to train; the ledger goes on, and says so."""
    study, ledger = make_study(), Ledger(tmp_path)
    ledger.enter(study, 1, order(1), PATIENTS, extra_rounds=0)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes() * 2)
    path.write_bytes(path.read_bytes()[:-9])
    assert Ledger(tmp_path).trainings(study.digest()) == {order(1)}
    assert [line["event"] for line in lines(tmp_path)] == ["training", "torn"]
