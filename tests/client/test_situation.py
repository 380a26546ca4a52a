"""Laws of what ``status`` shows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.config import SiteConfig
from client.situation import PAUSED_FILE, situation_of
from client.vault import PAUSED_FILE as VAULTS_PAUSED_FILE
from common.chained_log import ChainedLog
from common.study import Study


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    return make_study()


@pytest.fixture
def hospital(make_joined: Callable[..., SiteConfig], study: Study) -> SiteConfig:
    """A hospital that has approved a study and answered three orders of it."""
    config = make_joined(study)
    audit, ledger = (ChainedLog(config.state / name) for name in ("audit.jsonl", "ledger.jsonl"))
    audit.append({"event": "started"})
    for number in (1, 2):
        order = {"study": study.digest(), "round": number, "order": f"order-{number}"}
        ledger.append({"event": "training", **order, "patients": {"ct": 4}})
        audit.append({"event": "answered", **order, "kind": "train", "code": "", "bytes": 9})
    ledger.append({"event": "training", **order, "patients": {"ct": 4}})
    audit.append({"event": "refused", **order, "kind": "train", "code": "paused"})
    audit.append({"event": "rejected", "status": 404, "path": "/etc/passwd"})
    return config


def shown(config: SiteConfig, last: int = 5) -> dict[str, Any]:
    return situation_of(config, config.state.parent, last=last)


def test_the_exchanges_are_those_of_the_audit_log(hospital: SiteConfig) -> None:
    """Orders with their replies are shown, oldest first; attempts at the socket are not."""
    found = shown(hospital)
    assert [entry["event"] for entry in found["exchanges"]] == ["answered", "answered", "refused"]
    assert found["exchanges"][-1]["code"] == "paused"
    assert found["last_exchange"] == found["exchanges"][-1]["at"]
    assert [entry["round"] for entry in shown(hospital, last=2)["exchanges"]] == [2, 2]
    assert shown(hospital, last=0)["exchanges"] == []


def test_an_approved_study_is_shown_with_its_trainings(hospital: SiteConfig, study: Study) -> None:
    """An order that was trained twice counts once, as in the ledger."""
    (entry,) = shown(hospital)["approved"]
    assert (entry["name"], entry["digest"]) == (study.name, study.digest())
    assert (entry["trainings"], entry["rounds"]) == (2, 3)


def test_nothing_of_a_patient_is_shown(hospital: SiteConfig) -> None:
    """No patient, no count of patients, no image and no manifest is in what is shown."""
    text = json.dumps(shown(hospital))
    for word in ("PATIENT", "patients", "scan_", "labels.csv"):
        assert word not in text


def test_a_disputed_head_shows(hospital: SiteConfig) -> None:
    """Where the coordinator holds another log than this one, the hospital is told how often."""
    assert shown(hospital)["disputed"] == 0
    ChainedLog(hospital.state / "audit.jsonl").append({"event": "disputed", "countersigned": {}})
    assert shown(hospital)["disputed"] == 1


def test_a_pause_shows(hospital: SiteConfig) -> None:
    """The flag is the very file that the vault looks at."""
    assert PAUSED_FILE == VAULTS_PAUSED_FILE
    assert shown(hospital)["paused"] is False
    (hospital.state / PAUSED_FILE).touch()
    assert shown(hospital)["paused"] is True


def test_a_hospital_of_its_own_shows_too(make_hospital: Callable[..., SiteConfig]) -> None:
    """Before joining everything is empty, and nothing fails."""
    found = shown(make_hospital())
    assert found["coordinator"] is None
    assert found["processes"] == {}
    assert found["approved"] == []
    assert found["vault"] == "absent"
    assert found["unreadable"] == []


def test_a_damaged_log_is_told_and_the_rest_shown(hospital: SiteConfig) -> None:
    """A line that was changed in the audit log does not hide the state of the hospital."""
    file: Path = hospital.state / "audit.jsonl"
    file.write_text(file.read_text().replace('"answered"', '"anschwered"', 1))
    found = shown(hospital)
    assert len(found["unreadable"]) == 1
    assert "audit log" in found["unreadable"][0]
    assert found["approved"]


def test_the_processes_of_both_supervisors_are_shown(hospital: SiteConfig) -> None:
    """Those of root's supervisor and of the courier's own stand in one table; dead ones as down."""
    hospital.courier.mkdir()
    (hospital.state.parent / "supervisor").mkdir()
    gone = {"pid": 1, "since": "x", "restarts": 3, "last_exit": -9, "boot": "another", "ticks": "1"}
    (hospital.courier / "processes.json").write_text(json.dumps({"supernode": gone}))
    (hospital.state.parent / "supervisor/processes.json").write_text(json.dumps({"vault": gone}))
    found = shown(hospital)["processes"]
    assert set(found) == {"vault", "supernode"}
    assert found["vault"] == {"pid": None, "since": "x", "restarts": 3, "last_exit": -9}
