"""The documents name everything there is, with its default, and every link in them leads on."""

import dataclasses
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import typer
from pydantic import BaseModel

import client.cli
import server.cli
import simulations.cli
from client.config import SiteConfig
from client.manifest import FIXED_SPLITS
from client.manifest_columns import OPTIONAL, REQUIRED
from common import errors
from common.federation import OPTION_RANGES, STRATEGY_OPTIONS
from common.metrics import CALIBRATION_BINS, METRICS
from common.models import build_model
from common.ranking import BINS, LOGIT_LIMIT
from common.study import Study
from server.history import RoundRecord
from server.initial_weights import Start
from server.rounds import Outcome
from simulations import yardsticks
from simulations.federation import Played
from simulations.summary import summarise

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
APPS = {
    "rarefed-client": client.cli.app,
    "rarefed-server": server.cli.app,
    "rarefed-sim": simulations.cli.app,
}


def commands_of(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command below a group with its name, those of groups within it too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = [
    (program, name, command)
    for program, app in APPS.items()
    for name, command in commands_of(typer.main.get_command(app))
]
# In halves, since this file is looked through as well.
HALVES = ("py|pi", "python|hosted", "ana|conda", "download.py|torch", "npm|js", "cra|tes")
REGISTRIES = [name.replace("|", "") for name in HALVES]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of every table row."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def row_of(text: str, first: str) -> list[str]:
    found = [cells for cells in rows(text) if f"`{first}`" in cells[0]]
    assert found, f"no row for {first}"
    return found[0]


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Yield each key in dots, its default, and whether it is required; tables as well."""
    for name, field in model.model_fields.items():
        key, annotation = f"{prefix}{name}", field.annotation
        section = _section(annotation)
        plain = section is None and not field.is_required()
        default = field.get_default(call_default_factory=True) if plain else None
        yield key, default, field.is_required()
        if section is not None:
            several = get_origin(annotation) is dict
            inner = f"{key}.TASK." if several else f"{key}."
            yield from keys(section, inner)


def _section(annotation: Any) -> type[BaseModel] | None:
    parts = [annotation, *get_args(annotation)]
    models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    return models[0] if models else None


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of what is no table, by their placeholders."""
    if not isinstance(value, dict) or not value:
        yield prefix.removesuffix(".")
        return
    names = {"a-task": "TASK", "a-site": "SITE", "test": "SPLIT"} | dict.fromkeys(METRICS, "METRIC")
    for name, inner in value.items():
        yield from leaves(inner, f"{prefix}{names.get(name, name)}.")


@pytest.mark.parametrize(
    ("model", "name"), [(Study, "study.md"), (SiteConfig, "site.md")], ids=["study", "site"]
)
def test_every_key_has_a_row_with_its_default(model: type[BaseModel], name: str) -> None:
    """Every key of the file has a row in its page, and the default there is the code's."""
    for key, default, required in keys(model):
        shown = row_of(page(name), key)[2]
        if required:
            assert shown == "required", key
        elif default is None:
            assert shown in ("-", "all defaults"), key
        else:
            plain = str(default) if isinstance(default, Path) else default
            assert tomllib.loads(f"x = {shown.strip('`')}")["x"] == plain, key


@pytest.mark.parametrize(("model", "name"), [(Study, "study.md"), (SiteConfig, "site.md")])
def test_no_page_describes_a_key_that_is_gone(model: type[BaseModel], name: str) -> None:
    """Every dotted key in the tables of a page is a key of the file."""
    known = {key for key, _, _ in keys(model)}
    tables = {key.split(".")[0] for key in known if "." in key}
    for cells in rows(page(name)):
        found = re.fullmatch(r"`([a-z_]+(\.[A-Za-z_]+)+)`", cells[0])
        if found and found[1].split(".")[0] in tables:
            assert found[1] in known


@pytest.mark.parametrize("strategy", STRATEGY_OPTIONS)
def test_every_strategy_has_a_row_with_its_options(strategy: str) -> None:
    """A strategy's row gives each of its options with its default, and no others."""
    shown = row_of(page("study.md"), strategy)[1]
    found = {key: float(value) for key, value in re.findall(r"`(\w+) = ([^`]+)`", shown)}
    assert found == STRATEGY_OPTIONS[strategy]


@pytest.mark.parametrize("option", OPTION_RANGES)
def test_every_option_has_a_row_with_its_range(option: str) -> None:
    """An option's row gives its least value, and the one that it stays below."""
    _, least, below, meaning = row_of(page("study.md"), option)
    assert (float(least), float(below)) == OPTION_RANGES[option]
    assert meaning


def test_examples_of_files_are_valid() -> None:
    """Every complete study and site in a page is one that the software takes."""
    for text in map(Path.read_text, PAGES):
        for block in blocks(text, "toml"):
            values = tomllib.loads("\n".join(line.strip() for line in block.splitlines()))
            if "rounds" in values:
                Study.parse(values)
            elif "data" in values:
                SiteConfig.model_validate_json(json.dumps(values))


def test_every_manifest_column_is_described() -> None:
    """The columns that must be there, and those that may, have rows that say which they are."""
    for column in REQUIRED:
        assert row_of(page("site.md"), column)[1] == "yes"
    for column in OPTIONAL:
        assert row_of(page("site.md"), column)[1] == "no"
    assert all(f"`{split}`" in row_of(page("site.md"), "split")[2] for split in FIXED_SPLITS)


@pytest.mark.parametrize(
    "error",
    [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.RarefedError)
    ],
)
def test_every_error_has_a_row(error: type[errors.RarefedError]) -> None:
    """An error's row has its exit code, name, code, public words and a way out."""
    found = [cells for cells in rows(page("errors.md")) if cells[1] == f"`{error.__name__}`"]
    assert len(found) == 1
    exit_code, _, code, meaning, remedy = found[0]
    assert (exit_code, code) == (str(error.exit_code), f"`{error.code}`")
    assert meaning.startswith(error.public)
    assert remedy


