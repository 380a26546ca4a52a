"""Laws of the lock between processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ServiceError
from common.file_lock import locked

HOLD = """
import sys
from pathlib import Path
from common.file_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_waits_too_long_is_told_of_what(tmp_path: Path) -> None:
    """While another process holds the lock nobody else does; when that one dies, it is free."""
    file = tmp_path / "a.lock"
    words = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ServiceError, match=r"a\.lock"), locked(file, seconds=0.1):
            pytest.fail("two held it")
        holder.kill()
        holder.wait()
        with locked(file, seconds=0.0):
            assert file.stat().st_mode & 0o077 == 0
    with locked(file), pytest.raises(ServiceError), locked(file, seconds=0.0):
        pytest.fail("two held it")
