"""Laws of the site's own log."""

import stat
from collections.abc import Callable

import pytest

from client import site_log
from client.config import SiteConfig
from client.site_log import open_log
from common.errors import DataError

MakeHospital = Callable[..., SiteConfig]


def test_a_log_has_a_largest_size(
    make_hospital: MakeHospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever makes it grow, there are two files of bounded size, for the owner alone to read."""
    monkeypatch.setattr(site_log, "MAX_LOG_BYTES", 1000)
    config = make_hospital()
    log = open_log(config)
    for number in range(100):
        log.error("order %d refused", number)
    files = sorted(config.state.iterdir())
    assert [path.name for path in files] == ["site.log", "site.log.1"]
    assert all(path.stat().st_size <= 1000 for path in files)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert "order 99 refused" in files[0].read_text()


def test_there_is_one_log_of_a_site(make_hospital: MakeHospital) -> None:
    """Opened twice, it has each line once."""
    config = make_hospital()
    for _ in range(2):
        open_log(config).error("once")
    assert (config.state / "site.log").read_text().count("once") == 2


def test_a_log_that_cannot_be_kept_is_told(make_hospital: MakeHospital) -> None:
    """A state folder that is none is refused with a remedy."""
    config = make_hospital()
    config.state.write_text("no folder")
    with pytest.raises(DataError, match="log") as refusal:
        open_log(config)
    assert "state" in refusal.value.remedy
