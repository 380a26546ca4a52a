"""Laws of the bundle: it holds what its two apps import, all of it and nothing else."""

import io
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from server.bundle import ROOT, build_bundle, bundle_files

IMPORTED = """
import json, sys
sys.path.insert(0, sys.argv[1])
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in repr(one).lower()]
sys.path[:] = [one for one in sys.path if one != sys.argv[2]]
for module in sys.argv[3:]:
    __import__(module)
print(json.dumps({
    name: getattr(module, "__file__", None)
    for name, module in sys.modules.items()
    if name.split(".")[0] in ("client", "common", "server", "simulations")
}))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    with zipfile.ZipFile(io.BytesIO(build_bundle())) as file:
        file.extractall(folder)
    return folder


def imported(unpacked: Path, *modules: str) -> dict[str, str]:
    """Import modules where only the bundle is found; return files by module of our rooms."""
    argv = [sys.executable, "-c", IMPORTED, str(unpacked), str(ROOT), *modules]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(argv, cwd=unpacked, env=env, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    found: dict[str, str] = json.loads(result.stdout)
    return found


def test_the_bundle_is_what_its_apps_import(unpacked: Path) -> None:
    """Both apps can be imported from the bundle alone, and every source in it is imported."""
    found = imported(unpacked, "server.app", "client.app")
    files = {str(Path(file).relative_to(unpacked)) for file in found.values()}
    bundled = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*.py")}
    assert files == bundled == set(bundle_files())


def test_the_courier_imports_neither_torch_nor_data(unpacked: Path) -> None:
    """The site's app imports little of ours: nothing of the vault, the server or the models."""
    found = imported(unpacked, "client.app")
    assert not [name for name in found if name.startswith(("server", "simulations"))]
    assert {name for name in found if name.startswith("client")} == {"client", "client.app"}
    assert not {"common/models.py", "common/weights.py"} & set(bundle_files())


def test_nothing_of_the_hospital_but_the_courier_travels() -> None:
    """Of the client's room the bundle holds the courier and the package's own file."""
    files = [name for name in bundle_files() if name.startswith("client/")]
    assert files == ["client/__init__.py", "client/app.py"]
    assert not [name for name in bundle_files() if name.startswith("simulations/")]


def test_sources_travel_unchanged(unpacked: Path) -> None:
    """Every source in the bundle is the installed one, byte for byte."""
    for name in bundle_files():
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_bundle_is_the_same_each_time() -> None:
    """The same sources give the same bytes, so that a site unpacks a bundle once."""
    assert build_bundle() == build_bundle()


def test_the_bundle_says_what_flower_needs(unpacked: Path) -> None:
    """Its configuration names both apps, and the one key that a run sets."""
    project = tomllib.loads((unpacked / "pyproject.toml").read_text())
    app = project["tool"]["flwr"]["app"]
    assert app["components"] == {"clientapp": "client.app:app", "serverapp": "server.app:app"}
    assert app["config"] == {"study-id": ""}
    assert app["fab-include"] == [f"/{name}" for name in bundle_files()]
