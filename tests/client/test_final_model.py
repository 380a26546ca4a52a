"""Laws of the network that a study ended with."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from client.config import SiteConfig
from client.evaluate import logits_of
from client.final_model import exported_model, final_model, first_model, shared_model
from client.site import Site
from client.store import FINAL, SiteStore
from common.arrays import Array, digest
from common.errors import (
    FederationError,
    MissingFolderError,
    OrderError,
    StudyMismatchError,
    WeightsError,
)
from common.messages import Kind, Order
from common.models import build_model
from common.study import Study
from common.weights import take
from server.checkpoint import save_ending, save_round
from server.studies import toml_text

MakeStudy = Callable[..., Study]
MakeHospital = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]
CPU = torch.device("cpu")


def file_of(config: SiteConfig, study: Study) -> Path:
    return config.state / "studies" / study.digest()[:16] / FINAL


def played(
    config: SiteConfig, study: Study, make_order: MakeOrder
) -> tuple[Site, dict[str, Array]]:
    """Train one round, measure the study's end, and return what was measured at last."""
    site = Site(config)
    orders: tuple[tuple[Kind, int], ...] = (("train", 1), ("evaluate", 2))
    for kind, number in orders:
        assert site.answer(make_order(study, kind, number=number)).reply.metrics
    prepared = site.prepare(study)
    images = prepared.tasks["ct"].splits["test"]
    return site, {"ct": logits_of(prepared.model, images, "ct", device=CPU)}


def exported(folder: Path, study: Study, said: Study | None = None) -> dict[str, Array]:
    """Write the files of an export, as the coordinator does, and return the arrays."""
    model = build_model(study)
    arrays = take(model, model.state_dict())
    folder.mkdir()
    save_round(folder, arrays, {}, study, 3)
    (folder / "study.toml").write_text(toml_text(said or study))
    return arrays


@pytest.mark.parametrize("normalisation", ["average", "local"])
def test_the_kept_model_says_what_was_measured(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, normalisation: str
) -> None:
    """Loaded anew it gives the very logits of the last exchange, the site's own arrays in it."""
    study, config = make_study(backbone={"normalisation": normalisation}), make_hospital()
    site, measured = played(config, study, make_order)
    found = final_model(config, study, device=CPU)
    images = site.prepare(study).tasks["ct"].splits["test"]
    assert np.array_equal(logits_of(found.model, images, "ct", device=CPU), measured["ct"])
    assert not found.model.training
    assert (found.model_round, found.tasks) == (1, ("ct",))
    assert found.sha256 == digest(take(found.model, found.model.state_dict()))
    assert stat.S_IMODE(file_of(config, study).stat().st_mode) == 0o600


