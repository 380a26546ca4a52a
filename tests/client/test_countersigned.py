"""Laws of the countersigned audit log: neither side can rewrite history unseen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import ConfigRecord, RecordDict

from client.audit import Audit
from client.audit_check import Verified, verify
from client.config import SiteConfig
from client.countersigned import proof_of
from client.vault import Vault
from common.bodies import read_body, write_body
from common.chained_log import FIRST, ChainedLog, Head
from common.errors import ChainError
from common.messages import Order, Reply, head_to_part, reply_from_record
from common.seals import Seal, Sealer, check_seal, load_order_key, new_order_key
from common.study import Study
from common.versions import PROTOCOL

MakeStudy = Callable[..., Study]
MakeJoined = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]
Sealed = Callable[..., RecordDict]
Ask = Callable[..., Reply]


@pytest.fixture
def vault(make_study: MakeStudy, make_joined: MakeJoined) -> Vault:
    return Vault(make_joined(make_study(federation={"quorum": 1})))


@pytest.fixture
def ask(make_study: MakeStudy, make_order: MakeOrder, sealed: Sealed) -> Ask:
    """Return what sends a vault the order of a round and returns the reply."""
    study = make_study(federation={"quorum": 1})

    def send(
        vault: Vault, number: int, head: Head | None = None, *, kind: str = "train", **seal: Any
    ) -> Reply:
        order = make_order(study, kind, number=number)._replace(countersigned=head)
        return answered(vault, sealed(order, **seal))

    return send


def answered(vault: Vault, record: RecordDict) -> Reply:
    body = vault.config.state.with_name("order.body")
    write_body(record, body)
    return reply_from_record(read_body(vault.answer(body)))


def log_of(vault: Vault) -> ChainedLog:
    return ChainedLog(vault.config.state / "audit.jsonl")


def told(reply: Reply) -> Head:
    assert reply.refusal == ""
    assert reply.audit is not None
    return reply.audit


def verified(vault: Vault, held: str = "") -> Verified:
    return verify(vault.config.state, held)


def rewrite(log: ChainedLog, change: Callable[[dict[str, Any]], object], *, first: int = 1) -> None:
    """Change lines from a first one on, and chain them anew, as who can write the file does."""
    kept = log.path.read_text().splitlines(keepends=True)[: first - 1]
    entries = log.entries()[first - 1 :]
    log.path.write_text("".join(kept))
    for entry in entries:
        values = {k: v for k, v in entry.items() if k not in {"at", "previous", "hash"}}
        change(values)
        log.append(values)


PRIVATE, PUBLIC = new_order_key()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder whose log has four lines, of which the fourth countersigns the second."""
    pinned = {"coordinator": "demo", "site": "site-a", "order_key": PUBLIC, "protocol": PROTOCOL}
    (tmp_path / "coordinator.json").write_text(json.dumps(pinned | {"fingerprint": "00"}))
    audit = Audit(tmp_path)
    note(audit, 1)
    note(audit, 2)
    head = audit.head()
    note(audit, 3)
    note(audit, 4, signed(head))
    return tmp_path


def note(audit: Audit, number: int, proof: dict[str, Any] | None = None) -> None:
    """Write the line of an evaluation, with what it countersigns."""
    audit.note_exchange(
        "sent", study="ab" * 32, number=number, kind="evaluate", order="cd" * 32, size=number,
        countersigned=proof,
    )  # fmt: skip


def signed(head: Head) -> dict[str, Any]:
    """Return the proof of a head that the coordinator has countersigned in an order."""
    parts = {"order": ConfigRecord({"round": 4}), "countersigned": head_to_part(head)}
    record = RecordDict(dict(parts))
    Sealer(load_order_key(PRIVATE)).seal(record, "site-a")
    proof = proof_of(head, check_seal(record, "site-a", PUBLIC), PUBLIC)
    assert proof is not None
    return proof


# What leaves


def test_a_reply_tells_where_the_log_stood_before_it(vault: Vault, ask: Ask) -> None:
    """It is the number of lines and the last hash before its own line; of refusals there is none.

    Declarations, which nothing is countersigned after, do not tell it either.
    """
    vault.audit.note("started")
    assert told(ask(vault, 1)) == (1, log_of(vault).entries()[0]["hash"])
    assert told(ask(vault, 2, kind="evaluate")) == (2, log_of(vault).entries()[1]["hash"])
    assert ask(vault, 0, kind="check").audit is None
    assert ask(vault, 3, key=new_order_key()[0]).audit is None
    (vault.config.state / "paused").touch()
    assert ask(vault, 3).audit is None