def test_exit_codes_of_the_command_line_have_rows() -> None:
    """Success, wrong usage and interruption are described as well."""
    assert {"0", "2", "130"} <= {cells[0] for cells in rows(page("errors.md"))}


@pytest.mark.parametrize(
    ("program", "name", "command"), COMMANDS, ids=[f"{p} {n}" for p, n, _ in COMMANDS]
)
def test_every_command_and_option_has_its_place(program: str, name: str, command: Any) -> None:
    """A command has a section with an example, and a row for each option with its default."""
    heading = f"## `{program} {name}`\n"
    assert heading in page("commands.md")
    section = page("commands.md").split(heading)[1].split("\n## ")[0]
    assert any(f"{program} {name} " in block for block in blocks(section, ""))
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        for shown in parameter.opts if is_option else [parameter.name.upper()]:
            default = row_of(section, shown)[1]
            if parameter.required:
                assert default == "required", shown
            elif getattr(parameter, "is_flag", False):
                assert default == ("on" if parameter.default else "off"), shown
            elif parameter.default in ("", None):  # nothing, or made from other arguments
                assert re.fullmatch(r"[a-z' ]+", default), shown
            else:
                assert default == f"`{parameter.default}`", shown


def test_every_program_is_named() -> None:
    """Each program's name stands in the page of commands."""
    assert all(f"`{program}" in page("commands.md") for program in APPS)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_row_with_a_formula(metric: str) -> None:
    """Each metric has a row that says what it is of and how it is computed."""
    _, of, formula, _ = row_of(page("metrics.md"), metric)
    assert of in ("all", "class")
    assert formula


def test_histograms_are_described_as_they_are() -> None:
    """The numbers of bins, and where they end, are those of the code."""
    for number in (BINS, CALIBRATION_BINS, int(LOGIT_LIMIT)):
        assert re.search(rf"\b{number:,}\b", page("metrics.md")), number


