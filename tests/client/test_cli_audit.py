"""Laws of ``rarefed-client audit``."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import typer

from client import cli_audit
from client.approvals import approve
from client.audit import Audit, describe_reply
from client.config import SiteConfig
from common.arrays import Array
from common.chained_log import ChainedLog, Head
from common.command_line import run
from common.messages import Reply
from common.study import Study

Command = Callable[..., tuple[int, str, str]]
OTHER = "ef" * 32


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what runs the commands: exit code, standard output, standard error."""
    monkeypatch.delenv("RAREFED_DEBUG", raising=False)
    app = typer.Typer(pretty_exceptions_enable=False)
    cli_audit.register(app)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rarefed-client", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run(app, program="rarefed-client")
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def site(make_hospital: Callable[..., SiteConfig], make_study: Callable[..., Study]) -> Path:
    """Return the folder of a hospital that has followed three orders of two studies."""
    config, study = make_hospital(), make_study()
    config.state.mkdir(mode=0o700)
    approve(config, study, datetime.now(UTC))
    digest, ledger = study.digest(), ChainedLog(config.state / "ledger.jsonl")
    ledger.append({"event": "training", "study": digest, "round": 2, "order": "cd" * 32})
    change: dict[str, Array] = {"w": np.zeros(4, np.float32)}
    reply = Reply("site-a", digest, 2, groups={"shared": change})
    audit = Audit(config.state)
    audit.note("started")
    audit.note_exchange(
        "sent", study=digest, number=0, kind="check", order="01" * 32, size=900,
        carried={"declaration": True},
    )  # fmt: skip
    audit.note_exchange(
        "sent", study=digest, number=2, kind="train", order="cd" * 32, size=12345, epsilon=0.75,
        ledger=ledger.entries()[-1]["hash"],
        carried=describe_reply(reply, [("ct", "test")]),
    )  # fmt: skip
    audit.note_exchange(
        "refused", study=OTHER, number=1, kind="train", order="", code="not_approved"
    )
    return config.state.parent


def test_a_good_log_is_verified(site: Path, command: Command) -> None:
    """Both logs are counted, and the head is printed to be noted elsewhere."""
    code, out, _ = command("audit", "verify", site)
    assert code == 0
    assert "4 lines of the audit log" in out
    assert "1 of 1 lines of the ledger" in out
    head = ChainedLog(site / "state/audit.jsonl").entries()[-1]["hash"]
    assert f"head {head}" in out
    found = json.loads(command("audit", "verify", site, "--json")[1])
    assert found["site"] == "site-a"
    assert (found["lines"], found["head"], found["trainings"]) == (4, head, 1)
    assert set(found) == {
        "site", "lines", "head", "trainings", "ledger_lines", "ledger_head", "countersigned",
        "disputed", "held",
    }  # fmt: skip
    assert (found["countersigned"], found["disputed"], found["held"]) == (0, 0, None)
    assert "countersigned up to line 0 of 4" in out


def test_a_hash_that_somebody_holds_is_looked_for(site: Path, command: Command) -> None:
    """Its line is told; of no line it ends with 71, and what is no hash is wrong usage."""
    hashes = [line["hash"] for line in ChainedLog(site / "state/audit.jsonl").entries()]
    code, out, _ = command("audit", "verify", site, "--head", f" {hashes[1].upper()} ")
    assert code == 0
    assert f"line 2 has the hash {hashes[1]}" in out
    found = json.loads(command("audit", "verify", site, "--head", hashes[3], "--json")[1])
    assert found["held"] == 4
    code, out, err = command("audit", "verify", site, "--head", "ab" * 32)
    assert (code, out) == (71, "")
    assert f"no line has the hash {'ab' * 32}" in err
    assert command("audit", "verify", site, "--head", hashes[1][:20])[0] == 2


