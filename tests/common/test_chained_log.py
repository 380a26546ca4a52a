"""Laws of a log whose lines follow from one another."""

import hashlib
import json
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.chained_log import FIRST, ChainedLog, Head
from common.errors import ChainError


@pytest.fixture
def log(tmp_path: Path) -> ChainedLog:
    return ChainedLog(tmp_path / "state/log.jsonl")


def filled(log: ChainedLog, count: int = 4) -> list[str]:
    for number in range(count):
        log.append({"event": "entry", "number": number, "text": "Zürich\n"})
    return log.path.read_text().splitlines(keepends=True)


def test_entries_come_back_in_order(log: ChainedLog) -> None:
    """What was appended is returned with its time; no file is an empty log."""
    assert log.entries() == []
    filled(log)
    entries = ChainedLog(log.path).entries()
    assert [entry["number"] for entry in entries] == [0, 1, 2, 3]
    assert entries[0]["text"] == "Zürich\n"
    assert entries[0]["at"].endswith("+00:00")


def test_each_line_names_the_one_before(log: ChainedLog) -> None:
    """The hashes are those of a sum by hand."""
    previous = FIRST
    for line in filled(log):
        entry = json.loads(line)
        assert entry["previous"] == previous
        previous = entry.pop("hash")
        text = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        assert hashlib.sha256(text).hexdigest() == previous


def test_the_file_is_the_owners_own(log: ChainedLog) -> None:
    """Nobody else may read it."""
    filled(log)
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_a_changed_line_is_named(log: ChainedLog) -> None:
    """A value changed, a line removed, swapped, doubled or foreign: the first wrong line shows."""
    lines = filled(log)
    wrong = {
        2: [lines[0], lines[1].replace('"number": 1', '"number": 9'), *lines[2:]],
        1: lines[1:],
        3: [*lines[:2], lines[3], lines[2]],
        4: [*lines[:3], lines[2]],
        5: [*lines, "{}\n"],
    }
    for number, text in wrong.items():
        log.path.write_text("".join(text))
        with pytest.raises(ChainError, match=f"line {number} ") as refusal:
            log.entries()
        assert refusal.value.remedy


@pytest.mark.parametrize("line", ["\n", "[]\n", "null\n", "nonsense\n", "[" * 9999 + "\n"])
def test_nothing_is_added_to_a_damaged_end(log: ChainedLog, line: str) -> None:
    """Where the last line is not as it was written, the log takes no more."""
    filled(log)
    log.path.write_text(log.path.read_text() + line)
    before = log.path.read_bytes()
    with pytest.raises(ChainError, match="last line"):
        log.append({"event": "more"})
    with pytest.raises(ChainError, match="last line"):
        log.repair()
    assert log.path.read_bytes() == before


def test_a_torn_line_is_set_aside(log: ChainedLog) -> None:
    """Cut anywhere, the last line is reported, kept beside the log and noted in it."""
    lines = filled(log, 3)
    whole = "".join(lines[:2]).encode()
    last = lines[2].encode()
    for count, cut in enumerate((1, len(last) // 2, len(last) - 1), start=1):
        log.path.write_bytes(whole + last[:cut])
        with pytest.raises(ChainError, match="line 3 is torn"):
            log.entries()
        log.append({"event": "after"})
        entries = log.entries()
        assert [entry["event"] for entry in entries] == ["entry", "entry", "torn", "after"]
        aside = log.path.with_name(entries[2]["file"])
        assert aside.name == f"log.jsonl.torn-{count}"
        assert aside.read_bytes() == last[:cut]
        assert entries[2]["sha256"] == hashlib.sha256(last[:cut]).hexdigest()


def test_a_log_that_is_torn_in_its_first_line_begins_anew(log: ChainedLog) -> None:
    """The entry about what was torn is then the first; a repair alone writes it too."""
    log.path.parent.mkdir()
    log.path.write_bytes(b'{"at": "' + b"x" * 300_000)
    log.repair()
    assert [entry["event"] for entry in log.entries()] == ["torn"]
    log.repair()
    assert len(log.entries()) == 1


def test_long_lines_are_found_from_the_end(log: ChainedLog) -> None:
    """A line longer than what is read at once is a line like any."""
    for number in range(3):
        log.append({"number": number, "text": "x" * 150_000})
    assert [entry["number"] for entry in log.entries()] == [0, 1, 2]


def test_writers_do_not_meet(log: ChainedLog) -> None:
    """Threads, and a second process, write at once, and every line is there in one chain."""
    more = "import sys, pathlib, common.chained_log as c\n"
    more += "log = c.ChainedLog(pathlib.Path(sys.argv[1]))\n"
    more += "for number in range(20): log.append({'number': number})\n"
    with subprocess.Popen([sys.executable, "-c", more, str(log.path)]) as process:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: log.append({"number": number}), range(40)))
        assert process.wait(timeout=60) == 0
    numbers = [entry["number"] for entry in log.entries()]
    assert sorted(numbers) == sorted([*range(20), *range(40)])


