"""The doctor: everything that must be right before a hospital takes part, one line each.

Here is what it sees of this machine; the way to the coordinator is in ``client/probes.py``.
"""

import grp
import os
import pwd
import shutil
import socket
import stat
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from client.approvals import load_pin
from client.config import SiteConfig
from client.courier import Connection
from client.probes import Finding, network_findings
from client.socket_file import check_path
from common.errors import RarefedError
from common.study import Study
from common.versions import software_version

if TYPE_CHECKING:
    from client.rehearsal import Gpu

GB = 10**9
LEAST_FREE = 2 * GB
"""Bytes of disk that are asked for while no study is named."""
MODELS_ON_DISK = 5
"""An order, a reply, the base, and the networks that the study began and ended with, each up to the
size of the study's model. With initial weights beside the base, an order may have two of them."""

_AS_ROOT = "Run the doctor as root: it then sees what vault and courier have each to themselves."


def examine(config: SiteConfig, study: Study | None = None) -> list[Finding]:
    """Look at everything, in the order in which faults hide one another.

    Args:
        config: The hospital.
        study: Also compare disk and graphics card with what this study needs; takes seconds.
    """
    findings = [*_way(config), *find_versions(config), find_permissions(config)]
    findings += [find_separation(config), find_vault(config)]
    if study is None:
        return [*findings, find_disk(config, LEAST_FREE, "no study was named")]
    return [*findings, *_study_findings(config, study)]


def _way(config: SiteConfig) -> list[Finding]:
    try:
        connection = Connection.load(config)
    except RarefedError as error:
        return [_from("enrolment", error)]
    if connection.site != config.name:
        message = f"joined as {connection.site}, but site.toml says {config.name}"
        remedy = f'Set name = "{connection.site}" in site.toml, or join again.'
        return [Finding("enrolment", ok=False, message=message, remedy=remedy)]
    joined = Finding("enrolment", ok=True, message=f"{connection.site} at {connection.address}")
    return [joined, *network_findings(connection, config.courier)]


def find_versions(config: SiteConfig) -> list[Finding]:
    """Compare what is installed with what was agreed when the hospital joined."""
    findings = []
    try:
        pin = load_pin(config)
        message = f"protocol {pin.protocol}, rarefed {software_version()}"
        findings.append(Finding("protocol", ok=True, message=message))
    except RarefedError as error:
        findings.append(_from("protocol", error))
    try:
        wanted = [item for item in requires("rarefed") or [] if item.startswith("flwr==")]
        found = f"flwr=={version('flwr')}"
    except PackageNotFoundError as error:
        message, remedy = f"{error.name} is not installed", "Install rarefed with its dependencies."
        return [*findings, Finding("flower", ok=False, message=message, remedy=remedy)]
    remedy = "" if found in wanted else f"Install {wanted[0]}: Flower changes with every version."
    return [*findings, Finding("flower", ok=not remedy, message=found, remedy=remedy)]


def find_permissions(config: SiteConfig) -> Finding:
    """See that vault and courier own what is theirs, and that secrets are closed to others."""
    faults, remedies, seen = [], [], 0
    secret = (config.key_file, config.courier / "node.key", config.courier / "superexec.secret")
    for path in (config.state, config.courier, *secret):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except (FileNotFoundError, PermissionError):
            continue  # made when first needed; or closed to this user, as it should be
        seen += 1
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            faults.append(f"{path} is open to others ({mode:03o})")
            remedies.append(f"chmod go= {path}")
    for folder in (config.state, config.courier):
        if foreign := _foreign_files(folder):
            faults.append(f"{len(foreign)} files do not belong to the owner of {folder}")
            remedies.append(f"chown -R {_user(folder.stat().st_uid)} {folder}")
    if faults:
        remedy = f"Run: {'; '.join(remedies)}"
        return Finding("permissions", ok=False, message=", ".join(faults), remedy=remedy)
    return Finding("permissions", ok=True, message=f"{seen} folders and secrets are closed")


def find_separation(config: SiteConfig) -> Finding:
    """See that the courier's user is another than the vault's, and cannot read the data."""
    name = "separation"
    try:
        vault, courier = config.state.stat().st_uid, config.courier.stat().st_uid
    except OSError:
        message = "vault or courier have no folder yet, or this user may not see it"
        return Finding(name, ok=True, message=message)
    open_ = [str(files.manifest) for files in config.data.values() if _open_to_all(files.manifest)]
    if open_:
        message = f"every user of this machine can read {', '.join(open_)}"
        remedy = f"Run: chmod -R o= {' '.join(sorted({str(Path(p).parent) for p in open_}))}"
        return Finding(name, ok=vault == courier, message=message, remedy=remedy)
    if vault == courier:
        message = f"vault and courier are the same user ({_user(vault)})"
        remedy = "On a hospital's machine give them two users: docs/hospital.md."
        return Finding(name, ok=True, message=message, remedy=remedy)
    message = f"the vault is {_user(vault)}, the courier {_user(courier)}"
    return Finding(name, ok=True, message=message)


