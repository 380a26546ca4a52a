"""Laws of a hospital's own configuration and key."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client.config import SiteConfig, site_key
from common.errors import DataError, MissingFolderError

TEXT = """
name = "hospital-1"
device = "cuda:0"
threads = 2
state = "kept/state"
[data.gaucher]
manifest = "gaucher/labels.csv"
[data.nf1]
manifest = "/elsewhere/labels.csv"
[limits]
max_unreadable = 0.25
"""


def write(folder: Path, text: str = TEXT) -> Path:
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return folder


def test_paths_count_from_the_file(tmp_path: Path) -> None:
    """Relative paths become absolute from the TOML file's folder; absolute ones stay."""
    config = SiteConfig.load(write(tmp_path))
    assert config.name == "hospital-1"
    assert (config.device, config.threads, config.limits.max_unreadable) == ("cuda:0", 2, 0.25)
    assert config.state == tmp_path / "kept/state"
    assert config.key_file == tmp_path / "kept/state/site.key"
    assert config.data["gaucher"].manifest == tmp_path / "gaucher/labels.csv"
    assert config.data["nf1"].manifest == Path("/elsewhere/labels.csv")


def test_folder_and_file_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, its site.toml and a relative path to either give one configuration."""
    monkeypatch.chdir(write(tmp_path))
    expected = SiteConfig.load(tmp_path)
    assert expected.state.is_absolute()
    for path in (tmp_path / "site.toml", Path(), Path("site.toml")):
        assert SiteConfig.load(path) == expected


def test_defaults_need_only_a_name_and_a_task(tmp_path: Path) -> None:
    """A name and one manifest are enough; the rest has its documented default."""
    write(tmp_path, 'name = "a"\n[data.t]\nmanifest = "labels.csv"\n')
    config = SiteConfig.load(tmp_path)
    assert (config.device, config.threads, config.state) == ("cpu", 0, tmp_path / "state")
    assert config.limits.max_unreadable == 0.02
    assert config.limits.attention == "keep"


def test_a_tasks_table_may_be_told_how_to_be_read(tmp_path: Path) -> None:
    """Label column, patients and accepted findings have defaults, and refuse what is none."""
    start = 'name = "a"\n[data.t]\nmanifest = "labels.csv"\n'
    files = SiteConfig.load(write(tmp_path, start)).data["t"]
    assert (files.label, files.patients, files.accept) == ("label", "column", [])
    told = 'label = "dr"\npatients = "each_image"\naccept = ["shortcut", "near_duplicate"]\n'
    files = SiteConfig.load(write(tmp_path, start + told)).data["t"]
    assert (files.label, files.patients) == ("dr", "each_image")
    assert files.accept == ["shortcut", "near_duplicate"]
    wrong = 'label = ""\npatients = "none"\naccept = ["Shortcut", "x"]\n'
    with pytest.raises(DataError) as refusal:
        SiteConfig.load(write(tmp_path, start + wrong))
    for key in ("data.t.label", "data.t.patients", "data.t.accept.0", "data.t.accept.1"):
        assert key in refusal.value.message


def test_the_vaults_settings_have_defaults_and_absolute_paths(tmp_path: Path) -> None:
    """Socket and courier's folder count from the file's folder; limits are as documented."""
    write(tmp_path, 'name = "a"\n[data.t]\nmanifest = "labels.csv"\n')
    config = SiteConfig.load(tmp_path)
    assert config.socket == tmp_path / "run/vault.sock"
    assert config.courier == tmp_path / "courier"
    assert config.socket_group == ""
    assert (config.limits.extra_rounds, config.limits.max_order_mb) == (5, 4096)
    text = 'name = "a"\nsocket = "/run/v.sock"\nsocket_group = "rarefed"\ncourier = "c"\n'
    write(tmp_path, text + '[data.t]\nmanifest = "labels.csv"\n[limits]\nextra_rounds = 0\n')
    config = SiteConfig.load(tmp_path)
    assert (config.socket, config.courier) == (Path("/run/v.sock"), tmp_path / "c")
    assert (config.socket_group, config.limits.extra_rounds) == ("rarefed", 0)
    write(tmp_path, 'name = "a"\nsocket_group = "a b"\n[data.t]\nmanifest = "labels.csv"\n')
    with pytest.raises(DataError, match="socket_group"):
        SiteConfig.load(tmp_path)


def test_a_missing_folder_or_file_has_its_own_error(tmp_path: Path) -> None:
    """A folder without site.toml and a path that is not there are each a MissingFolderError."""
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.toml"):
        with pytest.raises(MissingFolderError, match="There is no"):
            SiteConfig.load(path)


def test_every_fault_is_listed_at_once(tmp_path: Path) -> None:
    """A file with six faults is refused once, with each key and a remedy."""
    write(
        tmp_path,
        """
