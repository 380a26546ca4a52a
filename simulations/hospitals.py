"""Makes hospital folders on disk: of phantoms, or of a real data set dealt out.

Every hospital has the same files: ``site.toml``, ``<task>/labels.csv`` with images and masks beside
it, and ``state/site.key``. The key comes from the seed, so that the same hospital splits its
patients the same way each time. That is for simulations only: a real site draws its key at random.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from common.errors import DataError, OutputError
from common.files import write_atomic, write_table
from common.seeds import stream
from common.study import Slug
from simulations.dealing import LABELS, Row, deal_units, parse_skew, read_rows, units_of
from simulations.dicom_files import Origin, write_dicom
from simulations.phantoms import TASKS, PhantomTask, Scanner, scanner
from simulations.placing import FAST, place

COLUMNS = ("path", "label", "patient_id", "site", "mask")


def make(
    out: Path,
    *,
    sites: int = 6,
    patients: int = 40,
    images: int = 3,
    seed: int = 0,
    tasks: Sequence[str] = tuple(TASKS),
    scanner_of: Callable[[int, np.random.Generator], Scanner] = scanner,
) -> list[Path]:
    """Make hospitals of phantoms; site number i has the task number i modulo the tasks.

    Sites differ in scanner, in size (0.7 to 1.3 times ``patients``) and in the share of the ill
    (0.35 to 0.65).

    Args:
        out: Folder for the hospitals.
        sites: How many.
        patients: Patients of each, on average; at least 4.
        images: Most images of one patient; each has one or more.
        seed: The same seed gives the same bytes.
        tasks: Names of ``phantoms.TASKS``.
        scanner_of: Gives the device of the site of a number, 0, 1, ...

    Returns:
        The folders of the hospitals.

    Raises:
        DataError: A task is not known.
        OutputError: A hospital of that name is there already.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise DataError(
            f"There are no phantoms for {', '.join(unknown) or 'no task at all'}.",
            remedy=f"Use some of: {', '.join(TASKS)}.",
        )
    folders = _new_folders(out, first=1, sites=sites)
    with _all_or_none(folders):
        for index, folder in enumerate(folders):
            task = tasks[index % len(tasks)]
            rng = np.random.default_rng(stream(seed, "phantoms", folder.name, task))
            device = scanner_of(index, rng)
            rows = []
            for origin, diseased in _patients(folder.name, device, rng, patients, images, seed):
                rows.append(
                    _write_image(folder / task, TASKS[task], origin, device, diseased=diseased)
                )
            _write_site(folder, task, COLUMNS, rows, seed=seed)
    return folders


def deal(
    dataset: Path,
    out: Path,
    *,
    sites: int,
    task: str,
    skew: str = "dirichlet:0.5",
    seed: int = 0,
    label: str = "label",
    first: int = 1,
) -> list[Path]:
    """Deal a real data set into hospitals, never splitting a patient or a group.

    Images and masks are hard links to those of the data set where the file system allows it, and
    copies elsewhere. With the skew ``scanner`` they are PNG copies under a gamma of the site.

    Args:
        dataset: Folder with ``labels.csv`` (path, label, patient_id; group, mask) and images.
        out: Folder for the hospitals.
        sites: How many.
        task: The study's name for the task.
        skew: ``iid``, ``dirichlet:ALPHA``, ``size:POWER``, ``scanner``, or several with commas.
        seed: The same seed gives the same deal.
        label: Name of the column of labels.
        first: Number of the first hospital, so that several data sets can share ``out``.

    Returns:
        The folders of the hospitals.

    Raises:
        DataError: The skew is unknown, the task's name no name, or the sites too many.
        MissingFolderError: There is no ``labels.csv``.
        ManifestError: The table has faults; all are listed. EmptyManifestError: or no rows.
        ImageError: A gamma cannot be applied to an image.
        OutputError: A hospital of that number is there already.
    """
    wanted = parse_skew(skew)
    _check_name(task)
    rows = read_rows(dataset, label=label)
    folders = _new_folders(out, first=first, sites=sites)
    rng = np.random.default_rng(stream(seed, "deal", task))
    gammas = rng.permutation(np.geomspace(0.7, 1.4, sites)).tolist()
    dealt = deal_units(units_of(rows), sites=sites, skew=wanted, rng=rng)
    if not all(dealt):
        raise DataError(
            f"{sites} sites are too many for the patients and groups of {dataset}.",
            remedy="Deal to fewer sites, or with less skew.",
        )
    columns = ["path", "label", "patient_id", "group", "site"]
    columns += ["mask"] if any(row.mask for row in rows) else []
    with _all_or_none(folders):
        for folder, units, gamma in zip(folders, dealt, gammas, strict=True):
            own = gamma if wanted.scanner else None
            placed = [
                place(row, dataset, folder / task, own) for unit in units for row in unit.rows
            ]
            cells = [_cells(row, folder.name, columns) for row in placed]
            _write_site(folder, task, columns, cells, seed=seed)
    return folders


