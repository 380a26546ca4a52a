"""Laws of ``rarefed-sim`` as a program."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.run import read_summary

Program = Callable[..., tuple[int, str, str]]
SCRIPT = Path(sys.executable).with_name("rarefed-sim")
COMMANDS = ("make", "deal", "run", "demo")


def process(*words: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed script as a shell would."""
    return subprocess.run(
        [SCRIPT, *map(str, words)],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "80", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
    )


def short(study_text: str) -> str:
    """Return the same study with a single round."""
    assert "rounds = 2" in study_text
    return study_text.replace("rounds = 2", "rounds = 1")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_gives_an_example(rarefed_sim: Program, command: str) -> None:
    """The help of a command succeeds and shows how it is called."""
    code, out, err = rarefed_sim(command, "--help")
    assert (code, err) == (0, "")
    assert f"Example: rarefed-sim {command}" in " ".join(out.split())


def test_without_a_command_it_says_what_there_is() -> None:
    """The bare program lists its commands and ends as wrong usage."""
    found = process()
    assert found.returncode == 2
    assert all(command in found.stdout + found.stderr for command in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "study.toml", "--hospitals", "h", "--out", "o", "--engine", "nothing"),
        ("run", "study.toml"),
        ("demo", "--weights", "nothing"),
        ("make", "hospitals", "--sites", "0"),
        ("nothing",),
    ],
)
def test_wrong_usage_ends_with_two(
    rarefed_sim: Program, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command line itself refuses is exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, out, err = rarefed_sim(*words)
    assert (code, out) == (2, "")
    assert "Usage: rarefed-sim" in err
    assert list(tmp_path.iterdir()) == []


def test_make_names_the_hospitals_it_made(
    rarefed_sim: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --json, the folders stand on stdout as JSON; it makes none a second time."""
    sizes = ("--sites", "2", "--patients", "4", "--images", "1")
    monkeypatch.chdir(tmp_path)
    code, out, _ = rarefed_sim("make", "h", *sizes, "--json")
    assert code == 0
    assert json.loads(out) == ["h/hospital-1", "h/hospital-2"]
    assert (tmp_path / "h" / "hospital-2" / "site.toml").is_file()
    code, out, err = rarefed_sim("make", "h", *sizes, "--json")
    assert (code, out) == (40, "")
    assert "Remedy:" in err


def test_deal_names_the_hospitals_it_made(
    rarefed_sim: Program, data_sets: Path, tmp_path: Path
) -> None:
    """The folders stand on stdout as JSON, numbered from --first."""
    words = ("--task", "spots", "--sites", "2", "--first", "7", "--skew", "size:1", "--json")
    code, out, _ = rarefed_sim("deal", data_sets / "spots", tmp_path, *words)
    assert code == 0
    assert json.loads(out) == [str(tmp_path / f"hospital-{number}") for number in (7, 8)]
    code, out, err = rarefed_sim("deal", data_sets / "nothing", tmp_path, *words)
    assert (code, out) == (21, "")
    assert "Remedy:" in err


def test_names_of_folders_are_printed_as_they_are(rarefed_sim: Program, tmp_path: Path) -> None:
    """Brackets are no markup, and a long path is not broken over lines."""
    out = tmp_path / ("long" * 20) / "[red]"
    code, text, _ = rarefed_sim("make", out, "--sites", "1", "--patients", "4", "--images", "1")
    assert code == 0
    assert text == f"made {out}/hospital-1\n"


def test_run_writes_json_alone_to_stdout(small: Path, study_text: str, tmp_path: Path) -> None:
    """With --json, stdout is the summary and nothing else, and the same as in the file."""
    (tmp_path / "study.toml").write_text(short(study_text))
    words = ("study.toml", "--hospitals", small, "--out", "run", "--threads", "1", "--json")
    found = process("run", *words, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert json.loads(found.stdout) == read_summary(tmp_path / "run")


def test_run_prints_tables(
    rarefed_sim: Program, small: Path, study_text: str, tmp_path: Path
) -> None:
    """Without --json, a person gets tables, what was done to normalisation, and the files."""
    (tmp_path / "study.toml").write_text(short(study_text))
    out = tmp_path / "[b]run"
    words = ("--hospitals", small, "--out", out, "--threads", "1", "--yardsticks")
    code, text, err = rarefed_sim("run", tmp_path / "study.toml", *words)
    assert (code, err) == (0, "")
    for word in ("federated", "pooled data", "at hospital-4", "normalisation: average", str(out)):
        assert word in text


def test_an_earlier_run_is_not_overwritten(
    rarefed_sim: Program, finished: Path, study_text: str, tmp_path: Path
) -> None:
    """The same --out twice is exit code 40, and the first results stay."""
    (tmp_path / "study.toml").write_text(study_text)
    before = (finished / "summary.json").read_bytes()
    words = ("--hospitals", finished.parent / "hospitals", "--out", finished)
    code, out, err = rarefed_sim("run", tmp_path / "study.toml", *words)
    assert (code, out) == (40, "")
    assert "another --out" in " ".join(err.split())
    assert (finished / "summary.json").read_bytes() == before