def test_a_writer_killed_at_any_time_leaves_a_log_that_goes_on(log: ChainedLog) -> None:
    """After kill -9 there is at most one torn line, and the next entry deals with it."""
    more = "import sys, pathlib, itertools, common.chained_log as c\n"
    more += "log = c.ChainedLog(pathlib.Path(sys.argv[1]))\n"
    more += "log.append({'number': 0}); print('ready', flush=True)\n"
    more += "for number in itertools.count(1): log.append({'number': number})\n"
    command = [sys.executable, "-c", more, str(log.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    log.append({"number": -1})
    numbers = [entry["number"] for entry in log.entries() if "number" in entry]
    assert numbers == [*range(len(numbers) - 1), -1]


def test_the_logs_own_names_are_taken(log: ChainedLog) -> None:
    """A value may not pose as the time or a hash; nor may it be what JSON lacks."""
    for values in ({"at": 1}, {"previous": ""}, {"hash": ""}, {"x": float("nan")}):
        with pytest.raises(ValueError, match=r"."):
            log.append(values)
    assert log.entries() == []


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_lock_falls_with_the_process(log: ChainedLog) -> None:
    """No descriptor stays open behind an entry."""
    filled(log, 1)
    before = descriptors()
    filled(log, 5)
    log.entries()
    assert descriptors() == before


def test_an_entry_is_known_by_its_hash(tmp_path: Path) -> None:
    """What appending returns is the hash that the line bears."""
    log = ChainedLog(tmp_path / "log.jsonl")
    hashes = [log.append({"number": number}) for number in range(3)]
    assert hashes == [entry["hash"] for entry in log.entries()]


# Heads


def test_the_head_is_the_number_of_lines_and_the_last_hash(log: ChainedLog) -> None:
    """Whoever has written them, and without a line that was torn."""
    assert log.head() == (0, FIRST)
    filled(log, 2)
    ChainedLog(log.path).append({"event": "entry", "text": "x" * 3_000_000})
    assert log.head() == (3, log.entries()[-1]["hash"])
    whole = log.head()
    with log.path.open("ab") as file:
        file.write(b'{"at": "20')
    assert log.head() == whole
    log.append({"event": "entry"})  # behind the line that tells of the torn one
    assert log.head() == (5, log.entries()[-1]["hash"])


def test_a_log_holds_the_heads_that_it_had(log: ChainedLog) -> None:
    """Each head at its time is held for ever, and no other."""
    heads = [log.head()]
    for number in range(4):
        log.append({"number": number})
        heads.append(log.head())
    assert all(log.holds(head) for head in heads)
    for wrong in (Head(0, heads[1].head), Head(1, heads[2].head), Head(1, FIRST), Head(5, FIRST)):
        assert not log.holds(wrong)
    assert not ChainedLog(log.path.with_name("other")).holds(heads[1])
    assert ChainedLog(log.path.with_name("other")).holds(heads[0])


def test_a_line_that_is_not_as_it_was_written_holds_nothing(log: ChainedLog) -> None:
    """Neither a changed line nor one whose end is missing, although the hash stands in it."""
    lines = filled(log, 2)
    head = log.head()
    log.path.write_text(lines[0] + lines[1].replace('"number": 1', '"number": 9'))
    assert not log.holds(head)
    with pytest.raises(ChainError, match="last line"):
        log.head()
    log.path.write_text(lines[0] + lines[1].rstrip())
    assert not log.holds(head)
