"""A bundle that means harm, run as the courier's user beside a vault: it gets nothing.

The set-up is that of ``docs/hospital.md``: ``rarefed-client start`` with two users, the vault's
images and folder its own. The bundle comes the whole way, from SuperLink through the SuperNode.
"""

import base64
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, RecordDict
from flwr.cli.build import build_fab_from_files
from PIL import Image

from client.config import SiteConfig
from common.arrays import digest
from common.bodies import read_body, write_body
from common.chained_log import ChainedLog
from common.errors import ServiceError
from common.messages import Order, Reply, order_to_record, reply_from_record
from common.models import build_model
from common.seals import Sealer, load_order_key
from common.study import Study
from common.weights import layout_of, take
from server import flower
from server.config import ServerConfig
from simulations.deployment import Deployment, wait_until

SecretsOf = Callable[[Path], dict[Path, list[bytes]]]
Exposed = Callable[[dict[Path, list[bytes]], list[Path], int], list[str]]
Loot = dict[str, dict[str, Any]]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
VAULT, COURIER, GROUP = "sync", "nobody", "nogroup"
"""Two users that every Debian has, and the group that both are in."""
PROGRAMS = ("rarefed-client", "flower-supernode", "flower-superexec", "flwr-clientapp")
MAX_ORDER_MB = 3
SITE, PATIENT = "besieged", "PATIENT-7731"
PROJECT = """
[project]
name = "rarefed"
version = "6.6.6"
description = "hostile"
license = "Apache-2.0"
dependencies = ["flwr==1.41.0"]
[tool.flwr.app]
publisher = "rarefed"
[tool.flwr.app.components]
clientapp = "client.app:app"
serverapp = "server.app:app"
[tool.flwr.app.config]
site = ""
out = ""
"""


