"""Laws of what the hospital has agreed to."""

import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from client.approvals import approve, approved, is_approved, load_pin, withdraw
from client.config import SiteConfig
from common.errors import DataError, EnrolmentError, VersionError
from common.study import Study
from common.versions import PROTOCOL

MakeStudy = Callable[..., Study]
MakeHospital = Callable[..., SiteConfig]

NOON = datetime(2027, 1, 2, 12, tzinfo=timezone(timedelta(hours=1)))
PINNED = {
    "coordinator": "demo",
    "site": "site-a",
    "order_key": "ab" * 32,
    "protocol": PROTOCOL,
    "fingerprint": "abcd",
}


def test_nothing_is_approved_at_first(make_study: MakeStudy, make_hospital: MakeHospital) -> None:
    """Without the file there is no approval."""
    config = make_hospital()
    assert approved(config) == {}
    assert not is_approved(config, make_study().digest())


def test_an_approval_is_of_one_digest(make_study: MakeStudy, make_hospital: MakeHospital) -> None:
    """A study that differs in anything that is agreed on is another one, and is not approved."""
    config, study = make_hospital(), make_study()
    entry = approve(config, study, NOON)
    assert is_approved(config, study.digest())
    assert approved(config) == {study.digest(): entry}
    assert entry.at == NOON
    assert entry.study == json.loads(study.wire())
    for other in (
        make_study(training={"local_epochs": 2}),
        make_study(("ct", "mr")),
        study.model_copy(update={"rounds": 4}),
    ):
        assert not is_approved(config, other.digest())


def test_approvals_add_up_and_are_taken_back(
    make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """Each stands for itself; a second approval renews the first."""
    config, studies = make_hospital(), [make_study(), make_study(("mr",))]
    for study in (*studies, studies[0]):
        approve(config, study, datetime.now(UTC))
    assert set(approved(config)) == {study.digest() for study in studies}
    assert withdraw(config, studies[0].digest())
    assert not withdraw(config, studies[0].digest())
    assert list(approved(config)) == [studies[1].digest()]


def test_the_list_is_the_owners_own(make_study: MakeStudy, make_hospital: MakeHospital) -> None:
    """Nobody else may read or change it."""
    config = make_hospital()
    approve(config, make_study(), NOON)
    assert stat.S_IMODE((config.state / "approvals.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "[]", '{"studies": {"x": 1}}', '{"studies": 1}', "{}x"])
def test_a_damaged_list_approves_nothing(
    text: str, make_study: MakeStudy, make_hospital: MakeHospital
) -> None:
    """It is refused with a remedy, not read as an empty one and not written over."""
    config = make_hospital()
    config.state.mkdir()
    (config.state / "approvals.json").write_text(text)
    with pytest.raises(DataError) as refusal:
        is_approved(config, make_study().digest())
    assert refusal.value.remedy
    with pytest.raises(DataError):
        approve(config, make_study(), NOON)
    assert (config.state / "approvals.json").read_text() == text


def test_the_hospital_is_the_one_that_joined(make_hospital: MakeHospital) -> None:
    """It has joined, under the name that it has, with software of this protocol."""
    config = make_hospital()
    with pytest.raises(EnrolmentError, match="not joined"):
        load_pin(config)
    config.state.mkdir()
    file = config.state / "coordinator.json"
    file.write_text(json.dumps(PINNED))
    assert load_pin(config).order_key == "ab" * 32
    file.write_text(json.dumps(PINNED | {"site": "site-b"}))
    with pytest.raises(EnrolmentError, match="site-b"):
        load_pin(config)
    file.write_text(json.dumps(PINNED | {"protocol": PROTOCOL - 1}))
    with pytest.raises(VersionError, match=str(PROTOCOL)):
        load_pin(config)
    file.write_text("{}")
    with pytest.raises(EnrolmentError):
        load_pin(config)