@pytest.mark.parametrize("restarted", [False, True])
def test_a_reply_that_is_repeated_tells_what_it_told(
    restarted: bool,  # noqa: FBT001 - a parameter of the test
    vault: Vault,
    ask: Ask,
) -> None:
    """The log has grown since; the reply is the same to the byte, also after a restart."""
    first = ask(vault, 1)
    vault.audit.note("started")
    again = ask(Vault(vault.config) if restarted else vault, 1)
    assert told(again) == told(first) == (0, FIRST)


# What comes back


def test_a_countersigned_head_stands_in_the_line_with_its_proof(vault: Vault, ask: Ask) -> None:
    """Who has that line and the coordinator's public key needs neither of the two sides."""
    ask(vault, 1)
    head = told(ask(vault, 2))
    ask(vault, 3, head)
    *_, line = log_of(vault).entries()
    proof = line["countersigned"]
    assert (proof["entries"], proof["head"]) == head == (1, log_of(vault).entries()[0]["hash"])
    signed = json.dumps(
        {k: proof[k] for k in ("site", "parts")}, sort_keys=True, separators=(",", ":")
    )
    key = json.loads((vault.config.state / "coordinator.json").read_text())["order_key"]
    assert proof["key"] == key
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    public.verify(bytes.fromhex(proof["signature"]), signed.encode())
    found = verified(vault)
    assert (found.countersigned, found.lines, found.disputed) == (1, 3, 0)


def test_an_order_countersigns_no_more_than_it_says(vault: Vault, ask: Ask) -> None:
    """An order of an older coordinator, or a first one, leaves no countersignature."""
    ask(vault, 1)
    ask(vault, 2)
    assert not any("countersigned" in line for line in log_of(vault).entries())
    assert verified(vault).countersigned == 0


def test_an_order_is_the_same_whatever_it_countersigns(vault: Vault, ask: Ask) -> None:
    """Sent again with another head it gets the kept reply, and nothing is trained twice."""
    first = ask(vault, 1)
    again = ask(vault, 1, vault.audit.head())
    assert again.training == first.training
    assert [line["event"] for line in log_of(vault).entries()] == ["answered", "repeated"]
    assert len(ChainedLog(vault.config.state / "ledger.jsonl").entries()) == 1
    assert verified(vault).countersigned == 1


# Rewriting


def test_a_rewritten_line_before_a_countersigned_head_is_found(state: Path) -> None:
    """All hashes made anew, the chain holds and only the countersignature tells."""
    log = ChainedLog(state / "audit.jsonl")
    assert verify(state).countersigned == 2
    rewrite(log, lambda line: line.update(bytes=99) if line["round"] == 1 else None)
    assert [line["bytes"] for line in log.entries()] == [99, 2, 3, 4]  # the chain is whole
    with pytest.raises(ChainError, match="line 4: the countersignature does not hold: line 2"):
        verify(state)


def test_a_line_after_the_countersigned_ones_is_not_covered_yet(state: Path) -> None:
    """What the coordinator has not got the hash of can be rewritten; it is said up to where."""
    rewrite(ChainedLog(state / "audit.jsonl"), lambda line: line.update(bytes=99), first=3)
    assert (verify(state).countersigned, verify(state).lines) == (2, 4)


def test_without_its_countersignatures_a_rewritten_log_is_found_from_outside(
    vault: Vault, ask: Ask
) -> None:
    """The log alone looks well; the head that the coordinator holds, and its next order, tell."""
    ask(vault, 1)
    held = told(ask(vault, 2))
    ask(vault, 3, held)
    assert verified(vault, held.head).held == 1
    rewrite(log_of(vault), lambda line: line.update(bytes=1) or line.pop("countersigned", None))
    assert verified(vault).countersigned == 0
    with pytest.raises(ChainError, match=f"no line has the hash {held.head}"):
        verified(vault, held.head)
    ask(vault, 4, held, kind="evaluate")
    with pytest.raises(ChainError, match="line 4: the coordinator has countersigned a head"):
        verified(vault)


def test_every_fault_is_told(state: Path) -> None:
    """A line that was changed, a training without its entry and a foreign head, all at once."""
    Audit(state).note("answered", kind="train", round=5, study="ab" * 32)
    rewrite(ChainedLog(state / "audit.jsonl"), lambda line: line.update(more=1))
    with pytest.raises(ChainError) as refused:
        verify(state, "ef" * 32)
    for fault in ("line 4: the countersignature", "line 5: round 5", f"hash {'ef' * 32}"):
        assert fault in refused.value.message