def test_a_kept_model_may_be_of_an_earlier_round(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Where the order says that it brings the best round's model, the site keeps it as that."""
    study, config = make_study(), make_hospital()
    order = make_order(study, "evaluate", number=9)
    for said, expected in ((None, 8), (3, 3), (0, 0)):
        Site(config).answer(order._replace(model_round=said))
        assert final_model(config, study, device=CPU).model_round == expected


def test_an_export_says_which_rounds_model_it_is(make_study: MakeStudy, tmp_path: Path) -> None:
    """It is that of the last round, or of the one that the study ended with."""
    study = make_study()
    folder = tmp_path / "out"
    arrays = exported(folder, study)
    assert exported_model(folder, device=CPU).model_round == 3
    save_ending(folder, arrays, model_round=2)
    assert exported_model(folder, device=CPU).model_round == 2


def test_what_is_the_sites_own_can_be_left_out(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """A newcomer's network has the normalisation of the beginning; without any it is the same."""
    local, config = make_study(backbone={"normalisation": "local"}), make_hospital()
    played(config, local, make_order)
    own, shared = final_model(config, local, device=CPU), shared_model(config, local, device=CPU)
    assert shared is not None
    first, mine, common = (m.state_dict() for m in (build_model(local), own.model, shared.model))
    differing = {name for name in mine if not torch.equal(mine[name], common[name])}
    assert differing
    assert all(torch.equal(common[name], first[name]) for name in differing)
    assert shared.sha256 != own.sha256
    average = make_study()
    SiteStore(config.state, average.digest()).save_network(
        FINAL, take(build_model(average), first), model_round=1, tasks=["ct"]
    )
    assert shared_model(config, average, device=CPU) is None


def test_what_is_shared_without_heads_is_no_model(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, tmp_path: Path
) -> None:
    """With personal heads there is the site's own network alone, and an export is refused."""
    study, config = make_study(federation={"personal": "head"}), make_hospital()
    site, measured = played(config, study, make_order)
    found = final_model(config, study, device=CPU)
    images = site.prepare(study).tasks["ct"].splits["test"]
    assert np.array_equal(logits_of(found.model, images, "ct", device=CPU), measured["ct"])
    assert shared_model(config, study, device=CPU) is None
    exported(tmp_path / "out", study)
    with pytest.raises(WeightsError, match="a backbone alone") as refusal:
        exported_model(tmp_path / "out", device=CPU)
    assert "Give the study instead" in refusal.value.remedy


def test_only_the_last_exchange_is_kept(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Before the study's end there is no final model, and the refusal says what to do."""
    study, config = make_study(), make_hospital()
    Site(config).answer(make_order(study, "train"))
    with pytest.raises(FederationError, match="keeps no final model") as refusal:
        final_model(config, study, device=CPU)
    assert "export" in refusal.value.remedy


def test_the_beginning_is_kept_too(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Before the first round the network is kept as it came; a site that missed it is told."""
    study, config = make_study(), make_hospital()
    with pytest.raises(FederationError, match="began"):
        first_model(config, study, device=CPU)
    order = make_order(study, "train")
    Site(config).answer(order)
    found = first_model(config, study, device=CPU)
    kept = take(found.model, order.groups["shared"])
    assert digest(kept) == digest(order.groups["shared"])
    assert found.model_round == 0


def test_a_killed_write_leaves_the_old_model(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """What cannot be written whole changes nothing, and a half-written file is not read."""
    study, config = make_study(), make_hospital()
    played(config, study, make_order)
    before = final_model(config, study, device=CPU).sha256
    unwritable: dict[str, Array] = {"text": np.array(["safetensors knows no text"])}
    with pytest.raises(Exception, match=r"."):
        SiteStore(config.state, study.digest()).save_network(
            FINAL, unwritable, model_round=9, tasks=[]
        )
    file = file_of(config, study)
    (file.parent / f".{file.name}.x1").write_bytes(file.read_bytes()[:100])
    found = final_model(config, study, device=CPU)
    assert (found.sha256, found.model_round) == (before, 1)


def test_a_damaged_model_is_refused(
    make_study: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """A file that is cut, of another study, without notes or of another network is not used."""
    study, config = make_study(), make_hospital()
    played(config, study, make_order)
    file, store = file_of(config, study), SiteStore(config.state, study.digest())
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(OrderError):
        final_model(config, study, device=CPU)
    file.write_bytes(whole.replace(study.digest().encode(), b"0" * 64))
    with pytest.raises(OrderError, match="another study"):
        final_model(config, study, device=CPU)
    save_file({"a": np.zeros(2)}, file)
    with pytest.raises(OrderError):
        final_model(config, study, device=CPU)
    store.save_network(FINAL, {"a": np.zeros(2)}, model_round=1, tasks=["ct"])
    with pytest.raises(WeightsError):
        final_model(config, study, device=CPU)


def test_an_export_is_loaded_as_it_was_written(make_study: MakeStudy, tmp_path: Path) -> None:
    """Arrays, round and tasks of an exported folder are those of the coordinator."""
    study = make_study(("ct", "mr"))
    arrays = exported(tmp_path / "export", study)
    found = exported_model(tmp_path / "export", device=CPU)
    assert (found.sha256, found.model_round) == (digest(arrays), 3)
    assert found.tasks == ("ct", "mr")
    assert found.study.digest() == study.digest()


def test_what_is_no_export_is_refused(make_study: MakeStudy, tmp_path: Path) -> None:
    """A folder without the files, a model of another study and a file cut short are refused."""
    with pytest.raises(MissingFolderError, match="study"):
        exported_model(tmp_path / "nothing", device=CPU)
    exported(tmp_path / "other", make_study(), said=make_study(("mr",)))
    with pytest.raises(StudyMismatchError):
        exported_model(tmp_path / "other", device=CPU)
    exported(tmp_path / "cut", make_study())
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(WeightsError):
        exported_model(tmp_path / "cut", device=CPU)
    notes = {"rarefed": json.dumps({"study_digest": make_study().digest(), "round": "x"})}
    save_file({"a": np.zeros(2)}, file, metadata=notes)
    with pytest.raises(WeightsError):
        exported_model(tmp_path / "cut", device=CPU)
