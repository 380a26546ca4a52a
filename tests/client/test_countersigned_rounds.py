"""Laws of the audit log's head between a coordinator and a real vault."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo

from client.audit_check import verify
from client.config import SiteConfig
from client.vault import Vault
from common.bodies import read_body, write_body
from common.chained_log import FIRST, ChainedLog
from common.errors import ChainError
from common.models import build_model
from common.seals import Sealer, check_seal, load_order_key, new_order_key
from common.study import Study
from common.weights import layout_of, take
from server.rounds import begin_study, run_study
from simulations.grid import LocalGrid

MakeStudy = Callable[..., Study]


@pytest.fixture
def vault(make_study: MakeStudy, make_joined: Callable[..., SiteConfig]) -> Vault:
    return Vault(make_joined(make_study(federation={"quorum": 1})))


def log_of(vault: Vault) -> ChainedLog:
    return ChainedLog(vault.config.state / "audit.jsonl")


class VaultGrid(LocalGrid):
    """A grid to one hospital's vault, enrolled under its name."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.heads: list[Mapping[str, Any] | None] = []
        """What each order but a check countersigned."""
        app = ClientApp()

        def answer(message: Message, _context: Context) -> Message:
            check_seal(message.content, "site-a", self.vault._pin.order_key)
            head = message.content.get("countersigned")
            if message.metadata.message_type != "query":
                self.heads.append(dict(head) if isinstance(head, ConfigRecord) else None)
            body = self.vault.config.state.with_name("order.body")
            write_body(message.content, body)
            return Message(read_body(self.vault.answer(body)), reply_to=message)

        app.query()(answer)
        app.train()(answer)
        app.evaluate()(answer)
        super().__init__(app, 1)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the one node."""
        return [NodeInfo(node_id=1, name="site-a")]


@pytest.fixture
def coordinate(
    make_study: MakeStudy, tmp_path: Path, coordinator_key: bytes
) -> Callable[[VaultGrid, int], list[dict[str, Any]]]:
    """Return what runs the study to a round, from where it stands, and returns its history."""
    study = make_study(federation={"quorum": 1})
    model = build_model(study)
    folder = tmp_path / "run"

    class Stopped(Exception):  # noqa: N818 - it is none
        pass

    def run(grid: VaultGrid, last: int) -> list[dict[str, Any]]:
        def watch(record: Any) -> None:
            if record.round == last:
                raise Stopped

        layout = layout_of(model, study)
        begin_study(study, take(model, model.state_dict()), folder)
        with pytest.raises(Stopped):
            run_study(
                study, grid, layout, folder, sites=1, watch=watch,
                sealer=Sealer(load_order_key(coordinator_key)),
            )  # fmt: skip
        lines = (folder / "history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


@pytest.fixture
def coordinator_key(vault: Vault) -> bytes:
    """Give the hospital another coordinator, and return that one's private key."""
    private, public = new_order_key()
    pinned = vault.config.state / "coordinator.json"
    pinned.write_text(json.dumps(json.loads(pinned.read_text()) | {"order_key": public}))
    vault._pin = vault._pin.model_copy(update={"order_key": public})
    return private


def test_the_coordinators_record_and_the_sites_log_agree(
    vault: Vault, coordinate: Callable[..., Any]
) -> None:
    """Each head in the history is of that line, and the next order brings it back.

    Both sides start again in the middle; nothing is disputed.
    """
    vault.audit.note("started")
    grid = VaultGrid(vault)
    coordinate(grid, 1)
    grid.vault = Vault(vault.config)
    grid.vault.audit.note("started")
    records = coordinate(grid, 4)
    hashes = [FIRST, *(line["hash"] for line in log_of(vault).entries())]
    heads = [record["audit_heads"]["site-a"] for record in records]
    assert [head["head"] for head in heads] == [hashes[head["entries"]] for head in heads]
    assert grid.heads == [None, *heads[:-1]]
    assert not any(record["audit_faults"] for record in records)
    found = verify(vault.config.state, heads[-1]["head"])
    assert (found.countersigned, found.disputed) == (heads[-2]["entries"], 0)
    assert found.held == heads[-1]["entries"]


def test_a_log_from_a_backup_is_seen_on_both_sides_and_costs_no_round(
    vault: Vault, coordinate: Callable[..., Any], tmp_path: Path
) -> None:
    """The round record names the site, its log has the dispute, and from there on both agree."""
    grid = VaultGrid(vault)
    coordinate(grid, 1)
    backup = tmp_path / "backup.jsonl"
    shutil.copy(log_of(vault).path, backup)
    for _ in range(3):
        vault.audit.note("started")
    *_, second = coordinate(grid, 2)
    shutil.copy(backup, log_of(vault).path)
    grid.vault = Vault(vault.config)
    *_, third = coordinate(grid, 3)
    assert third["answered"] == ["site-a"]
    before, now = (record["audit_heads"]["site-a"]["entries"] for record in (second, third))
    fault = f"its audit log went back from {before} lines to {now}"
    assert third["audit_faults"] == {"site-a": fault}
    assert [line["event"] for line in log_of(vault).entries()].count("disputed") == 1
    with pytest.raises(ChainError, match="the coordinator has countersigned a head"):
        verify(vault.config.state)
    *_, fourth = coordinate(grid, 4)
    assert fourth["audit_faults"] == {}
    assert verify(vault.config.state).disputed == 1