def find_vault(config: SiteConfig) -> Finding:
    """See whether the vault answers on its socket, and who may speak to it."""
    name = "vault"
    try:
        check_path(config)
    except RarefedError as error:
        return _from(name, error)
    state = vault_state(config)
    if state == "absent":
        message, remedy = "not running: there is no socket", "Start it: rarefed-client start SITE"
        return Finding(name, ok=True, message=message, remedy=remedy)
    if state == "forbidden":
        message = f"this user may not speak to {config.socket}"
        return Finding(name, ok=False, message=message, remedy=_AS_ROOT)
    if state == "dead":
        message = f"{config.socket} is there, but nothing answers"
        return Finding(name, ok=False, message=message, remedy="Restart it; look at its log.")
    fault = _socket_fault(config)
    if fault:
        remedy = "Set 'socket_group' in site.toml to a group that vault and courier are both in."
        return Finding(name, ok=False, message=fault, remedy=remedy)
    return Finding(name, ok=True, message=f"answers on {config.socket}")


def vault_state(config: SiteConfig) -> str:
    """Return ``answers``, ``absent``, ``dead`` (a socket without a process) or ``forbidden``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(config.socket))
        except FileNotFoundError:
            return "absent"
        except PermissionError:
            return "forbidden"
        except OSError:
            return "dead"
    return "answers"


def find_disk(config: SiteConfig, needed: int, why: str) -> Finding:
    """Compare the free disk with ``needed`` bytes."""
    free = min(shutil.disk_usage(_existing(path)).free for path in (config.state, config.courier))
    message = f"{free / GB:.1f} GB free, {needed / GB:.1f} GB wanted ({why})"
    remedy = "" if free >= needed else "Make room, or move 'state' and 'courier' in site.toml."
    return Finding("disk", ok=not remedy, message=message, remedy=remedy)


def _study_findings(config: SiteConfig, study: Study) -> Iterator[Finding]:
    """Compare disk and graphics card with what a study needs."""
    from client import rehearsal  # noqa: PLC0415 - torch takes seconds to load

    try:
        model = rehearsal.model_of(study)
    except RarefedError as error:
        yield _from("model", error)
        return
    size = rehearsal.size_of(model)
    models = MODELS_ON_DISK + study.training.stays_near
    why = f"{models} times the model of {study.name}, {size / GB:.2f} GB"
    yield find_disk(config, models * size, why)
    if config.device == "cpu":
        yield Finding("gpu", ok=True, message="not asked for: site.toml says device = 'cpu'")
        return
    device = rehearsal.find_cuda(config.device)
    if device is None:
        auto = config.device == "auto"
        remedy = "Set device = 'cpu' in site.toml, or install torch with CUDA and the driver."
        yield Finding("gpu", ok=auto, message="torch finds no graphics card", remedy=remedy)
    elif vault_state(config) == "answers":
        message = "the vault is running and may be using it: stop it to try the study on it"
        yield Finding("gpu", ok=True, message=message)
    else:
        yield _judge_gpu(rehearsal.try_gpu(model, study, device), study)


def _judge_gpu(gpu: "Gpu", study: Study) -> Finding:
    total, free = f"{gpu.total / GB:.1f} GB", f"{gpu.free / GB:.1f} GB free"
    batch = f"a batch of {study.training.batch_size} of {study.name}"
    if gpu.peak is None:
        message = f"{gpu.name}: {total}, {free}; {batch} does not fit"
        remedy = "Use a larger card, free this one, or ask for a smaller batch_size."
        return Finding("gpu", ok=False, message=message, remedy=remedy)
    message = f"{gpu.name}: {total}, {free}; {batch} took {gpu.peak / GB:.1f} GB"
    return Finding("gpu", ok=True, message=message)


def _socket_fault(config: SiteConfig) -> str:
    """Say what is wrong with who may use the vault's socket; nothing if nothing is."""
    info = config.socket.stat()
    if info.st_mode & stat.S_IRWXO:
        return f"{config.socket} is open to every user of this machine"
    try:
        courier = pwd.getpwuid(config.courier.stat().st_uid)
    except (OSError, KeyError):
        return ""
    if courier.pw_uid == info.st_uid:
        return ""
    group = info.st_gid
    if not info.st_mode & stat.S_IWGRP:
        return f"{config.socket} is closed to the courier's user, {courier.pw_name}"
    if group not in os.getgrouplist(courier.pw_name, courier.pw_gid):
        return f"{courier.pw_name} is not in the socket's group, {grp.getgrgid(group).gr_name}"
    return ""


def _foreign_files(folder: Path) -> list[Path]:
    """Return what root left in a folder that it does not own, as far as this user sees it."""
    try:
        owner = folder.stat().st_uid
        return [path for path in folder.rglob("*") if path.lstat().st_uid != owner]
    except OSError:
        return []


def _open_to_all(file: Path) -> bool:
    """Whether every user of the machine can read ``file``, folders above it included."""
    try:
        if not file.stat().st_mode & stat.S_IROTH:
            return False
        return all(folder.stat().st_mode & stat.S_IXOTH for folder in file.parents)
    except OSError:
        return False


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _from(name: str, error: RarefedError) -> Finding:
    return Finding(name, ok=False, message=error.message, remedy=error.remedy)
