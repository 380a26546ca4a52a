"""Small hospitals, studies, orders and images, made on the fly."""

import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from client.approvals import approve
from client.config import SiteConfig
from client.daemon import make_server
from client.dataset import Images
from client.images import read_images
from client.pictures import Reading
from client.socket_file import listen, only_one
from client.vault import Vault
from common.arrays import Array, digest
from common.errors import ImageError
from common.layout import arrays_sent_once
from common.messages import Kind, Order, order_to_record
from common.models import FederatedModel, build_model
from common.seals import Sealer, load_order_key, new_order_key
from common.study import Study
from common.versions import PROTOCOL
from common.weights import layout_of, take

TASKS: dict[str, dict[str, Any]] = {
    "ct": {"modality": "CT", "classes": ["normal", "gaucher"], "positive": "gaucher"},
    "mr": {"modality": "MR", "classes": ["none", "mild", "severe"]},
}
SPLITS = ("train", "train", "train", "train", "validation", "validation", "test", "test")
"""The split of each patient of a task, unless a test says otherwise."""
ORDER_KEY, ORDER_KEY_PUBLIC = new_order_key()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_study() -> Callable[..., Study]:
    """Return the maker of a study of small networks; a section given updates the default's."""

    def make(tasks: Sequence[str] = ("ct",), **sections: dict[str, Any]) -> Study:
        # A file of weights is named, so that layers may be frozen; a site never opens it.
        backbone = {"name": "test_resnet", "weights": "start.safetensors", "image_size": 32}
        training = {"batch_size": 4, "head_lr": 1e-2, "backbone_lr": 1e-3}
        values: dict[str, Any] = {
            "name": "study",
            "rounds": 3,
            "seed": 7,
            "backbone": backbone | sections.pop("backbone", {}),
            "training": training | sections.pop("training", {}),
            "tasks": {name: TASKS[name] for name in tasks},
        }
        return Study.parse(values | sections)

    return make


@pytest.fixture
def plain_sgd() -> dict[str, Any]:
    """A training whose steps are w - rate * gradient; heads go four times as far as the rest."""
    return {
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "head_lr": 0.5,
        "backbone_lr": 0.125,
    }


@pytest.fixture
def make_hospital(tmp_path: Path) -> Callable[..., SiteConfig]:
    """Return the maker of a hospital's folder: two PNG images of each patient, and its tables."""

    def make(
        name: str = "site-a",
        *,
        tasks: Sequence[str] = ("ct",),
        splits: Sequence[str] = SPLITS,
        device: str = "cpu",
        max_unreadable: float = 0.1,
    ) -> SiteConfig:
        folder = tmp_path / name
        folder.mkdir()
        lines = [
            f'name = "{name}"',
            f'device = "{device}"',
            "threads = 1",
            "readers = 0",
            "[limits]",
        ]
        lines += [f"max_unreadable = {max_unreadable}", "minimum_patients = 1"]
        for task in tasks:
            _write_task(folder / task, task, splits)
            lines += [f"[data.{task}]", f'manifest = "{task}/labels.csv"']
        (folder / "site.toml").write_text("\n".join(lines), encoding="utf-8")
        return SiteConfig.load(folder)

    return make