name = "Hospital 1"
device = "gpu"
threads = -1
stat = "state"
[data.gaucher]
manifst = "labels.csv"
[limits]
max_unreadable = 1.5
""",
    )
    with pytest.raises(DataError) as refusal:
        SiteConfig.load(tmp_path)
    message = refusal.value.message
    for key in ("name", "device", "threads", "stat:", "data.gaucher.manif", "max_unreadable"):
        assert key in message
    assert "did you mean 'state'?" in message
    assert "did you mean 'manifest'?" in message
    assert refusal.value.remedy


@pytest.mark.parametrize("text", ["name = ", 'name = "a"\n[data]\n', 'name = "a"\ndata = 3\n', ""])
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    """Broken TOML, an empty file and a site without data are each a DataError."""
    with pytest.raises(DataError):
        SiteConfig.load(write(tmp_path, text))


def test_the_key_is_made_once_and_kept(tmp_path: Path) -> None:
    """The first call makes 32 random bytes for the owner alone; later calls return them."""
    config = SiteConfig.load(write(tmp_path))
    key = site_key(config)
    assert len(key) == 32
    assert site_key(config) == key
    assert config.key_file.read_text().strip() == key.hex()
    assert stat.S_IMODE(config.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.state.stat().st_mode) == 0o700
    assert list(config.state.iterdir()) == [config.key_file]


def test_two_sites_have_two_keys(tmp_path: Path) -> None:
    """Keys are random: no two hospitals share one."""
    keys = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        keys.add(site_key(SiteConfig.load(write(tmp_path / name))))
    assert len(keys) == 2


def test_processes_that_start_together_share_the_key(tmp_path: Path) -> None:
    """However many ask for the first key at once, all get the same one."""
    config = SiteConfig.load(write(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(site_key, [config] * 32))
    assert keys == {site_key(config)}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o666])
def test_an_open_key_is_refused(tmp_path: Path, mode: int) -> None:
    """A key that group or others may read or write is refused, with the command that helps."""
    config = SiteConfig.load(write(tmp_path))
    site_key(config)
    config.key_file.chmod(mode)
    with pytest.raises(DataError, match="open to other users") as refusal:
        site_key(config)
    assert "chmod 600" in refusal.value.remedy


@pytest.mark.parametrize("content", ["", "ab" * 31, "ab" * 33, "zz" * 32, "AB" * 32 + "\nx"])
def test_a_malformed_key_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    """A damaged key is refused, never replaced, and its digits are not printed."""
    config = SiteConfig.load(write(tmp_path))
    config.state.mkdir(parents=True)
    config.key_file.write_text(content)
    config.key_file.chmod(0o600)
    with pytest.raises(DataError, match="64 hexadecimal digits") as refusal:
        site_key(config)
    assert config.key_file.read_text() == content
    assert not content or content not in str(refusal.value)


def test_a_state_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """Where a file stands in place of the state folder, the refusal says so."""
    config = SiteConfig.load(write(tmp_path))
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(DataError, match="Cannot keep the site's key"):
        site_key(config)