def _check_name(task: str) -> None:
    """Refuse a name that no study could use: it becomes a folder and a key of ``site.toml``."""
    try:
        TypeAdapter(Slug).validate_python(task)
    except ValidationError as error:
        raise DataError(
            f"{task!r} cannot be the name of a task.",
            remedy="Use 1 to 63 of a-z, 0-9, '-' and '_', the first a letter or digit.",
        ) from error


def _new_folders(out: Path, *, first: int, sites: int) -> list[Path]:
    folders = [out / f"hospital-{number}" for number in range(first, first + sites)]
    taken = [str(folder) for folder in folders if folder.exists()]
    if taken:
        raise OutputError(
            f"There is already: {', '.join(taken)}.",
            remedy="Give another folder, or another number for the first hospital.",
        )
    return folders


@contextmanager
def _all_or_none(folders: list[Path]) -> Iterator[None]:
    """Make the folders, and remove them again if what follows fails."""
    try:
        for folder in folders:
            folder.mkdir(parents=True)
        yield
    except OSError as error:
        _remove(folders)
        raise OutputError(
            f"Cannot write hospitals to {folders[0].parent}: {error.strerror}.",
            remedy="Give a folder that you may write to, on a disk with room.",
        ) from error
    except BaseException:
        _remove(folders)
        raise


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _write_site(
    folder: Path, task: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]], *, seed: int
) -> None:
    """Write the table of images, ``site.toml`` and the site's key."""
    write_table(folder / task / LABELS, columns, rows)
    lines = [
        f'name = "{folder.name}"',
        'device = "cpu"',
        "threads = 0",
        "readers = 0 # a simulation trusts its images; a hospital leaves this line out",
        'state = "state"',
        "",
        f"[data.{task}]",
        f'manifest = "{task}/{LABELS}"',
        "",
        "[limits]",
        "minimum_patients = 1 # made for a simulation; a hospital leaves this line out",
    ]
    (folder / "site.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "state").mkdir(mode=0o700)
    key = hashlib.sha256(f"rarefed simulated site\0{seed}\0{folder.name}".encode()).hexdigest()
    write_atomic(folder / "state" / "site.key", f"{key}\n".encode(), mode=0o600)


def _patients(
    site: str, device: Scanner, rng: np.random.Generator, patients: int, images: int, seed: int
) -> Iterator[tuple[Origin, bool]]:
    """Yield every image of a hospital, and whether its patient is ill."""
    count = max(4, round(patients * rng.uniform(0.7, 1.3)))
    ill = int(np.clip(round(count * rng.uniform(0.35, 0.65)), 2, count - 2))
    diseased = rng.permutation(np.arange(count) < ill)
    for number, is_ill in enumerate(diseased.tolist(), start=1):
        for view in range(rng.integers(1, images + 1)):
            yield Origin(site, device.name, f"{site}-p{number:03d}", view, seed), is_ill


def _write_image(
    folder: Path, task: PhantomTask, origin: Origin, device: Scanner, *, diseased: bool
) -> dict[str, str]:
    """Draw and write one image, and its mask if there is a lesion; return its row."""
    patient = stream(origin.seed, "patient", origin.patient_id)
    phantom = task.draw(patient, origin.view, diseased=diseased, scanner=device)
    name = f"{origin.patient_id}-{origin.view + 1}"
    path = f"images/{name}.{'png' if task.modality == 'fundus' else 'dcm'}"
    mask = f"masks/{name}.png" if phantom.mask.any() else ""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    if task.modality == "fundus":
        Image.fromarray(phantom.pixels).save(folder / path, compress_level=FAST)
    else:
        write_dicom(folder / path, phantom, modality=task.modality, origin=origin)
    if mask:
        Image.fromarray(phantom.mask.astype(np.uint8) * 255).save(folder / mask)
    cells = (path, phantom.label, origin.patient_id, origin.institution, mask)
    return dict(zip(COLUMNS, cells, strict=True))


def _cells(row: Row, site: str, columns: Sequence[str]) -> dict[str, str]:
    """Return a row of the dealt table; whoever has no patient goes by group, else by path."""
    cells = {
        "path": row.path,
        "label": row.label,
        "patient_id": row.patient or row.group or row.path,
        "group": row.group,
        "site": site,
        "mask": row.mask,
    }
    return {name: cells[name] for name in columns}
