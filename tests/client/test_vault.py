"""Laws of the vault: which orders it follows, how often, and what it says otherwise."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from client.approvals import withdraw
from client.config import SiteConfig, site_key
from client.site import Site
from client.vault import Vault
from common.arrays import digest
from common.bodies import read_body, write_body
from common.chained_log import ChainedLog
from common.errors import ChainError, EnrolmentError, OrderError
from common.messages import Order, Reply, reply_from_record
from common.seals import new_order_key
from common.study import Study
from common.wire_arrays import WireArrays

MakeStudy = Callable[..., Study]
MakeJoined = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]
Sealed = Callable[..., RecordDict]

SECRETS = ("PATIENT", "scan_", ".png", "labels.csv", "site.toml", "images/", "Traceback")


def asked(vault: Vault, record: RecordDict) -> tuple[Path, Reply]:
    """Return the reply's file, and the reply as it comes out of the wire at the coordinator."""
    body = vault.config.state.with_name("order.body")
    write_body(record, body)
    path = vault.answer(body)
    everything = path.read_bytes()
    for secret in (*SECRETS, str(vault.config.state.parent)):
        assert secret.encode() not in everything
    return path, reply_from_record(read_body(path))


def events(vault: Vault) -> list[str]:
    return [entry["event"] for entry in audited(vault)]


def audited(vault: Vault) -> list[dict[str, Any]]:
    return ChainedLog(vault.config.state / "audit.jsonl").entries()


def trainings(vault: Vault) -> list[dict[str, Any]]:
    return ChainedLog(vault.config.state / "ledger.jsonl").entries()


def digests(arrays_by_name: Any) -> dict[Any, str]:
    return {name: digest(arrays) for name, arrays in arrays_by_name.items()}


def refused(study: Study, code: str, number: int = 1) -> Reply:
    return Reply("site-a", study.digest(), number, refusal=code)


# What it follows


