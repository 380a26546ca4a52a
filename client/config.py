"""What a hospital says about itself: its data, its machine and its own limits. Never sent.

The file ``site.toml`` stands in the hospital's folder; relative paths in it count from there.
"""

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from common.errors import DataError, MissingFolderError
from common.faults import Fault
from common.files import read_toml, write_atomic
from common.study import Slug
from common.study_faults import validated

SITE_FILE = "site.toml"
KEY_BYTES = 32
_READABLE = "Let the user who runs the client read it."

FindingCode = Annotated[str, Field(pattern=r"^[a-z_]{3,40}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TaskFiles(_Section):
    """Where the images of one task are."""

    manifest: Path
    """The table of images and labels."""
    label: Annotated[str, Field(min_length=1, max_length=100)] = "label"
    """The column that holds this task's labels, so that one table may serve several tasks."""
    patients: Literal["column", "each_image"] = "column"
    """Where patients are known from: the column ``patient_id``; or nothing is known, and each
    image counts as a patient of its own, which the declaration then says."""
    accept: list[FindingCode] = []
    """Findings of the check, by code, that the hospital has looked at and lives with."""


class Limits(_Section):
    """What the hospital insists on; a limit only tightens what a study asks."""

    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of a task's rows that may have errors before the site refuses to take part."""
    extra_rounds: Annotated[int, Field(ge=0, le=100_000)] = 5
    """Trainings of one study that the site allows beyond the study's own number of rounds, for
    rounds that had to be redone."""
    max_order_mb: Annotated[int, Field(ge=1, le=1024 * 1024)] = 4096
    """The largest order that the vault takes, in megabytes (10^6 bytes)."""
    require_privacy: bool = False
    """Train only for studies with differential privacy."""
    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """What all studies together may ever cost one patient, in epsilon at the site's delta."""
    study_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """What one study may cost one patient, where the study itself allows more."""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The delta of every epsilon here, where a study allows more; left out, 1 / patients^1.1."""
    minimum_patients: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Patients that must stand behind each figure that leaves; others are suppressed."""
    histogram_patients: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Patients that each non-empty bin of a histogram must hold; bins are merged until they do."""
    max_reply_mb: Annotated[int, Field(ge=1, le=1024 * 1024)] = 4096
    """The most that one reply may carry away, in megabytes (10^6 bytes)."""
    max_cache_mb: Annotated[int, Field(ge=0, le=1024 * 1024)] = 20_480
    """What prepared images may take on the disk, in megabytes (10^6 bytes); 0 keeps none."""
    patients: Literal["exact", "rounded"] = "exact"
    """How the site states its numbers of patients and images: as they are, or rounded to fives."""
    attention: Literal["keep", "report"] = "keep"
    """Whether means of where the network looks may leave where a study asks for them."""


class SiteConfig(_Section):
    """One hospital, as its own engineer describes it."""

    name: Slug
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")] = "cpu"
    """Where torch computes; ``auto`` is CUDA when it is there."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads of torch; 0 leaves torch's own choice."""
    state: Path = Path("state")
    """The vault's folder, of what must survive a restart: the site's key, ledger and logs."""
    cache: Path | None = None
    """Where prepared images are kept; left out, in the folder ``cache`` of ``state``."""
    readers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Processes that read images; left out, one for each core, up to 8. With 0 the vault reads them
    itself, and a file that crashes its decoder ends the vault."""
    socket: Path = Path("run/vault.sock")
    """Where the vault listens for its courier."""
    socket_group: Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?$")] = ""
    """Group whose members may speak to the vault; left empty, only its own user may."""
    courier: Path = Path("courier")
    """The courier's folder, of its key to the coordinator and its logs."""
    data: Annotated[dict[Slug, TaskFiles], Field(min_length=1)]
    """The tasks that the site has images for, by the study's names."""
    limits: Limits = Limits()

    @classmethod
    def load(cls, folder_or_file: Path) -> Self:
        """Read a site's configuration and make its paths absolute.

        Args:
            folder_or_file: The hospital's folder, or the TOML file itself.

        Raises:
            MissingFolderError: The folder or the file does not exist.
            DataError: The file is no TOML, or lists every fault with its remedy.
        """
        file = _site_file(folder_or_file)
        config, faults = validated(cls, read_toml(file, DataError, remedy=_READABLE))
        if config is None or faults:
            raise _refusal(file, faults)
        folder = file.parent
        data = {
            task: files.model_copy(update={"manifest": folder / files.manifest})
            for task, files in config.data.items()
        }
        named = [
            n for n in ("state", "cache", "socket", "courier") if getattr(config, n) is not None
        ]
        paths = {name: folder / getattr(config, name) for name in named}
        return config.model_copy(update={**paths, "data": data})

    @property
    def cache_folder(self) -> Path:
        """The folder of prepared images."""
        return self.cache or self.state / "cache"

    @property
    def key_file(self) -> Path:
        """The file of the site's key."""
        return self.state / "site.key"


def site_key(config: SiteConfig) -> bytes:
    """Return the key behind patient hashes and splits, and make it when there is none yet.

    The key must outlive every study: with another one, patients who were held out for testing
    would be dealt into training.

    Returns:
        32 bytes.

    Raises:
        DataError: The file cannot be read or made, may be read by others than its owner, or is
            malformed.
    """
    try:
        if not config.key_file.exists():
            _make_key(config.key_file)
        return _read_key(config.key_file)
    except OSError as error:
        raise DataError(
            f"Cannot keep the site's key in {config.key_file}: {error.strerror}.",
            remedy="Let the user who runs the client write to the folder 'state' of site.toml.",
        ) from error


def _make_key(file: Path) -> None:
    """Write a new key, unless another process is faster."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    write_atomic(own, secrets.token_bytes(KEY_BYTES).hex().encode() + b"\n", mode=0o600)
    try:
        os.link(own, file)  # unlike a rename, this never replaces a key
    except FileExistsError:
        pass
    finally:
        own.unlink()


def _read_key(file: Path) -> bytes:
    with file.open("rb") as opened:
        mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
        content = opened.read(1024)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise DataError(
            f"The site's key {file} is open to other users (mode {mode:03o}).",
            remedy=f"Run: chmod 600 {file}",
        )
    if not re.fullmatch(rb"[0-9a-f]{%d}\s*" % (2 * KEY_BYTES), content):
        raise DataError(
            f"The site's key {file} is not {2 * KEY_BYTES} hexadecimal digits.",
            remedy="Restore it from a backup. Without one, delete it: a new key deals the "
            "patients anew, so let no model trained before be tested here again.",
        )
    return bytes.fromhex(content.decode())


def _site_file(folder_or_file: Path) -> Path:
    path = folder_or_file.absolute()
    file = path / SITE_FILE if path.is_dir() else path
    if not file.is_file():
        raise MissingFolderError(
            f"There is no {file}.",
            remedy=f"Give the hospital's folder, or the path of its {SITE_FILE}.",
        )
    return file


def _refusal(file: Path, faults: list[Fault]) -> DataError:
    lines = [f"  - {fault}" for fault in faults]
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return DataError(f"{file} has {count}:\n" + "\n".join(lines), remedy="Correct each of them.")
