"""Laws of the record of the rounds."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import metrics, metrics_wire
from common.chained_log import Head
from common.errors import OutputError
from common.metrics import METRICS, MetricState
from common.spread import spread
from common.statements import Counted
from common.study import Study
from server import history
from server.history import HISTORY, RoundRecord

Make = Callable[..., Any]

KEYS = [
    "round", "model_round", "trained", "combined", "asked", "answered", "refused", "silent",
    "late", "resent", "joined", "tasks", "training", "bytes", "seconds",
    "central_privacy", "audit_heads", "audit_faults",
    "each_image",
    "declared", "score", "lowered", "averaged", "stopped", "votes",
]  # fmt: skip


def state(make_state: Make, images: int, classes: int = 2) -> MetricState:
    positive = 1 if classes == 2 else None
    arrays = make_state(classes, positive, Counted(patients=2, images=images))
    return metrics_wire.from_arrays(arrays, classes, positive)


def test_the_keys_of_a_line_are_frozen(tmp_path: Path) -> None:
    """Each round is one JSON line with these keys, in the order of the rounds."""
    assert [field.name for field in fields(RoundRecord)] == KEYS
    for number in (1, 2):
        record = RoundRecord(number, model_round=number - 1, trained=True, refused={"a": "data"})
        history.append(tmp_path / "run", record)
    lines = (tmp_path / "run" / HISTORY).read_text(encoding="utf-8").splitlines()
    read = [json.loads(line) for line in lines]
    assert [list(line) for line in read] == [KEYS, KEYS]
    assert [line["round"] for line in read] == [1, 2]
    assert read[0]["refused"] == {"a": "data"}


def test_figures_stand_beside_their_numbers(make_state: Make) -> None:
    """Every metric comes with the patients and images that it was measured on."""
    found = history.figures(state(make_state, 4), 1)
    assert list(found) == [*METRICS, "n_patients", "n_images"]
    assert (found["n_patients"], found["n_images"]) == (2, 4)
    assert found["accuracy"] == 0.5


def test_pooled_figures_are_of_all_sites_together(
    make_study: Callable[..., Study], make_state: Make
) -> None:
    """Pooled is the merged states' metrics, per site each state's; tasks without sites are out."""
    one, two = state(make_state, 4), state(make_state, 9)
    states = {"b": {("ct", "test"): two}, "a": {("ct", "test"): one, ("ct", "validation"): one}}
    found = history.task_figures(make_study(), states)
    assert list(found) == ["ct"]
    assert list(found["ct"]) == ["validation", "test"]
    test = found["ct"]["test"]
    assert list(test["per_site"]) == ["a", "b"]
    assert test["per_site"]["a"] == history.figures(one, 1)
    assert test["pooled"] == history.figures(metrics.merge([one, two]), 1)
    assert test["pooled"]["n_images"] == 13
    assert found["ct"]["validation"]["pooled"]["n_images"] == 4
    assert history.task_figures(make_study(), {}) == {}


def test_figures_of_patients_stand_beneath(
    make_study: Callable[..., Study], make_state: Make
) -> None:
    """They are the merged states' of patients; one image of each patient counts as the patient."""
    several, one_each = state(make_state, 9), state(make_state, 2)
    cases = state(make_state, 2)
    test, of_patients = ("ct", "test"), ("ct", "test_patients")
    states = {
        "b": {test: several, of_patients: cases},
        "a": {test: one_each},
        "c": {test: several},  # what is of its patients was suppressed
    }
    found = history.task_figures(make_study(), states)["ct"]
    assert list(found) == ["test"]
    assert list(found["test"]) == ["pooled", "per_site", "patients"]
    assert found["test"]["pooled"]["n_images"] == 20
    patients = found["test"]["patients"]
    assert list(patients["per_site"]) == ["a", "b"]
    assert patients["per_site"]["b"] == history.figures(cases, 1)
    assert patients["pooled"] == history.figures(metrics.merge([one_each, cases]), 1)
    assert patients["pooled"]["n_patients"] == patients["pooled"]["n_images"] == 4


