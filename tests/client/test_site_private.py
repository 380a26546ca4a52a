"""Laws of a site's private trainings: entered before they begin, never loud, never for nothing."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from safetensors.numpy import load_file

from client.audit import AUDIT_FILE
from client.audit_check import verify
from client.config import SiteConfig
from client.ledger import LEDGER_FILE, Ledger
from client.site import Answer, Site
from client.vault import Vault
from common.arrays import digest
from common.bodies import write_body
from common.messages import Order
from common.study import Study

MakeStudy = Callable[..., Study]
MakeHospital = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]
SPLITS = ("train",) * 12 + ("validation", "validation", "test", "test")
FROZEN = {"normalisation": "frozen"}
RARE = re.compile(r"PATIENT-ct-[0-3],")
"""Four of the training patients, in the table of labels."""


@pytest.fixture
def private_study(make_study: Callable[..., Study]) -> Callable[..., Study]:
    """Return the maker of a study with privacy over a network with frozen batch norm."""

    def make(epsilon: float = 8.0, **sections: dict[str, Any]) -> Study:
        sections = {"backbone": FROZEN, **sections}
        return make_study(privacy={"epsilon": epsilon, "delta": 1e-3}, **sections)

    return make


def entries(config: SiteConfig) -> list[dict[str, Any]]:
    file = config.state / LEDGER_FILE
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def with_ledger(config: SiteConfig, **limits: Any) -> Site:
    limited = config.limits.model_copy(update=limits)
    return Site(config.model_copy(update={"limits": limited}), Ledger(config.state))


def changes(answer: Answer) -> dict[str, str]:
    assert answer.reply.refusal == ""
    return {group: digest(arrays) for group, arrays in answer.reply.groups.items()}


def test_a_private_training_is_entered_and_says_no_loss(
    private_study: Callable[..., Study], make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """The ledger has noise, draw and steps of it under the order's digest; the reply no loss."""
    config, study = make_hospital(splits=SPLITS), private_study()
    answer = with_ledger(config).answer(make_order(study), "ab" * 32)
    (entry,) = entries(config)
    assert entry["order"] == "ab" * 32
    assert entry["patients"] == {"ct": 12}
    assert entry["privacy"]["sample_rate"] == pytest.approx(4 / 12)
    assert entry["privacy"]["steps"] == 3
    assert entry["privacy"]["noise_multiplier"] > 0
    assert answer.entered is not None
    assert answer.entered.hash == entry["hash"]
    assert answer.entered.epsilon is not None
    assert 0 < answer.entered.epsilon < 8
    assert answer.reply.training is not None
    assert answer.reply.training.loss is None
    assert answer.reply.training.steps == 3
    assert all(np.isfinite(v).all() for a in answer.reply.groups.values() for v in a.values())


