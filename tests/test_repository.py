"""Laws of the whole repository: no pickle, small files, docstrings, no mocks."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = [
    path
    for room in ("client", "common", "server", "simulations")
    for path in (ROOT / room).rglob("*.py")
]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
LONGEST_FILE = 350

# What the tests below forbid, and the only place where these names stand.
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MOCKS = {"mock", "pytest_mock", "unittest.mock"}
PICKLING_CALLS = {"torch.load", "torch.save", "pandas.read_pickle"}

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield each module that is imported, and each name from it in dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def public(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield public classes and functions, and the public methods of public classes."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield f"{owner}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{node.name}.")


def allows_pickle(call: ast.Call) -> bool:
    """Tell whether a call says anything of allow_pickle but that it is off."""
    return any(
        keyword.arg == "allow_pickle"
        and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
        for keyword in call.keywords
    )


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_nothing_is_pickled(path: Path) -> None:
    """No product file imports a pickler, loads or saves with torch, or lets NumPy unpickle."""
    tree = tree_of(path)
    names = set(imported(tree))
    assert not {name.split(".")[0] for name in names} & PICKLERS
    assert not names & PICKLING_CALLS
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in PICKLING_CALLS, f"line {node.lineno}"
            assert not allows_pickle(node), f"line {node.lineno}"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_files_stay_small(path: Path) -> None:
    """A file that grows beyond its size is two files."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_everything_public_is_described(path: Path) -> None:
    """Every product file and every public class, function and method has a docstring."""
    tree = tree_of(path)
    assert ast.get_docstring(tree)
    bare = [name for name, node in public(tree.body) if not ast.get_docstring(node)]
    assert bare == []


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_every_test_states_its_law(path: Path) -> None:
    """Every test has a docstring."""
    functions = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef)]
    tests = [node for node in functions if node.name.startswith("test_")]
    assert tests
    assert [node.name for node in tests if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_no_test_mocks(path: Path) -> None:
    """Tests run the real thing."""
    assert not set(imported(tree_of(path))) & MOCKS