def test_every_key_of_the_summary_is_described() -> None:
    """Each key that a summary has stands in its page, as do those of the yardsticks."""
    named = set(re.findall(r"`([^`\n]+)`", page("summary.md").split("## `history.jsonl`")[0]))
    found = set(leaves(_summary()))
    found = {"unreadable.SITE.TASK" if key.startswith("unreadable") else key for key in found}
    found = {"refused.SITE" if key.startswith("refused") else key for key in found}
    assert found <= named
    for name in ("alone", "ensemble", "pooled"):
        assert f'"{name}"' in Path(yardsticks.__file__).read_text(encoding="utf-8")
        assert f"yardsticks.{name}.TASK.METRIC" in named


def _summary() -> dict[str, Any]:
    study = Study.parse(
        {
            "name": "a-study",
            "rounds": 1,
            "backbone": {"name": "test_vit", "weights": "none", "image_size": 160},
            "tasks": {"a-task": {"modality": "CT", "classes": ["no", "yes"], "positive": "yes"}},
        }
    )
    measured = {**dict.fromkeys(METRICS, 0.5), "n_patients": 1, "n_images": 1}
    figures = {"test": {"pooled": measured, "per_site": {"a-site": measured}}}
    record = RoundRecord(2, 1, trained=False, tasks={"a-task": figures})
    record.bytes = {"a-site": {"down": 1, "up": 1}}
    start = Start(build_model(study), "none", ())
    played = Played(Outcome([], {"b-site": "data"}, [record]), start, "absent", 1.0, [])
    return summarise(study, played, engine="inline", yardsticks=None)


def test_every_key_of_the_history_is_described() -> None:
    """Each field of a round's record stands in the page."""
    part = page("summary.md").split("## `history.jsonl`")[1]
    named = {key.split(".")[0] for cells in rows(part) for key in re.findall(r"`(\w+)", cells[0])}
    assert {field.name for field in dataclasses.fields(RoundRecord)} <= named


@pytest.mark.parametrize("file", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(file: Path) -> None:
    """Every relative link names a file that exists, and a heading that is in it."""
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (file.parent / target).resolve() if target else file
        assert path.exists(), link
        if anchor:
            assert anchor in _anchors(path), link


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_every_bench_has_a_row() -> None:
    """Each module of the benches that can be run stands in their page."""
    for module in (ROOT / "simulations" / "benches").glob("[!_]*.py"):
        if "__main__" in module.read_text(encoding="utf-8"):
            assert row_of(page("benches.md"), module.stem)


@pytest.mark.parametrize("file", PAGES, ids=lambda path: path.name)
def test_paths_of_the_code_exist(file: Path) -> None:
    """A page names no file or folder of the code that is not there."""
    rooms = "client|common|server|simulations|tests|docs"
    text = file.read_text(encoding="utf-8")
    for path in re.findall(rf"`((?:{rooms})/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:\w+\.)*\w+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module


def test_make_commands_in_the_documents_are_targets() -> None:
    """What a page tells to make, the Makefile makes; the README tells of demo and test."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for file in PAGES:
        told = re.findall(r"(?:^|`) *make ([a-z-]+)(?=$|`)", file.read_text(), re.MULTILINE)
        assert set(told) <= targets, file.name
        if file.name == "README.md":
            assert {"demo", "test"} <= set(told)


def test_every_page_is_linked_from_the_readme() -> None:
    """Nobody has to look into the folder to find a page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.relative_to(ROOT)})" in readme for path in PAGES if path.parent != ROOT)


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is the machine's own setting."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is no git repository")
    names = "|".join(map(re.escape, REGISTRIES)).encode()
    hosts = re.compile(rb"(%s)\.(org|io|com)|--(extra-)?index[-]url|/simple[/]" % names)
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert [path for path in files if path.is_file() and hosts.search(path.read_bytes())] == []