def _write_task(folder: Path, task: str, splits: Sequence[str]) -> None:
    classes = TASKS[task]["classes"]
    rng = np.random.default_rng(len(classes))
    (folder / "images").mkdir(parents=True)
    rows = ["path,label,patient_id,split"]
    for patient, split in enumerate(splits):
        label = patient % len(classes)
        for number in range(2):
            path = f"images/scan_{patient}_{number}.png"
            pixels = rng.integers(0, 100, (36, 40)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / path)
            rows.append(f"{path},{classes[label]},PATIENT-{task}-{patient},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.fixture
def make_order() -> Callable[..., Order]:
    """Return the maker of an order that carries a network; the study's own first one by default."""

    def make(
        study: Study,
        kind: Kind = "train",
        *,
        tasks: Sequence[str] | None = None,
        number: int = 1,
        model: FederatedModel | None = None,
        first: FederatedModel | None = None,
        with_base: bool = True,
    ) -> Order:
        if kind == "check":
            return Order("check", study, 0, {}, "", None)
        model = model or build_model(study)
        layout = layout_of(model, study)
        asked = study.tasks if tasks is None else tasks
        names = layout.groups_of(asked, trained=kind == "train")
        first = first or model  # as the study began with it
        base: dict[str, Array] = arrays_sent_once(take(first, first.state_dict()), layout)
        return Order(
            kind,
            study,
            number,
            {group: take(model, layout.groups[group]) for group in names},
            digest(base),
            base if with_base else None,
        )

    return make


@pytest.fixture
def make_joined(make_hospital: Callable[..., SiteConfig]) -> Callable[..., SiteConfig]:
    """Return the maker of a hospital that has joined a coordinator and approved studies."""

    def make(*studies: Study, **hospital: Any) -> SiteConfig:
        config = make_hospital(**hospital)
        pinned = {
            "coordinator": "demo",
            "site": config.name,
            "order_key": ORDER_KEY_PUBLIC,
            "protocol": PROTOCOL,
            "fingerprint": "00",
        }
        config.state.mkdir(mode=0o700)
        (config.state / "coordinator.json").write_text(json.dumps(pinned))
        for study in studies:
            approve(config, study, datetime.now(UTC))
        return config

    return make


@pytest.fixture
def sealed() -> Callable[..., RecordDict]:
    """Return what packs an order, changes its head as told and seals it, as the coordinator."""

    def seal(
        order: Order, *, site: str = "site-a", key: bytes = ORDER_KEY, **head: Any
    ) -> RecordDict:
        record = order_to_record(order)
        asked = record["order"]
        assert isinstance(asked, ConfigRecord)
        asked.update(head)
        Sealer(load_order_key(key)).seal(record, site)
        return record

    return seal


@pytest.fixture
def make_images() -> Callable[..., Images]:
    """Return the maker of prepared images whose brightness tells their class."""

    def make(n: int = 12, *, classes: int = 2, channels: int = 1, seed: int = 0) -> Images:
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % classes
        noise = rng.uniform(0, 0.4, (n, channels, 32, 32))
        pixels = noise + 0.6 * labels[:, None, None, None] / (classes - 1)
        return Images(
            torch.from_numpy(pixels).to(torch.float16),
            torch.from_numpy(labels),
            tuple(f"patient-{i // 2}" for i in range(n)),
        )

    return make


@pytest.fixture(scope="session")
def write_dicom() -> Callable[..., Path]:
    """Return what writes a plain DICOM of 12 bits; elements are added, or taken out where None."""

    def write(
        path: Path,
        stored: NDArray[np.generic],
        *,
        syntax: UID = ExplicitVRLittleEndian,
        **elements: object,
    ) -> Path:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.Modality = "OT"
        dataset.Rows, dataset.Columns = stored.shape[:2]
        dataset.SamplesPerPixel = stored.shape[2] if stored.ndim == 3 else 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = stored.dtype.itemsize * 8
        dataset.BitsStored = 12 if stored.dtype.itemsize == 2 else 8
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
        ordered = stored if syntax.is_little_endian else stored.byteswap()
        dataset.add_new("PixelData", "OW", ordered.tobytes())
        for name, value in elements.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture(scope="session")
def survives() -> Callable[[Path, Reading, int], None]:
    """Return what reads a file that may be damaged: pictures in [0, 1], or an ImageError.

    It fails also where that takes more bytes than are given.
    """

    def survives(file: Path, reading: Reading, most: int) -> None:
        tracemalloc.start()
        try:
            source = read_images(file, reading)
        except ImageError:
            pass
        else:
            assert all(0 <= p.values.min() < p.values.max() <= 1 for p in source.pictures)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < most

    return survives


@pytest.fixture
def serve() -> Iterator[Callable[[SiteConfig], Vault]]:
    """Return what serves a hospital's vault on its real socket until the test is over."""
    with ExitStack() as stack:

        def start(config: SiteConfig) -> Vault:
            stack.enter_context(only_one(config))
            vault = Vault(config)
            listener = stack.enter_context(listen(config))
            server = make_server(vault)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join()

            stack.callback(stop)
            while not server.started:
                time.sleep(0.01)
            return vault

        yield start
