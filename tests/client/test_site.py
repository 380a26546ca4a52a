"""Laws of a site: what it answers, and what never leaves it."""

import re
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from safetensors.numpy import load_file
from scipy.special import softmax
from sklearn.metrics import brier_score_loss

from client.config import SiteConfig
from client.evaluate import evaluate, logits_of
from client.site import Site, respond
from common import metrics, metrics_wire
from common.arrays import Array, Arrays, digest
from common.errors import DataError
from common.held_out import HELD_OUT, OF_PATIENTS, SPLIT_OF
from common.messages import Order, Reply, order_to_record, reply_from_record
from common.models import FederatedModel, build_model
from common.statements import Counted, Splits
from common.study import Study
from common.update_norm import update_norm
from common.weights import layout_of, put, take

MakeStudy = Callable[..., Study]
MakeHospital = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]

SECRETS = ("PATIENT", "scan_", ".png", "labels.csv", "site.toml", "images/", "Traceback")
"""What is in every hospital that the fixtures make, and may not be in a reply."""
TRAIN_ONLY = ("train",) * 6
SPLITS = (*("train",) * 4, *("validation", "test") * 2)


def wire_bytes(record: RecordDict) -> bytes:
    packed: bytes = recorddict_to_proto(record).SerializeToString()
    return packed


def answered(site: Site, order: Order) -> Reply:
    """Return the answer as it comes out of the wire at the coordinator."""
    record = respond(site, order_to_record(order))
    everything = wire_bytes(record)
    for secret in (*SECRETS, str(site.config.state.parent)):
        assert secret.encode() not in everything
    return reply_from_record(record)


def digests(arrays_by_name: Any) -> dict[Any, str]:
    return {name: digest(arrays) for name, arrays in arrays_by_name.items()}


def metrics_by_hand(site: Site, order: Order, model: FederatedModel) -> dict[Any, str]:
    """Return the digests of the metric states of a model at a site."""
    found = {}
    for name, data in site.prepare(order.study).tasks.items():
        for split in HELD_OUT:
            task, images = order.study.tasks[name], data.splits[split]
            state = evaluate(model, images, name, task, device=torch.device("cpu"))
            found[name, split] = digest(metrics_wire.to_arrays(state.of_images))
            if state.of_patients is not None:
                found[name, OF_PATIENTS[split]] = digest(metrics_wire.to_arrays(state.of_patients))
    return found


def model_of(order: Order) -> FederatedModel:
    """Return the network that an order with a base carries."""
    model = build_model(order.study)
    assert order.base is not None
    for arrays in (order.base, *order.groups.values()):
        put(model, arrays)
    return model


def with_group(order: Order, group: str, arrays: Arrays) -> Order:
    return order._replace(groups={**order.groups, group: arrays})


# What a site declares