def test_the_last_exchange_says_more(make_study: Callable[..., Study], make_state: Make) -> None:
    """It has intervals of every split, and of test images what was chosen on validation ones."""
    one, cases = state(make_state, 9), state(make_state, 2)
    splits = {"validation": one, "test": one, "test_patients": cases}
    states = {"a": {("ct", name): found for name, found in splits.items()}}
    found = history.task_figures(make_study(), states, last=True)["ct"]
    on_test = ["operating_points", "temperature", "reliability"]
    assert list(found["validation"]) == ["pooled", "per_site", "intervals"]
    assert list(found["test"]) == ["pooled", "per_site", "intervals", *on_test, "patients"]
    assert list(found["test"]["patients"]) == ["pooled", "per_site", "intervals", *on_test]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    plain = history.task_figures(make_study(), states)["ct"]["test"]
    assert list(plain) == ["pooled", "per_site", "patients"]
    assert found["test"]["pooled"] == plain["pooled"]


def test_attention_stands_beneath_the_test_images(
    make_study: Callable[..., Study], make_state: Make
) -> None:
    """Pooled means are over the patients of all sites; without sums there is no such key."""
    states = {site: {("ct", "test"): state(make_state, 4)} for site in "abc"}
    tables = {}
    for site, patients, share in (("b", 10, 0.5), ("a", 30, 0.1)):
        tables[site] = {"ct": np.zeros((5, 3))}
        tables[site]["ct"][0] = patients, patients * share, patients * 0.2
    found = history.task_figures(make_study(), states, {**tables, "c": {}}, last=True)["ct"]["test"]
    assert list(found["attention"]["per_site"]) == ["a", "b"]
    pooled = found["attention"]["pooled"]
    assert pooled == {"border": {"mean": pytest.approx(0.2), "even": 0.2, "patients": 40}}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    plain = history.task_figures(make_study(), states, {"a": {}}, last=True)["ct"]["test"]
    assert "attention" not in plain


def test_the_last_aurocs_are_those_of_patients() -> None:
    """Of each task the last measurement counts, by patient where that is told."""
    first, last = RoundRecord(1, 0, trained=True), RoundRecord(2, 1, trained=False)
    pooled = {"auroc": 0.5, "n_patients": 3}
    per_site = {"a": {"auroc": 0.9}, "b": {"auroc": 0.7}}
    test: dict[str, Any] = {"pooled": pooled, "per_site": {"a": {"auroc": 0.5}}}
    first.tasks = {"ct": {"test": test}, "mr": {"validation": {"pooled": pooled}}}
    patients: dict[str, Any] = {
        "pooled": {"auroc": 0.8, "n_patients": 4},
        "per_site": per_site,
        "intervals": {"pooled": {"auroc": [0.7, 0.9]}},
    }
    expected: dict[str, Any] = {
        "auroc": 0.5, "interval": None, "n_patients": 3, "model_round": 0, "spread": None,
    }  # fmt: skip
    assert history.last_aurocs([first]) == {"ct": expected}
    last.tasks = {"ct": {"test": {**test, "patients": patients}}}
    apart = spread({"a": 0.9, "b": 0.7}, "auroc")
    assert apart is not None
    assert apart["worst_site"] == "b"
    expected = {
        "auroc": 0.8, "interval": [0.7, 0.9], "n_patients": 4, "model_round": 1, "spread": apart,
    }  # fmt: skip
    assert history.last_aurocs([first, last]) == {"ct": expected}
    assert history.last_aurocs([]) == {}


def test_without_several_images_nothing_is_said_of_patients(
    make_study: Callable[..., Study], make_state: Make
) -> None:
    """Where no site sends a state of patients, a round is told with the keys that it always had."""
    states = {name: {("ct", "test"): state(make_state, 2)} for name in "ab"}
    found = history.task_figures(make_study(), states)
    assert list(found["ct"]["test"]) == ["pooled", "per_site"]


def test_the_order_of_sites_changes_no_figure(
    make_study: Callable[..., Study], make_state: Make
) -> None:
    """States that arrive in another order give the same figures, bit for bit."""
    states = {
        name: {("mr", "test"): state(make_state, images, 3)}
        for name, images in (("a", 3), ("b", 7), ("c", 11))
    }
    turned = dict(reversed(states.items()))
    first, second = (history.task_figures(make_study(), found) for found in (states, turned))
    assert json.dumps(first) == json.dumps(second)


def test_seconds_add_up_over_rounds() -> None:
    """A total is the sum over the rounds that have the figure."""
    records = [RoundRecord(n, n - 1, trained=True, seconds={"training": n}) for n in (1, 2)]
    records.append(RoundRecord(3, 2, trained=False, seconds={"total": 5.0}))
    assert history.total(records, "training") == 3
    assert history.total(records, "total") == 5.0
    assert history.total([], "total") == 0