def test_a_held_head_may_be_that_of_no_line(state: Path) -> None:
    """Who noted the head of an empty log holds it still."""
    assert verify(state, FIRST).held == 0
    assert verify(state).held is None


# Disputes


@pytest.mark.parametrize("wrong", [Head(9, "ab" * 32), Head(1, "ab" * 32), Head(0, "ab" * 32)])
def test_a_head_that_the_log_does_not_have_is_disputed(wrong: Head, vault: Vault, ask: Ask) -> None:
    """The order is followed, once more too; what the coordinator signed is kept in one line."""
    ask(vault, 1)
    for _ in range(3):
        assert ask(vault, 2, wrong).refusal == ""
    events = [line["event"] for line in log_of(vault).entries()]
    assert events == ["answered", "disputed", "answered", "repeated", "repeated"]
    dispute, *rest = log_of(vault).entries()[1:]
    assert (dispute["round"], dispute["countersigned"]["head"]) == (2, wrong.head)
    assert not any("countersigned" in line for line in rest)
    assert wrong.head in (vault.config.state / "site.log").read_text()
    with pytest.raises(ChainError, match="line 2: the coordinator has countersigned a head"):
        verified(vault)


def test_a_dispute_is_over_when_its_line_is_countersigned(vault: Vault, ask: Ask) -> None:
    """Both sides then have it in writing: it is counted, and no fault any more."""
    ask(vault, 1)
    ask(vault, 2, Head(9, "ab" * 32))
    with pytest.raises(ChainError):
        verified(vault)
    ask(vault, 3, vault.audit.head())
    found = verified(vault)
    assert (found.disputed, found.countersigned, found.lines) == (1, 3, 4)


# What a countersignature is worth


def test_only_the_coordinator_joined_now_countersigns(state: Path) -> None:
    """What an earlier coordinator signed, or was signed for another site, is not counted.

    Where none is joined any more, nobody can tell whose key it is, and all count.
    """
    pinned = state / "coordinator.json"
    values = json.loads(pinned.read_text())
    for change in ({"order_key": new_order_key()[1]}, {"site": "site-b"}):
        pinned.write_text(json.dumps(values | change))
        assert verify(state).countersigned == 0
    pinned.unlink()
    assert verify(state).countersigned == 2


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "another line": lambda proof: proof.update(entries=0, head=FIRST),
    "another head": lambda proof: proof.update(head="ab" * 32),
    "another site": lambda proof: proof.update(site="site-b"),
    "another key": lambda proof: proof.update(key=new_order_key()[1]),
    "no key": lambda proof: proof.update(key=""),
    "another part": lambda proof: proof["parts"].update(order="ab" * 32),
    "no parts": lambda proof: proof.update(parts={}),
    "another signature": lambda proof: proof.update(signature="ab" * 64),
    "no signature": lambda proof: proof.pop("signature"),
    "more": lambda proof: proof.update(more=1),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_countersignature_is_a_fault(name: str, state: Path) -> None:
    """Whatever is not as the coordinator signed it shows, though the chain was made anew."""
    rewrite(ChainedLog(state / "audit.jsonl"), lambda x: FORGED[name](x["countersigned"]), first=4)
    with pytest.raises(ChainError, match="line 4: the countersignature does not hold"):
        verify(state)


def test_a_head_beyond_the_end_is_a_fault(state: Path) -> None:
    """Lines that the coordinator knew and that are not there any more show."""
    log = ChainedLog(state / "audit.jsonl")
    lines = log.path.read_text().splitlines(keepends=True)
    (state / "audit.jsonl").write_text(lines[0])
    proof = json.loads(lines[3])["countersigned"]
    note(Audit(state), 4, proof)
    with pytest.raises(ChainError, match="line 2 or one before it"):
        verify(state)


def test_an_order_of_countless_parts_leaves_no_proof() -> None:
    """What a line may grow by is bounded, whatever a coordinator seals."""
    parts = {f"head:{number}": "ab" * 32 for number in range(900)}
    assert proof_of(Head(0, FIRST), Seal("site-a", parts, "ab" * 64), "cd" * 32)
    parts["x" * 10_000] = "ab" * 32
    assert proof_of(Head(0, FIRST), Seal("site-a", parts, "ab" * 64), "cd" * 32) is None