def test_a_check_declares_the_counts(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Patients and images of each task and split are those of the tables, counted by hand."""
    study = make_study(("ct", "mr"))
    site = Site(make_hospital(tasks=("ct", "mr"), splits=("train",) * 3 + ("validation", "test")))
    reply = answered(site, make_order(study, "check"))
    splits = Splits(
        train=Counted(patients=3, images=6),
        validation=Counted(patients=1, images=2),
        test=Counted(patients=1, images=2),
    )
    assert reply.declaration is not None
    assert reply.declaration.tasks == {"ct": splits, "mr": splits}
    assert reply.declaration.unreadable == {"ct": 0, "mr": 0}
    assert reply.declaration.patients == 6
    assert reply.declaration.base == ""
    assert (reply.site, reply.digest, reply.round) == ("site-a", study.digest(), 0)
    assert not reply.groups
    assert not reply.metrics


def test_tasks_without_patients_are_declared(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Where each image is its own patient that is said, and there are as many of both."""
    config = make_hospital(tasks=("ct", "mr"))
    table = config.data["mr"].manifest
    table.write_text(re.sub("PATIENT-mr-[0-9]+", "", table.read_text()))
    files = config.data["mr"].model_copy(update={"patients": "each_image"})
    config = config.model_copy(update={"data": {**config.data, "mr": files}})
    declared = answered(Site(config), make_order(make_study(("ct", "mr")), "check")).declaration
    assert declared is not None
    assert declared.each_image == ("mr",)
    assert declared.tasks["mr"].train == Counted(patients=8, images=8)
    assert declared.patients == 4 + 8


def test_a_patient_of_two_tasks_counts_once(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """The shared part weighs each patient once, however many tasks have images of them."""
    config = make_hospital(tasks=("ct", "mr"))
    table = config.data["mr"].manifest
    table.write_text(table.read_text().replace("PATIENT-mr", "PATIENT-ct"))
    declared = answered(Site(config), make_order(make_study(("ct", "mr")), "check")).declaration
    assert declared is not None
    assert declared.patients == 4
    assert declared.tasks["mr"].train.patients == 4
    assert declared.weight("shared", "patients") == 4
    assert declared.weight("shared", "images") == 16


def test_unreadable_images_are_counted_and_stay_unnamed(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """The site goes on with the rest; the file's name is in its own log alone."""
    config = make_hospital()
    manifest = config.data["ct"].manifest
    (manifest.parent / "images/scan_1_0.png").write_bytes(b"no image")
    site = Site(config)
    declared = answered(site, make_order(make_study(), "check")).declaration
    assert declared is not None
    assert declared.unreadable == {"ct": 1}
    assert declared.tasks["ct"].train == Counted(patients=4, images=7)
    log = (config.state / "site.log").read_text()
    assert "line 4:" in log
    assert "scan_1_0.png" in log


def test_a_site_has_its_own_tasks_alone(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Of a study of two tasks a site declares, trains and measures the one that it has."""
    study, site = make_study(("ct", "mr")), Site(make_hospital(tasks=("mr",)))
    declared = answered(site, make_order(study, "check")).declaration
    assert declared is not None
    assert list(declared.tasks) == ["mr"]
    reply = answered(site, make_order(study, tasks=["mr"]))
    assert set(reply.groups) == {"shared", "statistics", "head:mr"}
    assert set(reply.metrics) == {("mr", name) for name in SPLIT_OF}


def test_patients_with_several_images_are_measured_once_each(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Beside the images' state goes one of patients; its mean is the mean over their images."""
    study = make_study()
    site = Site(make_hospital(splits=SPLITS))
    order = make_order(study, "evaluate")
    reply = answered(site, order)
    assert set(reply.metrics) == {("ct", name) for name in SPLIT_OF}
    images = site.prepare(study).tasks["ct"].splits["test"]
    logits = logits_of(model_of(order), images, "ct", device=torch.device("cpu"))
    shares, owners = softmax(logits.astype(float), axis=1)[:, 1], np.array(images.patients)
    truth = {p: int(images.labels[list(owners).index(p)]) for p in images.patients}
    means = [shares[owners == patient].mean() for patient in truth]
    state = metrics_wire.from_arrays(reply.metrics["ct", "test_patients"], 2, 1)
    assert (state.n_patients, state.n_images) == (2, 2) != (2, len(images))
    found = metrics.compute(state, 1)
    assert found["brier"] == pytest.approx(brier_score_loss(list(truth.values()), means), rel=1e-5)


def test_one_image_of_each_patient_makes_one_state(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """However a study would join images, a site without several of a patient answers the same."""
    config = make_hospital(splits=SPLITS)
    table = config.data["ct"].manifest
    rows = [line for line in table.read_text().splitlines() if "_1.png" not in line]
    table.write_text("\n".join(rows) + "\n")
    replies = []
    for how in ("mean", "max"):
        study = make_study()
        task = study.tasks["ct"].model_copy(update={"per_patient": how})
        study = study.model_copy(update={"tasks": {"ct": task}})
        replies.append(answered(Site(config), make_order(study, "evaluate")))
    assert set(replies[0].metrics) == {("ct", "validation"), ("ct", "test")}
    assert digests(replies[0].metrics) == digests(replies[1].metrics)


# What training answers


@pytest.mark.parametrize("weighting", ["patients", "images", "equal"])
def test_a_change_is_local_minus_global(
    weighting: str, make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Each group of the order comes back as the float32 difference, with its weight."""
    study = make_study(("ct", "mr"), federation={"weighting": weighting})
    site, order = Site(make_hospital(tasks=("ct", "mr"))), make_order(study)
    reply = answered(site, order)
    assert reply.refusal == ""
    assert set(reply.groups) == {"shared", "statistics", "head:ct", "head:mr"}
    local = take(site.prepare(study).model, site.prepare(study).model.state_dict())
    for group, arrays in order.groups.items():
        assert set(reply.groups[group]) == set(arrays)
        for name, value in arrays.items():
            found = reply.groups[group][name]
            assert found.dtype == np.float32
            assert np.array_equal(found, local[name] - value)
        assert any(np.abs(reply.groups[group][name]).max() > 0 for name in arrays)
    each = {"patients": 4.0, "images": 8.0, "equal": 1.0}[weighting]
    both = 1.0 if weighting == "equal" else 2 * each
    assert reply.weights == {
        "shared": both, "statistics": both, "head:ct": each, "head:mr": each,
    }  # fmt: skip
    assert reply.training is not None
    assert reply.training.steps == 2 + 2
    assert reply.training.loss > 0


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_metrics_are_of_the_model_that_came(
    kind: str, make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """The site measures the order's arrays before it trains them."""
    study = make_study(("ct", "mr"))
    site, order = Site(make_hospital(tasks=("ct", "mr"))), make_order(study, kind)
    expected = metrics_by_hand(site, order, model_of(order))
    reply = answered(site, order)
    assert digests(reply.metrics) == expected
    trained = metrics_by_hand(site, order, site.prepare(study).model)
    assert (trained == expected) == (kind == "evaluate")


def test_an_evaluation_changes_nothing(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """It answers without change or weight, and leaves in the model what the order put there."""
    study, site = make_study(), Site(make_hospital())
    order = make_order(study, "evaluate")
    reply = answered(site, order)
    assert not reply.groups
    assert not reply.weights
    assert reply.training is not None
    assert reply.training.steps == 0
    state = site.prepare(study).model.state_dict()
    assert digest(take(site.prepare(study).model, state)) == digest(take(model_of(order), state))


@pytest.mark.parametrize("normalisation", ["average", "frozen"])
def test_two_sites_of_one_folder_agree_to_the_bit(
    normalisation: str, make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """The same data and order give the same bytes, in a second process or a second time."""
    study = make_study(("ct", "mr"), backbone={"normalisation": normalisation})
    config = make_hospital(tasks=("ct", "mr"))
    order = make_order(study)
    one, other = Site(config), Site(config)
    replies = [answered(site, order) for site in (one, other, one)]
    for reply in replies:
        assert reply.refusal == ""
        assert digests(reply.groups) == digests(replies[0].groups)
        assert digests(reply.metrics) == digests(replies[0].metrics)
        assert reply.weights == replies[0].weights


def test_each_round_and_site_has_its_own_order_of_batches(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Another round, and another site with the same images, train in another order."""
    study = make_study()
    sites = [Site(make_hospital(name)) for name in ("site-a", "site-b")]
    replies = [
        answered(sites[0], make_order(study, number=1)),
        answered(sites[0], make_order(study, number=2)),
        answered(sites[1], make_order(study, number=1)),
    ]
    assert len({digest(reply.groups["shared"]) for reply in replies}) == 3


def test_the_callers_random_numbers_are_left_alone(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Training draws from its own stream, not from the process's."""
    site, order = Site(make_hospital()), make_order(make_study())
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    answered(site, order)
    assert torch.equal(torch.rand(4), expected)


def test_frozen_layers_never_travel(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """When the head alone trains, the head alone comes back."""
    study = make_study(training={"train": "head"})
    reply = answered(Site(make_hospital()), make_order(study))
    assert reply.refusal == ""
    assert set(reply.groups) == {"head:ct"}
    assert set(reply.groups["head:ct"]) == {"heads.ct.weight", "heads.ct.bias"}


# The base


def test_the_base_is_sent_once(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """A site that has it answers the same without it, also after a restart, and says so."""
    study = make_study(training={"train": "last:1"})
    config = make_hospital()
    full, short = make_order(study), make_order(study, with_base=False)
    site = Site(config)
    first = answered(site, full)
    for again in (site, Site(config)):
        reply = answered(again, short)
        assert reply.refusal == ""
        assert digests(reply.groups) == digests(first.groups)
        declared = answered(again, make_order(study, "check")).declaration
        assert declared is not None
        assert declared.base == full.base_digest


def test_a_missing_base_is_asked_for(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Without the base, or with another, the answer is the code ``order``; then it works."""
    study, site = make_study(), Site(make_hospital())
    full = make_order(study)
    assert answered(site, full._replace(base=None)).refusal == "order"
    assert answered(site, full._replace(base_digest="0" * 64)).refusal == "order"
    assert answered(site, full).refusal == ""
    assert answered(site, full._replace(base=None, base_digest="0" * 64)).refusal == "order"
    assert answered(site, full._replace(base=None)).refusal == ""


# Orders that a site cannot follow


def misfits(order: Order) -> dict[str, Order]:
    """Return orders that differ in one thing from what fits."""
    shared, head = dict(order.groups["shared"]), dict(order.groups["head:ct"])
    name = next(iter(shared))
    other: dict[str, Array] = {"x": np.zeros(3, np.float32)}
    base = {**(order.base or {}), **other}
    fewer = {group: order.groups[group] for group in order.groups if group != "shared"}
    grown = np.zeros((*shared[name].shape, 1), np.float32)
    return {
        "foreign group": with_group(order, "head:mr", other),
        "missing group": order._replace(groups=fewer),
        "no group": order._replace(groups={}),
        "foreign array": with_group(order, "shared", shared | other),
        "missing array": with_group(order, "head:ct", dict(list(head.items())[:1])),
        "swapped groups": order._replace(
            groups={**order.groups, "shared": head, "head:ct": shared}
        ),
        "misshapen array": with_group(order, "shared", shared | {name: grown}),
        "misshapen head": with_group(
            order, "head:ct", head | {"heads.ct.bias": np.zeros(3, np.float32)}
        ),
        "other dtype": with_group(
            order, "shared", shared | {name: shared[name].astype(np.float64)}
        ),
        "foreign base": order._replace(base=base, base_digest=digest(base)),
    }


MISFITS = (
    "foreign group", "missing group", "no group", "foreign array", "missing array",
    "swapped groups", "misshapen array", "misshapen head", "other dtype", "foreign base",
)  # fmt: skip


@pytest.mark.parametrize("what", MISFITS)
@pytest.mark.parametrize("normalisation", ["average", "local"])
def test_an_order_that_does_not_fit_is_refused(
    what: str,
    normalisation: str,
    make_study: MakeStudy,
    make_hospital: MakeHospital,
    make_order: MakeOrder,
) -> None:
    """The answer is the code ``order``, and the next good order is followed as if nothing was."""
    study = make_study(backbone={"normalisation": normalisation})
    good, config = make_order(study), make_hospital()
    site, fresh = Site(config), Site(elsewhere(config))
    assert answered(site, misfits(good)[what]) == refused(study, "order")
    replies = [answered(each, good) for each in (site, fresh)]
    assert replies[0].refusal == ""
    assert digests(replies[0].groups) == digests(replies[1].groups)
    assert digests(replies[0].metrics) == digests(replies[1].metrics)


def elsewhere(config: SiteConfig) -> SiteConfig:
    """Return the same hospital with a state folder of its own."""
    return config.model_copy(update={"state": config.state.with_name("other-state")})


def refused(study: Study, code: str, number: int = 1) -> Reply:
    """Return the whole of what a refusal may say."""
    return Reply("site-a", study.digest(), number, refusal=code)


@pytest.mark.parametrize("splits", [TRAIN_ONLY, SPLITS])
@pytest.mark.parametrize("normalisation", ["average", "local", "frozen"])
def test_a_broken_model_leaves_no_trace(
    splits: Sequence[str],
    normalisation: str,
    make_study: MakeStudy,
    make_hospital: MakeHospital,
    make_order: MakeOrder,
) -> None:
    """Arrays of NaN are refused as ``diverged``, measuring or training, and forgotten."""
    study = make_study(backbone={"normalisation": normalisation})
    good, config = make_order(study), make_hospital(splits=splits)
    shared = {n: np.full_like(value, np.nan) for n, value in good.groups["shared"].items()}
    site, fresh = Site(config), Site(elsewhere(config))
    assert answered(site, with_group(good, "shared", shared)) == refused(study, "diverged")
    replies = [answered(each, good) for each in (site, fresh)]
    assert replies[0].refusal == ""
    assert digests(replies[0].groups) == digests(replies[1].groups)


def test_a_foreign_protocol_is_refused(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """An order of another version or form gets a code, of no study and no round."""
    site = Site(make_hospital())
    record = order_to_record(make_order(make_study()))
    head = dict(record.config_records["order"])
    unlike: tuple[dict[str, Any], ...] = (
        head | {"protocol": 999},
        head | {"digest": "0" * 64},
        head | {"kind": "explain"},
        head | {"study": "no study"},
        {},
    )
    for other in unlike:
        record["order"] = ConfigRecord(other)
        reply = reply_from_record(respond(site, record))
        assert reply == Reply("site-a", "0" * 64, 0, refusal="study_mismatch")
    reply = reply_from_record(respond(site, RecordDict()))
    assert reply.refusal == "study_mismatch"


# What goes wrong inside


def without_images(folder: Path) -> None:
    shutil.rmtree(folder / "ct/images")


def without_task(folder: Path) -> None:
    shutil.rmtree(folder / "ct")


def with_a_row(row: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / "ct/labels.csv").open("a", encoding="utf-8") as file:
            file.write(row)

    return change


def without_rows(folder: Path) -> None:
    (folder / "ct/labels.csv").write_text("path,label,patient_id\n", encoding="utf-8")


def with_an_open_key(folder: Path) -> None:
    (folder / "state/site.key").write_text("0" * 64)
    (folder / "state/site.key").chmod(0o644)


@pytest.mark.parametrize("kind", ["check", "train", "evaluate"])
@pytest.mark.parametrize(
    ("code", "damage"),
    [
        ("image", without_images),
        ("missing_folder", without_task),
        ("empty_manifest", without_rows),
        ("label", with_a_row("images/scan_9_0.png,unsure,PATIENT-ct-9,\n")),
        ("manifest", with_a_row("images/scan_9_0.png,unsure,,\n")),
        ("split", with_a_row("images/scan_9_0.png,normal,PATIENT-ct-0,test\n")),
        ("data", with_an_open_key),
    ],
)
def test_what_goes_wrong_becomes_a_code(
    kind: str,
    code: str,
    damage: Callable[[Path], None],
    make_study: MakeStudy,
    make_hospital: MakeHospital,
    make_order: MakeOrder,
) -> None:
    """A fault of the hospital's data is told by its code; no path, patient or text leaves."""
    config, study = make_hospital(), make_study()
    site, order = Site(config), make_order(study, kind)
    damage(config.state.parent)
    assert answered(site, order) == refused(study, code, order.round)
    log = (config.state / "site.log").read_text()
    assert f"({code})" in log
    assert "PATIENT" not in log


def test_what_nobody_foresaw_becomes_a_code(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Any other exception is the code ``error``, its traceback in the log; an order heals it."""
    study, config = make_study(), make_hospital()
    full, short = make_order(study), make_order(study, with_base=False)
    assert answered(Site(config), full).refusal == ""
    (base,) = (config.state / "studies").rglob("base.safetensors")
    base.unlink()
    site = Site(config)
    assert answered(site, short) == refused(study, "error")
    assert "Traceback" in (config.state / "site.log").read_text()
    assert answered(site, full).refusal == ""


def test_a_site_that_cannot_work_says_so_at_once(make_hospital: MakeHospital) -> None:
    """A state folder that is none, or a device that is not there, is refused with a remedy."""
    config = make_hospital(device="cuda:99")
    with pytest.raises(DataError, match="cuda:99") as refusal:
        Site(config)
    assert "device" in refusal.value.remedy
    file = config.state.with_name("file")
    file.write_text("no folder")
    with pytest.raises(DataError, match="log") as refusal:
        Site(config.model_copy(update={"state": file, "device": "cpu"}))
    assert "state" in refusal.value.remedy


def test_the_log_is_the_sites_own(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Nobody but the owner may read it, and it names no patient."""
    config = make_hospital(max_unreadable=1.0)
    for scan in (config.data["ct"].manifest.parent / "images").glob("scan_[1-7]_0.png"):
        scan.write_bytes(b"no image")
    site = Site(config)
    assert answered(site, make_order(make_study())).refusal == ""
    log = config.state / "site.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert log.read_text().count("left out: line") == 7
    assert "PATIENT" not in log.read_text()


# Normalisation that stays at the site (FedBN)


def test_local_normalisation_stays_and_lasts(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """It is trained, kept on disk, used again after a restart, and is in no reply."""
    study, config = make_study(backbone={"normalisation": "local"}), make_hospital()
    order = make_order(study)
    assert order.base is not None
    local = layout_of(build_model(study), study).local
    assert local
    reply = answered(Site(config), order)
    assert reply.refusal == ""
    assert set(reply.groups) == {"shared", "head:ct"}
    assert not {name for group in reply.groups.values() for name in group} & set(local)

    (file,) = (config.state / "studies").rglob("local-1.safetensors")
    kept = load_file(file)
    assert set(kept) == set(local)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    changed = [name for name in local if not np.array_equal(kept[name], order.base[name])]
    assert len(changed) == len(local)

    again = Site(config)
    own = model_of(order)
    put(own, kept)
    later = answered(again, make_order(study, "evaluate", number=2, with_base=False))
    assert digests(later.metrics) == metrics_by_hand(again, order, own)
    assert digest(take(again.prepare(study).model, local)) == digest(kept)


def test_local_normalisation_goes_on_where_it_was(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """A second round, restarted in between or not, gives the same bytes."""
    study = make_study(backbone={"normalisation": "local"})
    config = make_hospital()
    steady, other = Site(config), elsewhere(config)
    answered(steady, make_order(study))
    answered(Site(other), make_order(study))
    second = make_order(study, number=2, with_base=False)
    replies = [answered(site, second) for site in (steady, Site(other))]
    assert replies[0].refusal == ""
    assert digests(replies[0].groups) == digests(replies[1].groups)
    assert digests(replies[0].metrics) == digests(replies[1].metrics)


def test_personal_heads_stay_and_last(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """They are trained, kept on disk, used again after a restart, and are in no reply (FedPer)."""
    study, config = make_study(("ct", "mr"), federation={"personal": "head"}), make_hospital()
    order = make_order(study, tasks=["ct"])
    assert order.base is not None
    assert set(order.groups) == {"shared", "statistics"}
    reply = answered(Site(config), order)
    assert set(reply.groups) == set(reply.weights) == {"shared", "statistics"}

    (file,) = (config.state / "studies").rglob("local-1.safetensors")
    kept = load_file(file)
    heads = {f"heads.{task}.{part}" for task in ("ct", "mr") for part in ("weight", "bias")}
    assert set(kept) == heads
    changed = {name for name in heads if not np.array_equal(kept[name], order.base[name])}
    assert changed == {"heads.ct.weight", "heads.ct.bias"}  # it has no images of the other task

    again = Site(config)
    own = model_of(order)
    put(own, kept)
    later = answered(again, make_order(study, "evaluate", tasks=["ct"], number=2, with_base=False))
    assert digests(later.metrics) == metrics_by_hand(again, order, own)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_round_redone_gives_the_same(
    restarted: bool,  # noqa: FBT001 - a parameter of the test
    make_study: MakeStudy,
    make_hospital: MakeHospital,
    make_order: MakeOrder,
) -> None:
    """A round that is asked for again starts from the arrays that it started from at first."""
    study = make_study(backbone={"normalisation": "local"})
    site = Site(make_hospital())
    for number in (1, 2, 3):
        order = make_order(study, number=number)
        first = answered(site, order)
        if restarted:
            site = Site(site.config)
        again = answered(site, order)
        assert first.refusal == again.refusal == ""
        assert digests(again.groups) == digests(first.groups)
        assert digests(again.metrics) == digests(first.metrics)
    assert answered(site, make_order(study, number=1)) == refused(study, "order")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_long_change_is_shortened(
    dtype: str, make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """With a bound a site sends the same direction at that length; statistics stay as they are."""
    free = make_study(federation={"update_dtype": "float32"})
    bound = make_study(federation={"update_dtype": dtype, "update_norm": 0.01})
    config = make_hospital()
    whole = answered(Site(config), make_order(free)).groups
    short = answered(Site(config), make_order(bound)).groups
    factor = 0.01 / update_norm(whole)
    assert factor < 1
    for group, arrays in whole.items():
        by = 1.0 if group == "statistics" else factor
        for name, value in arrays.items():
            np.testing.assert_allclose(short[group][name], value * by, rtol=2e-3, atol=1e-6)
    assert update_norm(short) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("number", "part"), [(1, 1.0), (2, 0.25), (3, 0.0625)])
def test_a_schedule_knows_the_round(
    number: int,
    part: float,
    make_study: MakeStudy,
    make_hospital: MakeHospital,
    make_order: MakeOrder,
) -> None:
    """Rates that fall to a quarter each round: plain SGD changes a head by so much of all.

    The step is so small that the gradient stays what it is.
    """
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "head_lr": 1e-4}
    changes, config = [], make_hospital(splits=TRAIN_ONLY)
    for schedule in ({"kind": "constant"}, {"kind": "step", "period": 1, "factor": 0.25}):
        training = plain | {"train": "head", "schedule": schedule}
        study = make_study(rounds=4, training=training, backbone={"normalisation": "frozen"})
        order = make_order(study, number=number)
        reply = answered(Site(config), order)
        changes.append(reply.groups["head:ct"]["heads.ct.weight"])
    constant, stepped = changes
    assert np.abs(constant).max() > 0
    np.testing.assert_allclose(stepped, part * constant, rtol=0.02, atol=1e-3 * constant.max())