@dataclass
class Hospital:
    """A hospital of two users that runs."""

    folder: Path
    data: Path
    config: SiteConfig
    study: Study
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass through, as pytest's own are not."""
    if os.geteuid() != 0:
        pytest.skip("only root can run vault and courier as two users")
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv")
    for user in (VAULT, COURIER):
        done = subprocess.run(["id", "-Gn", user], capture_output=True, text=True, check=False)
        if GROUP not in done.stdout.split():
            pytest.skip(f"{user} is not in the group {GROUP} here")
    folder = Path(tempfile.mkdtemp(prefix="rarefed-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def programs(open_folder: Path) -> Path:
    """Rarefed's programs for every user, as an installation in /opt would have them."""
    own = Path(sys.executable).resolve()
    usable = [python for python in (own, Path("/usr/bin/python3")) if _is_for_all(python)]
    if not usable:
        pytest.skip(f"no Python {sys.version_info.major}.{sys.version_info.minor} is for all users")
    folder = open_folder / "installed"
    subprocess.run([usable[0], "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    paths = [sysconfig.get_path("purelib"), str(ROOT)]
    (packages / "here.pth").write_text("\n".join(paths) + "\n")
    scripts = importlib.metadata.entry_points(group="console_scripts")
    for name in PROGRAMS:
        module, _, function = scripts[name].value.partition(":")
        text = f"#!{folder}/bin/python\nimport sys\nfrom {module} import {function} as main\n"
        (folder / "bin" / name).write_text(f"{text}sys.exit(main())\n")
        (folder / "bin" / name).chmod(0o755)
    probe = [str(folder / "bin/rarefed-client"), "--help"]
    if _as(COURIER, *probe).returncode:
        pytest.skip(f"{COURIER} cannot read {paths}")
    return folder / "bin"


def _is_for_all(python: Path) -> bool:
    code = f"import sys, venv; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"
    return python.exists() and _as(COURIER, str(python), "-c", code).returncode == 0


def _as(user: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = ["setpriv", "--reuid", user, "--regid", GROUP, "--clear-groups", "env", *words]
    return subprocess.run(command, cwd="/", capture_output=True, check=False)


@pytest.fixture(scope="module")
def hospital(
    open_folder: Path, programs: Path, deployed: Deployment, config: ServerConfig
) -> Iterator[Hospital]:
    """A hospital that has joined and approved a study, with its two halves running."""
    folder, data = open_folder / "site", open_folder / "data"
    _write_data(data)
    for name, mode in (("", 0o711), ("state", 0o700), ("courier", 0o700)):
        (folder / name).mkdir(mode=mode)
        (folder / name).chmod(mode)
    shutil.chown(folder / "state", VAULT)
    shutil.chown(folder / "courier", COURIER)
    lines = [f'name = "{SITE}"', "threads = 1", f'socket_group = "{GROUP}"']
    lines += ["[limits]", f"max_order_mb = {MAX_ORDER_MB}"]
    lines += ["[data.ct]", 'manifest = "../data/labels.csv"']
    (folder / "site.toml").write_text("\n".join(lines) + "\n")
    study_file = open_folder / "study.toml"
    study_file.write_text(_study_text("agreed"))
    deployed.enrol(folder)
    deployed.approve(folder, study_file)
    command = [str(programs / "rarefed-client"), "start", str(folder)]
    users = ["--vault-user", VAULT, "--courier-user", COURIER]
    env = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "SECRET_OF_ROOT": PATIENT}
    with (open_folder / "start.log").open("wb") as log:
        process = subprocess.Popen([*command, *users], env=env, cwd="/", stdout=log, stderr=log)
    made = Hospital(folder, data, SiteConfig.load(folder), Study.load(study_file), process)
    try:
        wait_until(lambda: _is_up(made, config), 90, "the hospital")
        yield made
    except ServiceError as error:
        raise AssertionError(f"{error}\n{_logs(open_folder)}") from error
    finally:
        process.terminate()
        process.wait(60)


def _is_up(hospital: Hospital, config: ServerConfig) -> bool:
    assert hospital.process.poll() is None, (hospital.folder.parent / "start.log").read_text()
    online = {node.name for node in flower.list_nodes(config) if node.status == "online"}
    return SITE in online and hospital.config.socket.is_socket()


def _logs(folder: Path) -> str:
    files = [file for file in folder.rglob("*.log") if "installed" not in file.parts]
    return "\n".join(f"{file}:\n{file.read_text()[-2000:]}" for file in files)


def _write_data(data: Path) -> None:
    (data / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["path,label,patient_id,split"]
    for patient in range(8):
        split = ("train", "train", "validation", "test")[patient // 2]
        name = f"images/scan_{patient}_0.png"
        pixels = rng.integers(0, 200, (36, 36)).astype(np.uint8)
        Image.fromarray(pixels).save(data / name)
        rows.append(f"{name},{('well', 'gaucher')[patient % 2]},{PATIENT}-{patient},{split}")
    (data / "labels.csv").write_text("\n".join(rows) + "\n")
    for path in [data, *data.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
        shutil.chown(path, VAULT)


def _study_text(name: str) -> str:
    return f"""
name = "{name}"
rounds = 2
[backbone]
name = "test_resnet"
weights = "none"
image_size = 32
[tasks.ct]
modality = "CT"
classes = ["well", "gaucher"]
positive = "gaucher"
"""


def _body(order: Order, folder: Path, key: Ed25519PrivateKey | None, site: str = SITE) -> bytes:
    """Return an order as the courier hands it in."""
    record = order_to_record(order)
    if key is not None:
        Sealer(key).seal(record, site)
    return _packed(record, folder)


def _packed(record: RecordDict, folder: Path) -> bytes:
    write_body(record, folder / "body")
    return (folder / "body").read_bytes()


def _training(study: Study, number: int) -> Order:
    """Return an order to train the study's own first network."""
    model = build_model(study)
    layout = layout_of(model, study)
    base = take(model, layout.sent_once)
    groups = {name: take(model, layout.groups[name]) for name in layout.groups_of(study.tasks)}
    return Order("train", study, number, groups, digest(base), base)


def _answer(hospital: Hospital, config: ServerConfig, number: int) -> Reply:
    """Let the vault follow a genuine order, and return its reply."""
    folder, key = hospital.folder.parent, load_order_key(config.order_key.read_bytes())
    body = _body(_training(hospital.study, number), folder, key)
    transport = httpx.HTTPTransport(uds=str(hospital.config.socket), retries=3)
    with httpx.Client(transport=transport, timeout=120) as client:
        answer = client.post("http://vault/order", content=body)
    assert answer.status_code == 200
    (folder / "reply").write_bytes(answer.content)
    return reply_from_record(read_body(folder / "reply"))


def _bodies(study: Study, order_key: Ed25519PrivateKey, folder: Path) -> dict[str, bytes]:
    """Return bodies that the vault must not follow; the first four are orders of another's."""
    order = Order("check", study, 0, {}, "", None)
    stranger = Study.parse(study.model_dump(mode="json") | {"name": "unknown"})
    changed = order_to_record(order)
    Sealer(order_key).seal(changed, SITE)
    head = changed["order"]
    assert isinstance(head, ConfigRecord)
    head["round"] = 1
    deep = json.dumps({"__metadata__": {"body": "[" * 50_000}}).encode()
    return {
        "no seal": _body(order, folder, None),
        "another key": _body(order, folder, Ed25519PrivateKey.generate()),
        "another site": _body(order, folder, order_key, "elsewhere"),
        "changed": _packed(changed, folder),
        "not approved": _body(Order("check", stranger, 0, {}, "", None), folder, order_key),
        "empty": b"",
        "garbage": os.urandom(1000),
        "a program": b"\x80\x04cposix\nsystem\n(S'id'\ntR.",
        "deep": len(deep).to_bytes(8, "little") + deep,
        "long header": (2**62).to_bytes(8, "little") + b"{}",
    }


@pytest.fixture(scope="module")
def before(hospital: Hospital, config: ServerConfig) -> dict[Path, bytes]:
    """What the images and the vault's files were before the attack, and after one training."""
    assert _answer(hospital, config, 1).refusal == ""
    return _contents(hospital)


def _contents(hospital: Hospital) -> dict[Path, bytes]:
    folders = (hospital.data, hospital.config.state, hospital.config.socket.parent)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in [*files, hospital.folder / "site.toml"]}


@pytest.fixture(scope="module")
def loot(
    hospital: Hospital, before: dict[Path, bytes], config: ServerConfig, open_folder: Path
) -> Loot:
    """All that the hostile bundle brought home."""
    del before  # taken by now
    key = load_order_key(config.order_key.read_bytes())
    bodies = _bodies(hospital.study, key, open_folder)
    encoded = {name: base64.b64encode(body).decode() for name, body in bodies.items()}
    files = {
        "pyproject.toml": PROJECT.encode(),
        "client/__init__.py": b"",
        "client/app.py": (HERE / "hostile_client.py").read_bytes(),
        "client/bodies.json": json.dumps(encoded).encode(),
        "server/__init__.py": b"",
        "server/app.py": (HERE / "hostile_server.py").read_bytes(),
    }
    fab = build_fab_from_files(dict(files))[0]
    out = open_folder / "loot.json"
    run = flower.start_run(config, fab, {"site": SITE, "out": str(out)})
    wait_until(lambda: out.exists() or flower.run_status(config, run).ended, 150, "the loot")
    assert out.exists(), (config.logs / "superexec.log").read_text()[-3000:]
    found: dict[str, str] = json.loads(out.read_text())
    assert "error" not in found, found
    return {name: json.loads(text) for name, text in found.items()}


@pytest.fixture(scope="module")
def answered(
    hospital: Hospital, loot: Loot, config: ServerConfig
) -> tuple[Reply, dict[Path, bytes]]:
    """What a genuine order got after the attack, and the files before it."""
    del loot  # it is over by now
    after = _contents(hospital)
    return _answer(hospital, config, 2), after


@pytest.fixture(scope="module")
def audited(hospital: Hospital, answered: tuple[Reply, dict[Path, bytes]]) -> list[dict[str, Any]]:
    """The site's audit log after the hospital has stopped; its chain is verified."""
    del answered  # the vault was asked once more by now
    hospital.process.terminate()
    hospital.process.wait(60)
    return ChainedLog(hospital.config.state / "audit.jsonl").entries()


def _got(loot: Loot, start: str) -> dict[str, Any]:
    """Return what attempts of a kind got; there must be some of the kind."""
    kind = {name: found for name, found in loot.items() if name.startswith(start)}
    assert kind
    return {name: found["got"] for name, found in kind.items() if "got" in found}


@pytest.mark.parametrize("kind", ["read", "list", "write", "link", "make", "remove", "open"])
def test_no_file_is_open_to_it(loot: Loot, kind: str) -> None:
    """Images, tables, state, logs and what is root's: nothing is read, listed or changed.

    What every user may read is said in docs/hospital.md: ``site.toml``.
    """
    allowed = {"read site.toml"} if kind == "read" else set()
    assert set(_got(loot, f"{kind} ")) == allowed


def test_the_vaults_process_is_closed_to_it(loot: Loot) -> None:
    """It sees that the vault runs, and can neither look into it, nor trace it, nor end it."""
    words = [found["words"] for name, found in loot.items() if "words" in found]
    assert any("rarefed-client\0vault" in text for text in words)
    assert _got({name: one for name, one in loot.items() if "words" not in one}, "process ") == {}


def test_its_own_processes_know_nothing_of_roots(loot: Loot) -> None:
    """What root's shell had in its environment is in none of the courier's processes."""
    found = [base64.b64decode(text) for text in _got(loot, "own process ").values()]
    assert len(found) >= 3
    assert not [text for text in found if b"SECRET_OF_ROOT" in text]


def test_it_becomes_nobody_else(loot: Loot) -> None:
    """There is no way to another user, another group or a mount."""
    for start in ("become", "join groups", "mount", "su"):
        assert _got(loot, start) == {}


def test_the_installed_client_does_not_help_it(loot: Loot) -> None:
    """It can import the vault's code, and gets neither key, site, vault, nor data by it."""
    errors = {name: one.get("error") for name, one in loot.items() if name.startswith("import")}
    assert set(errors) == {
        *("import: site key", "import: site", "import: vault", "import: daemon"),
        *("import: approvals", "import: manifest", "import: site of its own"),
    }
    assert None not in errors.values(), loot


def test_the_socket_stays_the_vaults(loot: Loot, hospital: Hospital) -> None:
    """It can neither remove, move, replace nor open the socket, nor put another beside it."""
    assert _got(loot, "socket: ") == {}
    assert hospital.config.socket.stat().st_mode & 0o777 == 0o660
    assert list(hospital.config.socket.parent.iterdir()) == [hospital.config.socket]


def test_the_socket_answers_orders_alone(loot: Loot) -> None:
    """Whatever else is asked gets a number and no word."""
    answers = {name: base64.b64decode(text) for name, text in _got(loot, "ask: ").items()}
    assert len(answers) >= 20
    for name, answer in answers.items():
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head and "megabyte" in name:
            continue  # hung up on
        assert head.split(b" ", 2)[1] in (b"400", b"404", b"405"), (name, answer)
        assert body == b"", (name, answer)


def test_no_body_is_followed(loot: Loot, open_folder: Path) -> None:
    """A foreign order gets a code, what is no order a number, and neither a word."""
    answers = {
        name: base64.b64decode(text)
        for name, text in _got(loot, "body: ").items()
        if loot[name]["bytes"]
    }
    codes = {"no seal": "seal", "another key": "seal", "another site": "seal", "changed": "seal"}
    codes["not approved"] = "not_approved"
    for name, code in codes.items():
        head, _, body = answers.pop(f"body: {name}").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        (open_folder / "reply").write_bytes(body)
        reply = reply_from_record(read_body(open_folder / "reply"))
        assert (reply.refusal, reply.declaration) == (code, None)
    statuses = {name: answer.split(b" ", 2)[1:2] for name, answer in answers.items()}
    assert statuses.pop("body: announced too large") == [b"413"]
    assert statuses.pop("body: shorter than announced") in ([], [b"400"])
    assert set(map(tuple, statuses.values())) == {(b"400",)}
    bodies = {answer.partition(b"\r\n\r\n")[2] for answer in answers.values()}
    assert bodies <= {b"", b"0\r\n\r\n"}  # RFC 9112, 7.1: nothing, in chunks


def test_a_body_without_end_is_cut_off(loot: Loot) -> None:
    """No more is taken than the limit, but for what is under way between the processes."""
    taken = int(loot["body: without end"]["got"])
    assert 0 < taken < (MAX_ORDER_MB + 5) * 1_000_000


def test_a_flood_passes(loot: Loot) -> None:
    """After hundreds of connections and requests the socket answers as before."""
    assert base64.b64decode(loot["flood: afterwards"]["got"]).startswith(b"HTTP/1.1 404")


def test_nothing_private_is_in_the_loot(
    loot: Loot, hospital: Hospital, secrets_of: SecretsOf
) -> None:
    """No byte of an image, a table, a patient, a key or a log came home, however spelled."""
    secrets = [
        form
        for file, forms in secrets_of(hospital.folder).items()
        for form in forms
        if file.name == "site.key"
    ]
    assert secrets
    private = [PATIENT.encode(), b"patient_id", b"scan_", b"root:", *secrets]
    for file in hospital.data.rglob("*.png"):
        private += [file.read_bytes()[start : start + 24] for start in range(40, 400, 60)]
    for found in loot.values():
        text = str(found.get("got", found)).encode()
        texts = [text, base64.b64decode(text)] if found.get("bytes") else [text]
        assert not [part for part in private for text in texts if part in text], found


def test_nothing_was_changed(
    before: dict[Path, bytes], answered: tuple[Reply, dict[Path, bytes]]
) -> None:
    """The attack has left no file more or less; its logs alone have grown."""
    after = answered[1]
    assert set(after) == set(before)
    grown = {path.name for path, text in after.items() if text != before[path]}
    assert grown == {"audit.jsonl", "site.log"}
    assert all(text.startswith(before[path]) for path, text in after.items())


def test_a_genuine_order_is_answered_afterwards(
    hospital: Hospital, answered: tuple[Reply, dict[Path, bytes]]
) -> None:
    """The coordinator's sealed order of the approved study is followed as ever."""
    reply = answered[0]
    assert (reply.site, reply.digest, reply.refusal) == (SITE, hospital.study.digest(), "")
    assert reply.training is not None


def test_secrets_stay_at_the_hospital(
    hospital: Hospital,
    loot: Loot,
    deployed: Deployment,
    config: ServerConfig,
    secrets_of: SecretsOf,
    exposed: Exposed,
) -> None:
    """No secret of the hospital or the coordinator is in a log, an argument or open to others."""
    del loot  # all has run by now
    secrets = {**secrets_of(hospital.folder), **secrets_of(config.folder)}
    names = sorted(str(file.relative_to(file.parents[1])) for file in secrets)
    assert names == [
        *("coordinator/order.key", "coordinator/superexec.secret", "courier/node.key"),
        *("courier/superexec.secret", "state/site.key"),
    ]
    assert exposed(secrets, [hospital.folder, config.folder], hospital.process.pid) == []
    assert exposed(secrets, [], deployed.pid("coordinator", "daemon")) == []


def test_nothing_in_the_vault_fails(
    hospital: Hospital, answered: tuple[Reply, dict[Path, bytes]]
) -> None:
    """Nothing that was tried went further than a refusal: no log has a traceback."""
    del answered  # all has run by now
    for log in (hospital.config.state / "site.log", hospital.folder / "supervisor/vault.log"):
        assert "Traceback" not in log.read_text()


def test_the_audit_log_tells_of_it(audited: list[dict[str, Any]]) -> None:
    """Refused orders, rejected requests and the number of the rest stand in an unbroken chain."""
    refused = [entry["code"] for entry in audited if entry["event"] == "refused"]
    assert refused[:5] == ["seal"] * 4 + ["not_approved"]
    rejected = [entry for entry in audited if entry["event"] == "rejected"]
    assert {400, 404, 405, 413} <= {entry["status"] for entry in rejected}
    tried = {(entry.get("method"), entry.get("path")) for entry in rejected}
    assert {("GET", "/"), ("GET", "/status"), ("PUT", "/order"), ("POST", "/order")} <= tried
    assert sum(entry["lines"] for entry in audited if entry["event"] == "left_out") > 100
    assert audited[-1]["event"] == "stopped"
    assert [entry["kind"] for entry in audited if entry["event"] == "answered"] == ["train"] * 2
