"""How fast images come from the cache, against decoding them and against MONAI.

Phantoms of CT, 512 x 512 pixels with a scanner's noise, are written as DICOM in lossless JPEG 2000.
The floor is pydicom alone: a file is opened and its pixels are decoded. The peer is MONAI's
``PersistentDataset`` after its first epoch, in batches of a ``DataLoader``; MONAI has read and
prepared the same files by its own transforms, to half precision as here.

The figure is of a second start, as of a vault that was started anew: each file is found by its
content, its entry checked, the images laid out for training, and one epoch taken in batches. It
must keep the limit against decoding. A further epoch, ``epoch_ms``, only takes the batches, as the
peer does, which finds a file by its path: it must take no longer than the peer's. Everything runs
in one thread; of several runs the least time counts, as other processes disturb a single one.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pydicom import dcmread
from torch import Tensor

from client.cache import Cache
from client.manifest import Row
from client.reading_pass import read_rows
from client.stored_pixels import PixelWriter, StoredPixels
from common.study import Task
from simulations.benches.ct_files import write_ct_files
from simulations.benches.result import Result

SIZE, BATCH = 224, 16
LIMIT = 1 / 20
TASK = Task(modality="CT", classes=["healthy", "gaucher"], window=(40.0, 400.0))
CACHE_BYTES = 10**10


def main(
    files: Annotated[int, typer.Option(help="DICOM files.")] = 200,
    repeats: Annotated[int, typer.Option(help="Runs of each kind.")] = 5,
) -> None:
    """Measure, print, and end with 1 where the cache is too slow."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        rows = write_ct_files(folder / "images", files)
        decode = _least(lambda: _decode(rows), max(1, repeats // 2), files)
        monai = _least(_monai(rows, folder / "monai"), repeats, files)
        first = _least(lambda: _start(rows, folder / "cache"), 1, files)
        start = _least(lambda: _start(rows, folder / "cache"), repeats, files)
        images = _load(rows, folder / "cache")
        epoch = _least(lambda: _epoch(images), repeats, files)
    result = Result(
        name="cache",
        figure=start,
        against={"what": "pydicom decoding", "figure": decode, "unit": "ms an image"},
        ratio=start / decode,
        limit=LIMIT,
        holds=start / decode <= LIMIT and epoch <= monai,
        details={
            "monai_ms": monai,
            "epoch_ms": epoch,
            "epoch_to_monai": epoch / monai,
            "first_start_ms": first,
            "files": files,
        },
    )
    raise typer.Exit(result.tell())


def _least(work: Callable[[], Any], repeats: int, files: int) -> float:
    """Return the milliseconds that one file takes."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return 1e3 * min(seconds) / files


def _decode(rows: Sequence[Row]) -> None:
    for row in rows:
        np.asarray(dcmread(row.path).pixel_array)


def _start(rows: Sequence[Row], cache: Path) -> None:
    _epoch(_load(rows, cache))


def _load(rows: Sequence[Row], folder: Path) -> Tensor | StoredPixels:
    cache = Cache(folder, CACHE_BYTES)
    writer = PixelWriter(SIZE, cache)
    for read in read_rows(rows, TASK, size=SIZE, cache=cache, workers=1, apart=False):
        if read.pixels is not None:
            writer.add(read.pixels)
    return writer.done()


def _epoch(images: Tensor | StoredPixels) -> None:
    order = np.random.default_rng(0).permutation(len(images))
    for first in range(0, len(order), BATCH):
        images[torch.from_numpy(order[first : first + BATCH])]


def _monai(rows: Sequence[Row], cache: Path) -> Callable[[], None]:
    """Return an epoch of MONAI's, which has had its first."""
    # MONAI is of this bench alone, and takes seconds to import.
    from monai.data.dataloader import DataLoader  # noqa: PLC0415
    from monai.data.dataset import PersistentDataset  # noqa: PLC0415
    from monai.transforms.compose import Compose  # noqa: PLC0415
    from monai.transforms.intensity.array import ScaleIntensityRange  # noqa: PLC0415
    from monai.transforms.io.array import LoadImage  # noqa: PLC0415
    from monai.transforms.spatial.array import Resize  # noqa: PLC0415
    from monai.transforms.utility.array import CastToType, EnsureChannelFirst  # noqa: PLC0415

    centre, width = TASK.window or (0, 0)
    prepared = Compose(
        [
            LoadImage(reader="PydicomReader", image_only=True),
            EnsureChannelFirst(),
            ScaleIntensityRange(centre - width / 2, centre + width / 2, 0, 1, clip=True),
            Resize((SIZE, SIZE), mode="bilinear", anti_aliasing=True),
            CastToType(dtype=torch.float16),
        ]
    )
    data = PersistentDataset([str(row.path) for row in rows], prepared, cache_dir=cache)

    def epoch() -> None:
        for batch in DataLoader(data, batch_size=BATCH, shuffle=True):
            assert batch.shape[1:] == (1, SIZE, SIZE)  # noqa: S101 - the bench's own check

    epoch()
    return epoch


if __name__ == "__main__":
    typer.run(main)
