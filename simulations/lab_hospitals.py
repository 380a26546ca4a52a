"""The hospitals of a lab: found, made or dealt once, and the same for all its rows and seeds."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from client.config import SiteConfig
from common.errors import MissingFolderError
from common.files import canonical_json, write_table
from common.seeds import stream
from simulations import hospitals as makers
from simulations.dealing import LABELS, Row, read_rows, units_of
from simulations.federation import find_hospitals
from simulations.lab import Deal, Hospitals, Loaded
from simulations.phantoms import TASKS

_COLUMNS = ("path", "label", "patient_id", "group", "mask")


def check_there(loaded: Loaded) -> None:
    """Refuse a lab whose hospitals can neither be found nor dealt, before anything is made.

    Raises:
        MissingFolderError: There is no hospital in its folder, or data sets are missing: all of
            them are named.
    """
    wanted = loaded.lab.hospitals
    if wanted.folder is not None:
        find_hospitals(loaded.folder / wanted.folder)
    sources = {deal.dataset: _source(deal, loaded) for deal in wanted.deal}
    missing = [
        f"  - {name}: there is no {source / LABELS}"
        for name, source in sources.items()
        if not (source / LABELS).is_file()
    ]
    if not missing:
        return
    if loaded.data is None:
        remedy = (
            "The lab deals data sets: give --data FOLDER, which holds a folder of each; without "
            "it they are looked for beside the lab file."
        )
    else:
        remedy = "Give the folder which holds a folder of each to --data."
    raise MissingFolderError(
        "The lab deals data sets that are not there:\n" + "\n".join(missing),
        remedy=f"{remedy} Or try --quick, if the lab has a quick form.",
    )


def hospitals_of(loaded: Loaded, out: Path) -> list[Path]:
    """Return the hospital folders of a lab; what has to be made is made below ``out``, once.

    Made ones stand in a folder named after their recipe, so that a lab with another recipe has
    others, and none is used that was not finished.

    Raises:
        DataError: As ``check_there``, ``hospitals.make`` and ``hospitals.deal`` say.
    """
    check_there(loaded)
    wanted = loaded.lab.hospitals
    if wanted.folder is not None:
        return find_hospitals(loaded.folder / wanted.folder)
    sources = [_source(deal, loaded) for deal in wanted.deal]
    told = {"recipe": wanted.model_dump(mode="json"), "tables": [_table(s) for s in sources]}
    name = hashlib.sha256(canonical_json(told)).hexdigest()[:12]
    folder = out / f"hospitals-{name}"
    if not folder.is_dir():
        partial = out / f".hospitals-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        _make(wanted, sources, partial)
        partial.rename(folder)
    return find_hospitals(folder)


def digest_of(folders: Sequence[Path]) -> str:
    """Return a SHA-256 of what hospitals hold: settings, key, tables, and each file's size.

    The files themselves are not read: a data set may be large, and nobody edits an image in place
    without its size changing, as a rule.
    """
    told = {}
    for folder in folders:
        config = SiteConfig.load(folder)
        files = {path for path in folder.rglob("*") if path.is_file()}
        sizes = {
            str(path.relative_to(folder)): path.stat().st_size
            for path in files
            if not path.is_relative_to(config.state)
        }
        small = [folder / "site.toml", config.key_file, *(t.manifest for t in config.data.values())]
        told[folder.name] = {
            "sizes": sizes,
            "read": [hashlib.sha256(p.read_bytes()).hexdigest() for p in small if p.is_file()],
        }
    return hashlib.sha256(canonical_json(told)).hexdigest()


def taken(rows: list[Row], take: dict[str, int], seed: int) -> list[Row]:
    """Return rows with at most so many of each label; what must not be split stays whole.

    Units are drawn at random, and one that would be too many is passed over. A label that ``take``
    does not name is left out.
    """
    units = units_of(rows)
    rng = np.random.default_rng(stream(seed, "take"))
    have: Counter[str] = Counter()
    chosen: set[int] = set()
    for number in rng.permutation(len(units)).tolist():
        counts = Counter(row.label for row in units[number].rows)
        if all(have[label] + count <= take.get(label, 0) for label, count in counts.items()):
            have += counts
            chosen.add(number)
    return [row for number in sorted(chosen) for row in units[number].rows]


def _make(wanted: Hospitals, sources: Sequence[Path], out: Path) -> None:
    if wanted.phantoms is not None:
        phantoms = wanted.phantoms
        makers.make(
            out,
            sites=phantoms.sites,
            patients=phantoms.patients,
            images=phantoms.images,
            seed=phantoms.seed,
            tasks=phantoms.tasks or tuple(TASKS),
        )
    first = 1
    for deal, source in zip(wanted.deal, sources, strict=True):
        part = _part(deal, source, out) if deal.take else source
        makers.deal(
            part,
            out,
            sites=deal.sites,
            task=deal.task,
            skew=deal.skew,
            seed=deal.seed,
            label="label" if deal.take else deal.label,
            first=first,
        )
        first += deal.sites
        if deal.take:
            shutil.rmtree(part)


def _part(deal: Deal, source: Path, out: Path) -> Path:
    """Lay out the part of a data set that is to be dealt: a table, and links to its folders."""
    part = out.with_name(f"{out.name}-part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    rows = taken(read_rows(source, label=deal.label), deal.take, deal.seed)
    for name in {Path(path).parts[0] for row in rows for path in (row.path, row.mask) if path}:
        (part / name).symlink_to((source / name).resolve())
    cells = [dict(zip(_COLUMNS, _cells(row), strict=True)) for row in rows]
    write_table(part / LABELS, _COLUMNS, cells)
    return part


def _cells(row: Row) -> tuple[str, ...]:
    return row.path, row.label, row.patient, row.group, row.mask


def _source(deal: Deal, loaded: Loaded) -> Path:
    return (loaded.data or loaded.folder) / deal.dataset


def _table(source: Path) -> str:
    return hashlib.sha256((source / LABELS).read_bytes()).hexdigest()
