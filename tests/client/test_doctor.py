"""Laws of what the doctor sees of this machine."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from client import doctor
from client.config import SiteConfig
from client.doctor import (
    examine,
    find_disk,
    find_permissions,
    find_separation,
    find_vault,
    find_versions,
    vault_state,
)
from client.rehearsal import Gpu
from common.study import Study

MakeHospital = Callable[..., SiteConfig]
MakeStudy = Callable[..., Study]
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def hospital(make_joined: MakeHospital) -> SiteConfig:
    """A hospital as 'join' leaves it, its images closed to others."""
    config = make_joined()
    config.courier.mkdir(mode=0o700)
    for name in ("node.key", "superexec.secret"):
        (config.courier / name).write_bytes(b"secret")
        (config.courier / name).chmod(0o600)
    config.data["ct"].manifest.chmod(0o600)
    return config


def test_a_hospital_that_has_not_joined_is_told_so_and_all_else(
    make_hospital: MakeHospital,
) -> None:
    """Without an enrolment the rest is still looked at."""
    found = {finding.name: finding for finding in examine(make_hospital())}
    assert not found["enrolment"].ok
    assert "join KIT" in found["enrolment"].remedy
    assert not found["protocol"].ok
    assert {"permissions", "separation", "vault", "disk"} < set(found)


def test_every_red_line_has_a_remedy(make_hospital: MakeHospital) -> None:
    """A red line without advice would leave the engineer alone."""
    assert all(finding.ok or finding.remedy for finding in examine(make_hospital()))


def test_another_name_than_the_enrolled_one_is_red(hospital: SiteConfig) -> None:
    """site.toml and the enrolment must name the same site, at both halves."""
    (hospital.courier / "connection.json").write_text('{"address": "c:1", "site": "site-b"}')
    pinned = hospital.state / "coordinator.json"
    pinned.write_text(pinned.read_text().replace("site-a", "site-b"))
    found = {finding.name: finding for finding in examine(hospital)}
    assert "site-b" in found["enrolment"].remedy
    assert "site-b" in found["protocol"].remedy
    assert "connection" not in found


def test_another_protocol_is_red(hospital: SiteConfig) -> None:
    """What was pinned at joining must be what is installed."""
    assert all(finding.ok for finding in find_versions(hospital))
    file = hospital.state / "coordinator.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"protocol": 999}))
    assert [finding.ok for finding in find_versions(hospital)] == [False, True]


@pytest.mark.parametrize(
    "name", ["state", "courier", "courier/node.key", "courier/superexec.secret"]
)
def test_what_is_open_to_others_is_red(name: str, hospital: SiteConfig) -> None:
    """A folder or secret that others may enter or read is named, with what closes it."""
    assert find_permissions(hospital).ok
    path = hospital.state.parent / name
    path.chmod(path.stat().st_mode | 0o040)
    finding = find_permissions(hospital)
    assert not finding.ok
    assert f"chmod go= {path}" in finding.remedy


@as_root
@pytest.mark.parametrize("name", ["state", "courier"])
def test_what_root_left_behind_is_red(name: str, hospital: SiteConfig) -> None:
    """A file of another owner would stop the process whose folder it lies in."""
    folder = hospital.state.parent / name
    shutil.chown(folder, NOBODY)
    for file in folder.iterdir():
        shutil.chown(file, NOBODY)
    assert find_permissions(hospital).ok
    (folder / "left").touch()
    finding = find_permissions(hospital)
    assert not finding.ok
    assert "chown -R nobody" in finding.remedy


@as_root
def test_one_user_for_both_is_told(hospital: SiteConfig) -> None:
    """That the courier could read the images is said where both are one user, and not otherwise."""
    assert "same user" in find_separation(hospital).message
    shutil.chown(hospital.courier, NOBODY)
    finding = find_separation(hospital)
    assert finding.ok
    assert not finding.remedy
    assert "nobody" in finding.message


@as_root
def test_images_that_everybody_can_read_are_red(hospital: SiteConfig) -> None:
    """Two users are worth nothing where the courier's can open the manifest."""
    shutil.chown(hospital.courier, NOBODY)
    manifest = hospital.data["ct"].manifest
    manifest.chmod(0o644)
    closed = next(folder for folder in manifest.parents if not folder.stat().st_mode & 0o001)
    assert find_separation(hospital).ok, "a closed folder above it protects it"
    opened = [folder for folder in manifest.parents if not folder.stat().st_mode & 0o001]
    modes = {folder: folder.stat().st_mode for folder in opened}
    try:
        for folder in opened:
            folder.chmod(modes[folder] | 0o001)
        finding = find_separation(hospital)
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
    assert closed in modes
    assert not finding.ok
    assert str(manifest) in finding.message


