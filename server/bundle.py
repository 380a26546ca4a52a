"""The app bundle (Flower's FAB) that a study travels in: both apps and what they import, no more.

Every site gets all of it and runs ``client/app.py`` as its courier, so it holds nothing of the
hospital's side but that one file.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from flwr.cli.build import build_fab_from_files

from common.versions import software_version

APPS = ("client.app", "server.app")
ROOMS = ("client", "common", "server", "simulations")
ROOT = Path(__file__).resolve().parent.parent

_PROJECT = """
[project]
name = "rarefed"
version = "{version}"
description = "The courier and the rounds of rarefed"
license = "Apache-2.0"
dependencies = ["flwr==1.41.0"]

[tool.flwr.app]
publisher = "rarefed"
fab-include = [{include}]

[tool.flwr.app.components]
clientapp = "client.app:app"
serverapp = "server.app:app"

[tool.flwr.app.config]
study-id = ""
"""


def build_bundle() -> bytes:
    """Return the bundle; the same sources give the same bytes.

    Raises:
        ValueError: Flower refuses what is in it.
    """
    files = bundle_files()
    include = ", ".join(f'"/{name}"' for name in files)
    version = software_version().partition("+")[0]
    version = "0.0.0" if version == "unknown" else version
    project = _PROJECT.format(version=version, include=include).encode()
    contents: dict[str, bytes | Path] = {name: ROOT / name for name in files}
    return build_fab_from_files({**contents, "pyproject.toml": project})[0]


def bundle_files() -> list[str]:
    """Return the bundled sources, relative to the root: what the two apps import, and it in turn.

    Imports inside functions count as well.
    """
    found: set[str] = set()
    waiting = list(APPS)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _imports(module)
    return sorted(str(_source(module).relative_to(ROOT)) for module in found)


def _imports(module: str) -> Iterator[str]:
    """Yield what a module imports of our rooms, and the packages that hold it."""
    for node in ast.walk(ast.parse(_source(module).read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield from _modules_on_the_way(name)
    yield from _modules_on_the_way(module)


def _modules_on_the_way(name: str) -> Iterator[str]:
    """Yield ``a``, ``a.b`` and so on, as far as they are modules of our rooms."""
    parts = name.split(".")
    if parts[0] in ROOMS:
        paths = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        yield from (path for path in paths if _source(path).is_file())


def _source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
