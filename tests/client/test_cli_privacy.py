"""Laws of ``rarefed-client ledger``."""

import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from client import cli_privacy
from client.accounting import Mechanism, default_delta, epsilon
from client.config import Limits, SiteConfig
from client.ledger import Ledger
from client.plan import Plan
from common import command_line, errors
from common.chained_log import ChainedLog
from common.study import Study

MakeStudy = Callable[..., Study]
Command = Callable[..., tuple[int, str, str]]

PATIENTS = {"ct": frozenset(f"{number:032x}" for number in range(10))}
PLAN = Plan(
    noise_multiplier=2.0,
    sample_rate=0.4,
    steps=3,
    patients=10,
    clip_norm=1.0,
    images_per_patient=1,
    epsilon=100.0,
    delta=1e-2,
)


def cost(rounds: int, delta: float = PLAN.delta) -> float:
    return epsilon([Mechanism(2.0, 0.4, 3 * rounds)], delta)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what runs the command: exit code, standard output, standard error."""
    monkeypatch.delenv("RAREFED_DEBUG", raising=False)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    cli_privacy.register(app)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rarefed-client", "ledger", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            command_line.run(app, program="rarefed-client")
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def hospital(make_hospital: Callable[..., SiteConfig], make_study: MakeStudy) -> SiteConfig:
    """A hospital of two private trainings, whose study allows six."""
    config = make_hospital()
    enter(config.state, make_study(), 2, PLAN._replace(epsilon=cost(6)))
    return config


def enter(state: Path, study: Study, rounds: int, plan: Plan | None) -> None:
    for number in range(1, rounds + 1):
        order = study.digest()[:60] + f"{number:04x}"
        Ledger(state).enter(study, number, order, PATIENTS, limits=Limits(), plan=plan)


def cap(config: SiteConfig, lines: str) -> Path:
    """Add to the hospital's limits."""
    file = config.state.parent / "site.toml"
    file.write_text(file.read_text().replace("[limits]", f"[limits]\n{lines}"))
    return file.parent


def test_nothing_entered_is_nothing_spent(
    make_hospital: Callable[..., SiteConfig], command: Command
) -> None:
    """A hospital that never trained is shown as such, and its state folder is not made."""
    config = make_hospital()
    code, out, _ = command(config.state.parent, "--json")
    found = json.loads(out)
    assert (code, found["trainings"], found["epsilon"], found["studies"]) == (0, 0, 0.0, [])
    assert not config.state.exists()
    assert command(config.state.parent)[0] == 0


def test_json_says_what_was_spent_and_what_is_left(
    hospital: SiteConfig, make_study: MakeStudy, command: Command
) -> None:
    """For all studies at the hospital's delta, and for each at its own."""
    folder = cap(hospital, f"max_epsilon = {cost(3, 1e-3)}\ndelta = 1e-3")
    code, out, _ = command(folder, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["epsilon"], found["delta"]) == (cost(2, 1e-3), 1e-3)
    assert found["left"] == pytest.approx(cost(3, 1e-3) - cost(2, 1e-3))
    (study,) = found["studies"]
    assert (study["study"], study["digest"]) == ("study", make_study().digest())
    assert (study["trainings"], study["patients"]) == (2, 10)
    assert (study["epsilon"], study["delta"], study["allowed"]) == (cost(2), 1e-2, cost(6))
    assert study["rounds_left"] == {"study": 4, "site": 1}


def test_a_table_says_the_same(hospital: SiteConfig, command: Command) -> None:
    """Spent, left, and the rounds that fit, study by study."""
    code, out, _ = command(hospital.state.parent)
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert code == 0
    assert f"{cost(2, default_delta(10)):.3g}" in rows["spent"]
    assert "no limit" in rows["left"]
    assert [cell.strip() for cell in rows["study"].split("│")[3:6]] == [
        "2",
        "10",
        f"{cost(2):.3g}",
    ]
    assert rows["study"].rstrip(" │").endswith("4")


def test_trainings_without_privacy_are_told(
    hospital: SiteConfig, make_study: MakeStudy, command: Command
) -> None:
    """A figure beside which others have no bound does not stand alone."""
    enter(hospital.state, make_study(("mr",)), 1, None)
    out = command(hospital.state.parent)[1]
    assert "not private (with privacy" in out
    found = json.loads(command(hospital.state.parent, "--json")[1])
    assert found["without_privacy"] == 1
    assert [study["rounds_left"] is None for study in found["studies"]] == [False, True]


def test_lines_of_old_versions_are_told(hospital: SiteConfig, command: Command) -> None:
    """Nobody knows whose they are."""
    entry = {"event": "training", "study": "a" * 64, "name": "old", "round": 1, "order": "b" * 64}
    ChainedLog(hospital.state / "ledger.jsonl").append(entry | {"patients": {"ct": 3}})
    out = command(hospital.state.parent)[1]
    assert "of old versions" in out
    assert json.loads(command(hospital.state.parent, "--json")[1])["unknown"] == 1


def test_a_torn_end_is_told(hospital: SiteConfig, command: Command) -> None:
    """It was moved aside, and each look at the ledger says so from then on."""
    path = hospital.state / "ledger.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at": "20')
    for _ in range(2):
        assert "ledger.jsonl.torn-1" in command(hospital.state.parent)[1]
    assert json.loads(command(hospital.state.parent, "--json")[1])["trainings"] == 2


def test_a_damaged_ledger_ends_with_the_code_of_damage(
    hospital: SiteConfig, command: Command
) -> None:
    """And so does a cohort that is missing."""
    path = hospital.state / "ledger.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"round": 1', '"round": 9'))
    code, _, told = command(hospital.state.parent)
    assert code == errors.ChainError.exit_code
    assert "line 1" in told
    path.write_text(whole)
    for file in (hospital.state / "cohorts").iterdir():
        file.unlink()
    assert command(hospital.state.parent)[0] == errors.ChainError.exit_code


def test_an_unreadable_ledger_names_whom_to_ask(hospital: SiteConfig, command: Command) -> None:
    """The folder is the vault's user's."""
    (hospital.state / "ledger.jsonl").unlink()
    (hospital.state / "ledger.jsonl").mkdir()  # what nobody can open for writing, not even root
    code, _, told = command(hospital.state.parent)
    assert code == errors.DataError.exit_code
    assert "vault's user" in told


def test_it_runs_beside_the_vault(hospital: SiteConfig, command: Command) -> None:
    """It needs no lock that the vault holds while it composes."""
    with (hospital.state / "ledger.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert command(hospital.state.parent)[0] == 0


def test_a_look_changes_nothing(hospital: SiteConfig, command: Command) -> None:
    """No file of the state folder is written."""
    before = {file: file.stat().st_mtime_ns for file in hospital.state.rglob("*")}
    command(hospital.state.parent)
    assert {file: file.stat().st_mtime_ns for file in hospital.state.rglob("*")} == before