def three_rounds(folder: Path) -> list[RoundRecord]:
    """Write two rounds that were combined, and one that was not."""
    records = [
        RoundRecord(n, n - 1, trained=True, combined=n < 3, refused={"ä": "\u2028\x85"})
        for n in (1, 2, 3)
    ]
    for record in records:
        history.append(folder, record)
    return records


def test_what_was_appended_is_loaded(tmp_path: Path) -> None:
    """Records come back as they were, whatever characters their words hold."""
    assert history.load(tmp_path) == []
    records = three_rounds(tmp_path)
    assert history.load(tmp_path) == records


def test_lines_of_older_versions_are_loaded(tmp_path: Path) -> None:
    """A line that says nothing of central privacy or of audit logs is one of rounds without.

    Nor does one of unknown patients.
    """
    three_rounds(tmp_path)
    path = tmp_path / HISTORY
    lines = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    new = {"central_privacy", "audit_heads", "audit_faults", "each_image", "declared"}
    older = [{key: line[key] for key in KEYS if key not in new} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in older), encoding="utf-8")
    loaded = history.load(tmp_path)
    assert [getattr(record, key) for record in loaded for key in sorted(new)] == [{}] * 15


def test_the_last_head_of_each_site_is_found(tmp_path: Path) -> None:
    """Of the last round in which it told one, after a restart too."""
    told: list[dict[str, Head]] = [
        {"a": Head(3, "ab" * 32), "b": Head(9, "cd" * 32)}, {"a": Head(5, "ef" * 32)}, {},
    ]  # fmt: skip
    for number, heads in enumerate(told, start=1):
        record = RoundRecord(number, number - 1, trained=True)
        record.audit_heads = {site: head._asdict() for site, head in heads.items()}
        history.append(tmp_path, record)
    assert history.last_heads(history.load(tmp_path)) == {**told[0], **told[1]}
    assert history.last_heads([]) == {}


@pytest.mark.parametrize("cut", [1, 2, 30, -1])
def test_a_last_line_that_was_cut_off_is_left_out(cut: int, tmp_path: Path) -> None:
    """However much of it was written, and in the middle of a character too."""
    records = three_rounds(tmp_path)
    path = tmp_path / HISTORY
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    path.write_bytes(whole[: last + cut if cut > 0 else cut])
    assert history.load(tmp_path) == records[:2]
    path.write_bytes(whole + b'{"refused": {"\xc3')
    assert history.load(tmp_path) == records
    assert history.rewind(tmp_path, 2) == records
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"", b"{", b"{}", b"[]", b'{"round": 1, "odd": 2}', b"\xff"])
def test_another_damaged_line_is_an_output_error(line: bytes, tmp_path: Path) -> None:
    """It is told with the file and a remedy, and the file is left as it is."""
    three_rounds(tmp_path)
    path = tmp_path / HISTORY
    damaged = line + b"\n" + path.read_bytes()
    path.write_bytes(damaged)
    for read in (history.load, lambda folder: history.rewind(folder, 1)):
        with pytest.raises(OutputError, match=HISTORY) as refused:
            read(tmp_path)
        assert "backup" in refused.value.remedy
    assert path.read_bytes() == damaged


def test_rewinding_drops_rounds_whose_model_is_not_there(tmp_path: Path) -> None:
    """A combined round after the model's is dropped; attempts that failed are kept."""
    assert history.rewind(tmp_path, 0) == []
    assert not (tmp_path / HISTORY).exists()
    records = three_rounds(tmp_path)
    assert history.rewind(tmp_path, 2) == records
    assert history.rewind(tmp_path, 1) == [records[0], records[2]]
    assert history.load(tmp_path) == [records[0], records[2]]
    assert history.rewind(tmp_path, 0) == [records[2]]


def test_a_round_after_a_rewind_is_a_line_of_its_own(tmp_path: Path) -> None:
    """What was cut off is gone before the next line is written."""
    records = three_rounds(tmp_path)
    with (tmp_path / HISTORY).open("ab") as file:
        file.write(b'{"round": 4')
    history.rewind(tmp_path, 1)
    history.append(tmp_path, records[1])
    assert history.load(tmp_path) == [records[0], records[2], records[1]]


def test_a_history_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    """Told with its file and its remedy, like every other output."""
    (tmp_path / HISTORY).mkdir()
    with pytest.raises(OutputError, match=f"Cannot write .*{HISTORY}") as refused:
        history.append(tmp_path, RoundRecord(1, 0, trained=True))
    assert refused.value.remedy