def test_personal_heads_are_trained_with_the_same_noise_and_stay(
    private_study: Callable[..., Study], make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """A head that never travels moves by the noisy gradients too, at the price of one that does."""
    shared, own = private_study(), private_study(federation={"personal": "head"})
    config, order = make_hospital(splits=SPLITS), make_order(own)
    assert order.base is not None
    answer = with_ledger(config).answer(order)
    assert set(changes(answer)) == {"shared"}
    (file,) = (config.state / "studies").rglob("local-1.safetensors")
    kept = load_file(file)
    assert set(kept) == {"heads.ct.weight", "heads.ct.bias"}
    for name, value in kept.items():
        assert np.isfinite(value).all()
        assert not np.array_equal(value, order.base[name])
    changes(with_ledger(config).answer(make_order(shared)))
    one, other = (entry["privacy"] for entry in entries(config))
    for cost in ("noise_multiplier", "sample_rate", "steps"):
        assert one[cost] == other[cost]


def test_the_seed_of_the_study_does_not_tell_the_noise(
    private_study: Callable[..., Study], make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """The same order twice gives other changes, and each costs the budget."""
    config, order = make_hospital(splits=SPLITS), make_order(private_study())
    one, two = (with_ledger(config).answer(order) for _ in range(2))
    assert changes(one)["shared"] != changes(two)["shared"]
    assert one.entered is not None
    assert two.entered is not None
    assert (one.entered.epsilon or 0) < (two.entered.epsilon or 0)
    assert len(entries(config)) == 2


def test_what_was_planned_fits_and_no_more(
    private_study: Callable[..., Study], make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """All rounds of the study are trained within its epsilon; one more is refused as budget."""
    config, study = make_hospital(splits=SPLITS), private_study()
    site = with_ledger(config)
    for number in range(1, study.rounds + 1):
        assert site.answer(make_order(study, number=number)).reply.refusal == ""
    more = site.answer(make_order(study, number=study.rounds + 1))
    assert more.reply.refusal == "budget"
    assert more.entered is None
    assert len(entries(config)) == study.rounds


@pytest.mark.parametrize("spare", [0, 1])
def test_a_spare_round_pays_for_one_that_is_made_again(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, spare: int
) -> None:
    """Round 2 is trained twice: the last round is refused as budget, unless one was to spare."""
    privacy = {"epsilon": 8.0, "delta": 1e-3, "spare_rounds": spare}
    study = make_study(privacy=privacy, backbone=FROZEN)
    site = with_ledger(make_hospital(splits=SPLITS))
    refusals = [site.answer(make_order(study, number=n)).reply.refusal for n in (1, 2, 2, 3)]
    assert refusals == ["", "", "", "" if spare else "budget"]
    assert len(entries(site.config)) == study.rounds + spare
    assert site.answer(make_order(study, number=3)).reply.refusal == "budget"


@pytest.mark.parametrize("grows", [True, False])
def test_patients_who_come_or_go_change_no_plan(
    private_study: Callable[..., Study],
    make_hospital: MakeHospital,
    make_order: MakeOrder,
    *,
    grows: bool,
) -> None:
    """All planned rounds are trained as the first one, on the patients of the day, and no more."""
    config, study = make_hospital(splits=SPLITS), private_study()
    table = Path(config.data["ct"].manifest)
    full = table.read_text()
    few = "".join(line for line in full.splitlines(keepends=True) if not RARE.search(line))
    for number, text in enumerate((few, full, full) if grows else (full, full, few), start=1):
        table.write_text(text)
        answer = with_ledger(config).answer(make_order(study, number=number))  # as after a restart
        assert answer.reply.refusal == ""
    found = entries(config)
    assert [entry["patients"]["ct"] for entry in found] == ([8, 12, 12] if grows else [12, 12, 8])
    assert all(entry["privacy"] == found[0]["privacy"] for entry in found)
    assert found[0]["privacy"]["sample_rate"] == 4 / (8 if grows else 12)
    more = with_ledger(config).answer(make_order(study, number=4))
    assert more.reply.refusal == "budget"


def test_a_training_that_fails_has_been_paid_for(
    private_study: Callable[..., Study], make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Its line stands before any noise is drawn: one that diverges leaves no change, but a line."""
    config = make_hospital(splits=SPLITS)
    study = private_study(training={"optimizer": "sgd", "head_lr": 1e38, "backbone_lr": 1e38})
    answer = with_ledger(config).answer(make_order(study))
    (entry,) = entries(config)
    assert (answer.reply.refusal, answer.reply.groups) == ("diverged", {})
    assert answer.entered is not None
    assert answer.entered.hash == entry["hash"]
    assert 0 < Ledger(config.state).spent(delta=1e-3).epsilon < 8


def test_the_hospital_only_tightens(
    private_study: Callable[..., Study], make_hospital: MakeHospital
) -> None:
    """A smaller epsilon of the hospital makes more noise; a larger one changes nothing."""
    config, study = make_hospital(splits=SPLITS), private_study()
    noises = []
    for limit in (None, 100.0, 1.0):
        plan = with_ledger(config, study_epsilon=limit).prepare(study).plan
        assert plan is not None
        noises.append(plan.noise_multiplier)
    assert noises[0] == noises[1] < noises[2]


@pytest.mark.parametrize(
    ("sections", "limits", "splits", "word"),
    [
        ({"backbone": {"normalisation": "average"}}, {}, SPLITS, "frozen"),
        ({"training": {"batch_size": 13}}, {}, SPLITS, "13"),
        ({}, {"delta": None}, ("train",) * 4 + SPLITS[12:], ""),
    ],
)
def test_what_cannot_be_private_is_refused_before_an_image_is_read(
    private_study: Callable[..., Study],
    make_hospital: MakeHospital,
    make_order: MakeOrder,
    sections: dict[str, Any],
    limits: dict[str, Any],
    splits: tuple[str, ...],
    word: str,
) -> None:
    """Living batch norm or too few patients: code privacy alone, and the images may be missing."""
    config = make_hospital(splits=splits)
    for image in Path(config.data["ct"].manifest).parent.glob("images/*"):
        image.write_bytes(b"no image")
    study = private_study(**sections)
    answer = with_ledger(config, **limits).answer(make_order(study))
    expected = "privacy" if word else "image"  # the last case is sound: there the images are read
    assert answer.reply.refusal == expected
    assert entries(config) == []


def test_a_ledger_that_cannot_be_written_is_told_before_an_image_is_read(
    private_study: Callable[..., Study], make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Where no training could be entered none is begun: the images here are no images."""
    config = make_hospital(splits=SPLITS)
    for image in Path(config.data["ct"].manifest).parent.glob("images/*"):
        image.write_bytes(b"no image")
    site = with_ledger(config)
    (config.state / f".{LEDGER_FILE}.probe").mkdir(parents=True)  # stands in the way of a write
    assert site.answer(make_order(private_study())).reply.refusal == "data"


def test_nothing_private_is_trained_without_a_ledger(
    private_study: Callable[..., Study], make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """A site that cannot write down what it spends spends nothing."""
    answer = Site(make_hospital(splits=SPLITS)).answer(make_order(private_study()))
    assert answer.reply.refusal == "privacy"


@pytest.mark.parametrize("limits", [{"require_privacy": True}, {"max_epsilon": 10.0}])
def test_a_hospital_may_demand_privacy(
    make_study: Callable[..., Study],
    make_hospital: MakeHospital,
    make_order: MakeOrder,
    limits: dict[str, Any],
) -> None:
    """A study without privacy is refused where the hospital trains with privacy alone."""
    site = with_ledger(make_hospital(splits=SPLITS), **limits)
    assert site.answer(make_order(make_study())).reply.refusal == "privacy"
    assert site.answer(make_order(make_study(), "check")).reply.refusal == "privacy"


def test_the_log_of_the_vault_names_the_entry(
    private_study: Callable[..., Study],
    make_joined: MakeHospital,
    make_order: MakeOrder,
    sealed: Callable[..., RecordDict],
    tmp_path: Path,
) -> None:
    """The audit line of a private training has its cost and its entry, and both logs agree."""
    study = private_study()
    vault = Vault(make_joined(study, splits=SPLITS))
    write_body(sealed(make_order(study)), tmp_path / "order")
    vault.answer(tmp_path / "order")
    (entry,) = entries(vault.config)
    line = json.loads((vault.config.state / AUDIT_FILE).read_text().splitlines()[-1])
    assert (line["decision"], line["ledger"]) == ("sent", entry["hash"])
    assert 0 < line["epsilon"] < 8
    assert line["suppressed"] == []
    assert verify(vault.config.state).trainings == 1