def test_countersigned_heads_are_shown(site: Path, command: Command) -> None:
    """The statement says up to where, and which heads were disputed."""
    audit = Audit(site / "state")
    audit.note_dispute(Head(9, "ab" * 32), study=OTHER, round=1, countersigned={"entries": 9})
    audit.note_exchange(
        "sent", study=OTHER, number=2, kind="train", order="", countersigned={"entries": 3}
    )
    out = command("audit", "show", site, "--last", 2)[1]
    assert "disputed: what the coordinator holds of line 9" in out
    assert "countersigned up to line 3" in out


@pytest.mark.parametrize("file", ["audit.jsonl", "ledger.jsonl"])
def test_a_changed_log_ends_with_71(file: str, site: Path, command: Command) -> None:
    """What was changed is told with its remedy, and nothing is repaired."""
    path = site / "state" / file
    changed = path.read_text().replace('"round": 2', '"round": 7')
    path.write_text(changed)
    code, out, err = command("audit", "verify", site)
    assert (code, out) == (71, "")
    assert "not as it was written" in err
    assert "Remedy" in err
    assert path.read_text() == changed


def test_the_head_is_the_last_line(site: Path, command: Command) -> None:
    """Hash and number of lines stand on one line; a site without a log has none."""
    head = ChainedLog(site / "state/audit.jsonl").entries()[-1]["hash"]
    assert command("audit", "head", site)[:2] == (0, f"{head} 4\n")
    found = json.loads(command("audit", "head", site, "--json")[1])
    assert found == {"site": "site-a", "head": head, "lines": 4}
    (site / "state/audit.jsonl").unlink()
    assert command("audit", "head", site)[1] == f"{'0' * 64} 0\n"


def test_the_log_reads_like_a_bank_statement(site: Path, command: Command) -> None:
    """Each line has its time, study, round, what went, what it cost, its bytes and the decision."""
    code, out, _ = command("audit", "show", site)
    assert code == 0
    for column in ("time (UTC)", "study", "round", "what", "epsilon after", "bytes", "decision"):
        assert column in out
    trained = next(line for line in out.splitlines() if "train:" in line and "study" in line)
    for cell in ("2", "0.7500", "12,345", "sent"):
        assert cell in trained.split()
    assert "change of shared" in out
    assert "kept back: metrics ct/test" in out
    assert "numbers of patients and images" in out
    assert "started" in out
    assert "refused: not_approved" in out


def test_the_statement_can_be_cut_down(
    site: Path, make_study: Callable[..., Study], command: Command
) -> None:
    """To the last lines, and to one study by its name or by how its digest begins."""

    def rounds(*options: object) -> list[int]:
        lines = json.loads(command("audit", "show", site, "--json", *options)[1])["lines"]
        return [line.get("round", -1) for line in lines]

    assert rounds() == [-1, 0, 2, 1]
    assert rounds("--last", 2) == [2, 1]
    assert rounds("--last", 0) == []
    assert rounds("--study", "study") == [0, 2]
    assert rounds("--study", make_study().digest()[:12].upper()) == [0, 2]
    assert rounds("--study", "efef") == [1]
    assert rounds("--study", "study", "--last", 1) == [2]
    assert rounds("--study", "none of these") == []


def test_lines_of_an_older_release_are_shown(site: Path, command: Command) -> None:
    """A line without decision, cost or digests shows what it has."""
    state = site / "state"
    Audit(state).note("answered", study=OTHER, round=9, kind="evaluate", order="", bytes=5)
    code, out, _ = command("audit", "show", site, "--last", 1)
    assert code == 0
    assert [OTHER[:16], "9", "evaluate", "5", "sent"] == out.splitlines()[-2].split()[2:]


def test_a_log_that_cannot_be_read_is_told(site: Path, command: Command) -> None:
    """It is an error with its remedy, whichever of the commands asks for it."""
    path = site / "state/audit.jsonl"
    path.unlink()
    path.mkdir()
    for name in ("verify", "show", "head"):
        code, _, err = command("audit", name, site)
        assert code == 20
        assert "vault's user" in err
