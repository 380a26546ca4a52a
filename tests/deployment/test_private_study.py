"""Laws of a private study that is deployed, and whose processes are killed."""

from pathlib import Path

import pytest

from client.ledger import Ledger
from common.study import Study
from server import front
from server.history import load
from server.studies import toml_text
from simulations.benches.studies import phantom_hospitals, phantom_study
from simulations.demonstration import WEIGHTS
from simulations.deployment import Deployment, deployment, give_one_thread, set_up
from simulations.kills import Kill, play_through

EPSILON = 8.0
KILLS = (
    Kill("site", "vault"),
    Kill("site", "clientapp", "replying"),
    Kill("coordinator", "serverapp"),
)


@pytest.mark.slow
@pytest.mark.skipif(front.program() is None, reason="nginx is not installed")
def test_no_kill_costs_a_patient_more_than_was_agreed(tmp_path: Path) -> None:
    """Whatever is killed: each training has its entry, logs agree, and epsilon keeps its bound."""
    study = phantom_study(
        name="private",
        rounds=len(KILLS) + 2,
        backbone={"weights": str(WEIGHTS), "normalisation": "frozen"},
        training={"batch_size": 8, "train": "head"},
        privacy={"epsilon": EPSILON, "spare_rounds": 2},
        federation={"quorum": 3, "deadline_s": 600.0, "update_norm": 5.0},
    )
    made = phantom_hospitals(tmp_path / "hospitals", sites=3, patients=60)
    give_one_thread(made)
    file = tmp_path / "study.toml"
    file.write_text(toml_text(study), encoding="utf-8")
    with deployment(tmp_path / "coordinator") as deployed:
        set_up(deployed, made, file)
        study_id = deployed.server("run", str(file), "--no-follow")["study"]
        play_through(deployed, study_id, made, KILLS, tmp_path, lambda _: None)
        records = load(deployed.study_folder(study_id))
        heads = deployed.server("heads", study_id)["audit_heads"]
        for hospital in made:
            check_site(deployed, hospital, study, heads[hospital.name]["head"])
    assert [r.round for r in records if r.combined] == list(range(1, study.rounds + 1))
    assert all(figure["loss"] is None for r in records for figure in r.training.values())
    assert not any(record.audit_faults for record in records)


def check_site(deployed: Deployment, hospital: Path, study: Study, head: str) -> None:
    """Check ledger and audit log, against one another and against what the coordinator holds."""
    spent = Ledger(hospital / "state").spent(study.digest())
    assert study.rounds <= spent.trainings <= study.rounds + len(KILLS)
    assert spent.without_privacy == 0
    assert spent.epsilon <= EPSILON * 1.001
    audit = deployed.client(hospital, "audit", "verify", str(hospital), "--head", head)
    assert audit["trainings"] >= study.rounds
    assert audit["held"] is not None
    assert audit["disputed"] == 0
    assert audit["countersigned"] > 0