def test_the_vault_is_found_by_its_socket(hospital: SiteConfig, tmp_path: Path) -> None:
    """Absent, answering and left behind by a killed process are told apart."""
    config = hospital.model_copy(update={"socket": tmp_path / "vault.sock"})
    assert vault_state(config) == "absent"
    assert find_vault(config).ok
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(config.socket))
        config.socket.chmod(0o600)
        listener.listen()
        assert vault_state(config) == "answers"
        assert find_vault(config).ok
        config.socket.chmod(0o666)
        assert "every user" in find_vault(config).message
    assert vault_state(config) == "dead"
    assert not find_vault(config).ok


def test_a_socket_path_too_long_is_red(hospital: SiteConfig) -> None:
    """It shows before anything is started, with the limit of the path as its remedy."""
    config = hospital.model_copy(update={"socket": Path("/", "x" * 107)})
    finding = find_vault(config)
    assert not finding.ok
    assert "too long" in finding.message
    assert "at most 107 bytes" in finding.remedy
    assert find_vault(hospital.model_copy(update={"socket": Path("/", "x" * 106)})).ok


@as_root
def test_a_socket_that_the_courier_cannot_open_is_red(hospital: SiteConfig, tmp_path: Path) -> None:
    """The courier's user must be in the group of the socket, and the group may write."""
    config = hospital.model_copy(update={"socket": tmp_path / "vault.sock"})
    shutil.chown(config.courier, NOBODY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(config.socket))
        listener.listen()
        config.socket.chmod(0o600)
        assert "closed to the courier" in find_vault(config).message
        config.socket.chmod(0o660)
        assert "not in the socket's group" in find_vault(config).message
        os.chown(config.socket, 0, NOBODY)
        assert find_vault(config).ok


def test_too_little_disk_is_red(hospital: SiteConfig) -> None:
    """The free space is compared with what is needed, in bytes."""
    free = shutil.disk_usage(hospital.state).free
    assert find_disk(hospital, free // 2, "a study").ok
    finding = find_disk(hospital, 2 * free, "a study")
    assert not finding.ok
    assert "a study" in finding.message


def test_a_study_is_compared_with_disk_and_device(
    hospital: SiteConfig, make_study: MakeStudy
) -> None:
    """With a study its own size counts, and a processor needs no graphics card."""
    found = {finding.name: finding for finding in examine(hospital, make_study())}
    assert "5 times the model of study" in found["disk"].message
    assert found["gpu"].ok


def test_a_study_that_cannot_be_built_is_red(hospital: SiteConfig, make_study: MakeStudy) -> None:
    """A backbone that this installation does not know shows before the first round."""
    study = make_study(backbone={"name": "test_resnett"})
    found = {finding.name: finding for finding in examine(hospital, study)}
    assert not found["model"].ok
    assert "test_resnet" in found["model"].remedy


@pytest.mark.parametrize(("device", "ok"), [("auto", True), ("cuda:99", False)])
def test_a_graphics_card_that_is_not_there(
    device: str, *, ok: bool, hospital: SiteConfig, make_study: MakeStudy
) -> None:
    """Asked for by number it is red, and with 'auto' only told."""
    config = hospital.model_copy(update={"device": device})
    found = {finding.name: finding for finding in examine(config, make_study())}
    if device == "auto" and "finds no" not in found["gpu"].message:
        pytest.skip("there is a graphics card here")
    assert found["gpu"].ok == ok
    assert found["gpu"].remedy


@pytest.mark.parametrize(("peak", "ok"), [(3_000_000_000, True), (None, False)])
def test_what_a_graphics_card_gave_is_told(
    peak: int | None, *, ok: bool, make_study: MakeStudy
) -> None:
    """A batch that did not fit is red, one that did is told with what it took."""
    finding = doctor._judge_gpu(Gpu("card", 8 * 10**9, 7 * 10**9, peak), make_study())
    assert finding.ok == ok
    assert ("3.0 GB" in finding.message) == ok