@pytest.mark.parametrize("kind", ["check", "train", "evaluate"])
def test_an_approved_and_sealed_order_is_followed(
    kind: str, make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """The reply is the site's own, to the bit, and the logs say what was asked and what went."""
    study = make_study()
    config, order = make_joined(study), make_order(study, kind)
    site_key(config)
    copied = config.model_copy(update={"state": config.state.with_name("copy")})
    shutil.copytree(config.state, copied.state)
    expected, vault = Site(copied).answer(order).reply, Vault(config)
    _, reply = asked(vault, sealed(order))
    assert reply.refusal == expected.refusal == ""
    assert reply.declaration == expected.declaration
    assert digests(reply.groups) == digests(expected.groups)
    assert digests(reply.metrics) == digests(expected.metrics)
    (entry,) = audited(vault)
    claims = {"event": "answered", "study": study.digest(), "round": order.round, "kind": kind}
    assert claims.items() <= entry.items()
    assert set(entry["groups"]) == set(reply.groups)
    assert len(trainings(vault)) == (kind == "train")


def test_a_training_is_entered_with_its_patients(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """The ledger names study, round and patients by task, under the order that the audit names."""
    study = make_study()
    vault = Vault(make_joined(study))
    asked(vault, sealed(make_order(study)))
    (line,) = trainings(vault)
    assert (line["study"], line["round"], line["patients"]) == (study.digest(), 1, {"ct": 4})
    assert line["order"] == audited(vault)[0]["order"]


# An order that comes again


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("with_base", [False, True])
def test_an_order_that_comes_again_is_not_trained_again(
    restarted: bool,  # noqa: FBT001 - a parameter of the test
    with_base: bool,  # noqa: FBT001 - the same
    make_study: MakeStudy,
    make_joined: MakeJoined,
    make_order: MakeOrder,
    sealed: Sealed,
) -> None:
    """It gets the stored file, with or without the base, also after a restart, and a note."""
    study = make_study(backbone={"normalisation": "local"})
    vault = Vault(make_joined(study))
    order = make_order(study)
    path, first = asked(vault, sealed(order))
    content = path.read_bytes()
    if restarted:
        vault = Vault(vault.config)
    again, second = asked(vault, sealed(order if with_base else order._replace(base=None)))
    assert first.refusal == ""
    assert again == path
    assert again.read_bytes() == content
    assert second.training == first.training
    assert len(trainings(vault)) == 1
    assert events(vault) == ["answered", "repeated"]


def test_a_check_in_between_does_not_lose_the_reply(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """A coordinator that starts again checks first, and then sends the round's order again."""
    study = make_study()
    vault = Vault(make_joined(study))
    path, _ = asked(vault, sealed(make_order(study)))
    check, reply = asked(vault, sealed(make_order(study, "check")))
    assert check.parent == vault.spool
    assert reply.declaration is not None
    assert reply.declaration.base
    assert asked(vault, sealed(make_order(study)))[0] == path
    assert len(trainings(vault)) == 1


def test_a_crash_before_the_reply_is_stored_trains_from_the_same_start(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """The order that comes again gives the same bytes, and the study loses no training."""
    study = make_study(backbone={"normalisation": "local"})
    vault = Vault(make_joined(study))
    for number in (1, 2):
        path, first = asked(vault, sealed(make_order(study, number=number)))
        path.unlink()  # as if the process had ended just before it was written
        vault = Vault(vault.config)
        again, second = asked(vault, sealed(make_order(study, number=number)))
        assert again == path
        assert digests(second.groups) == digests(first.groups)
        assert digests(second.metrics) == digests(first.metrics)
    assert [line["round"] for line in trainings(vault)] == [1, 1, 2, 2]
    assert len(vault.ledger.trainings(study.digest())) == 2


def test_a_refusal_is_not_kept(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """What a refused order lacked may be there when it comes again."""
    study = make_study()
    vault = Vault(make_joined(study))
    order = make_order(study)
    assert asked(vault, sealed(order._replace(base=None)))[1] == refused(study, "order")
    assert asked(vault, sealed(order))[1].refusal == ""


# What it does not follow


def test_a_seal_is_asked_for_first(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """No seal, another coordinator's, another site's and a changed order are all just that."""
    study = make_study()
    vault, order = Vault(make_joined(study)), make_order(study)
    unsealed, changed = sealed(order), sealed(order)
    del unsealed["seal"]
    head = changed["order"]
    assert isinstance(head, ConfigRecord)
    changed["order"] = ConfigRecord(dict(head) | {"round": 2})
    for record, number in (
        (unsealed, 1),
        (sealed(order, key=new_order_key()[0]), 1),
        (sealed(order, site="site-b"), 1),
        (changed, 2),
    ):
        assert asked(vault, record)[1] == refused(study, "seal", number)
    assert not trainings(vault)
    assert [entry["code"] for entry in audited(vault)] == ["seal"] * 4


def test_another_protocol_is_refused(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """A sealed order of another version, or with a study that is none, is not followed."""
    study = make_study()
    vault = Vault(make_joined(study))
    changes: tuple[dict[str, Any], ...] = ({"protocol": 999}, {"study": "{}"}, {"kind": "explain"})
    for change in changes:
        record = sealed(make_order(study), **change)
        assert asked(vault, record)[1] == refused(study, "study_mismatch")


def test_what_the_hospital_has_not_approved_is_refused(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """No kind of order gets anything, not even counts; nor after approval was withdrawn."""
    study, other = make_study(), make_study(training={"local_epochs": 2})
    vault = Vault(make_joined(study))
    for kind in ("check", "train", "evaluate"):
        order = make_order(other, kind)
        assert asked(vault, sealed(order))[1] == refused(other, "not_approved", order.round)
    assert asked(vault, sealed(make_order(study)))[1].refusal == ""
    withdraw(vault.config, study.digest())
    assert asked(vault, sealed(make_order(study)))[1] == refused(study, "not_approved")
    assert len(trainings(vault)) == 1


def test_a_paused_hospital_answers_nothing(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """Not even a reply that it has already; it goes on when the flag is gone."""
    study = make_study()
    vault = Vault(make_joined(study))
    asked(vault, sealed(make_order(study)))
    (vault.config.state / "paused").touch()
    assert asked(vault, sealed(make_order(study)))[1] == refused(study, "paused")
    (vault.config.state / "paused").unlink()
    assert asked(vault, sealed(make_order(study)))[1].refusal == ""


def test_a_study_ends_with_its_budget(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """After the study's rounds and the extra ones no training begins; a measurement still does."""
    study = make_study().model_copy(update={"rounds": 1})
    config = make_joined(study)
    limits = config.limits.model_copy(update={"extra_rounds": 1})
    vault = Vault(config.model_copy(update={"limits": limits}))
    for number, code in ((1, ""), (2, ""), (3, "budget")):
        assert asked(vault, sealed(make_order(study, number=number)))[1].refusal == code
    assert asked(vault, sealed(make_order(study, "evaluate", number=3)))[1].refusal == ""
    assert len(trainings(vault)) == 2


def test_data_that_cannot_be_used_cost_no_training(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """What is wrong with the table is told by its code, before the ledger has a line."""
    study = make_study()
    vault = Vault(make_joined(study))
    vault.config.data["ct"].manifest.write_text("path,label,patient_id\n")
    assert asked(vault, sealed(make_order(study)))[1] == refused(study, "empty_manifest")
    assert not trainings(vault)


def test_a_damaged_ledger_or_log_stops_the_vault(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """Changed while it runs, nothing more is trained; and it does not start so."""
    study = make_study()
    vault = Vault(make_joined(study))
    asked(vault, sealed(make_order(study)))
    ledger = vault.config.state / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"round": 1', '"round": 9'))
    assert asked(vault, sealed(make_order(study, number=2)))[1] == refused(study, "chain", 2)
    with pytest.raises(ChainError):
        Vault(vault.config)


# What is no order


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"reply": ConfigRecord({})}),
        RecordDict({"order": MetricRecord({"digest": 1})}),
        RecordDict({"order": WireArrays.of({"a": np.zeros(2)}).record}),
    ],
)
def test_what_is_no_order_has_no_reply(record: RecordDict, make_joined: MakeJoined) -> None:
    """A record without an order, or a file that is no record, is the caller's to turn away."""
    vault = Vault(make_joined())
    body = vault.config.state.with_name("body")
    write_body(record, body)
    with pytest.raises(OrderError):
        vault.answer(body)
    body.write_bytes(body.read_bytes()[:-1] + b"x")
    with pytest.raises(OrderError):
        vault.answer(body)
    assert list(vault.spool.iterdir()) == []


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"digest": "../../etc/passwd", "round": -1, "kind": "x" * 9999},
        {"digest": 3, "round": True, "kind": b"train"},
        {"digest": "é" * 64, "round": 10**9, "kind": "train"},
        {"round": 2**62},
    ],
)
def test_a_refusal_repeats_nothing_foreign(head: dict[str, Any], make_joined: MakeJoined) -> None:
    """Of an order that claims anything, a refusal says back a digest and a number, or neither."""
    vault = Vault(make_joined())
    _, reply = asked(vault, RecordDict({"order": ConfigRecord(head)}))
    number = head["round"] if head.get("round") == 10**9 else 0
    assert reply == Reply("site-a", "0" * 64, number, refusal="seal")


@pytest.mark.parametrize(
    "name", ["../../escape", "/etc/passwd", "a/b", "..", "a\0b", "metrics/x/y"]
)
def test_a_parts_name_is_never_a_path(
    name: str, make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """A sealed order with such a part is refused, and no file comes of it."""
    study = make_study()
    vault = Vault(make_joined(study))
    asked(vault, sealed(make_order(study, "check")))
    before = {path for path in vault.config.state.parent.rglob("*") if path.is_file()}
    order = make_order(study)
    bad = order._replace(groups={**order.groups, name: {"../x": np.zeros(2, np.float32)}})
    assert asked(vault, sealed(bad))[1] == refused(study, "order")
    names = {p.name for p in vault.config.state.parent.rglob("*") if p.is_file()}
    grown = {"ledger.jsonl", *(path.name for path in vault.spool.iterdir())}
    assert names - {path.name for path in before} <= grown


# How it starts


def test_a_hospital_that_has_not_joined_has_no_vault(make_joined: MakeJoined) -> None:
    """Nor one that joined under another name."""
    config = make_joined()
    pinned = config.state / "coordinator.json"
    pinned.write_text(json.dumps(json.loads(pinned.read_text()) | {"site": "site-b"}))
    with pytest.raises(EnrolmentError, match="site-b"):
        Vault(config)
    pinned.unlink()
    with pytest.raises(EnrolmentError, match="not joined"):
        Vault(config)


def test_a_start_clears_what_a_crash_left(
    make_study: MakeStudy, make_joined: MakeJoined, make_order: MakeOrder, sealed: Sealed
) -> None:
    """Half-written orders and replies go; the last reply stays, for the owner alone to read."""
    study = make_study()
    vault = Vault(make_joined(study))
    path, _ = asked(vault, sealed(make_order(study)))
    (vault.spool / "order-x").write_bytes(b"half")
    path.with_name(f".{path.name}.x").write_bytes(b"half")
    vault = Vault(vault.config)
    assert list(vault.spool.iterdir()) == []
    assert {p.name for p in path.parent.iterdir()} == {
        "base.safetensors", "base.sha256", "first.safetensors", path.name,
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
