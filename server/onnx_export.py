"""A study's network as one ONNX file that other software can run, compared with torch before use.

The graph takes images in [0, 1] and normalises them itself. Shapes: B batch, C channels (1 grey or
3 colour), S the study's image size, K classes of a task.
"""

import json
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import OutputError, WeightsError
from common.files import write_atomic
from common.models import FederatedModel
from common.seeds import stream
from common.study import Study

ONNX = "model.onnx"
OPSET = 18
"""Version of the ONNX operators; ONNX Runtime reads it since 1.14."""
LARGEST_DIFFERENCE = 1e-4
"""How far a logit may lie from torch's."""
INPUT = "image"

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_AT_ONCE = 8
_LARGEST_BYTES = 2**31 - 2**20  # a Protocol Buffers message ends at 2 GiB


class OnnxCheck(NamedTuple):
    """What the comparison with torch found."""

    opset: int
    largest_difference: float
    """Between any logit of ONNX Runtime and torch's."""
    images: int
    """Images given by the caller that were compared, beside random ones."""


class _Whole(nn.Module):
    """From images in [0, 1] to the logits of every task, in the study's order of the tasks."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: FederatedModel) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(model.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.std).view(3, 1, 1))

    def forward(self, x_BCSS: Tensor) -> tuple[Tensor, ...]:
        features_BD = self.model.features((x_BCSS - self.mean) / self.std)
        return tuple(head(features_BD) for head in self.model.heads.values())


def check_packages() -> None:
    """Refuse where the packages that write and run ONNX are not installed.

    Raises:
        OutputError: One of them is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise OutputError(
            f"ONNX cannot be written without the packages {', '.join(missing)}.",
            remedy="Install the extra: pip install 'rarefed[onnx]'",
        )


def export_onnx(
    model: FederatedModel,
    study: Study,
    path: Path,
    images: NDArray[np.floating] | None = None,
    *,
    model_sha256: str = "",
) -> OnnxCheck:
    """Write the network as ONNX if ONNX Runtime computes with it what torch does.

    The file has one input, ``image``: float32 in [0, 1], shape (B, C, S, S), already prepared as
    the study says. It has an output for each task, of the task's name: logits, shape (B, K). Its
    metadata name classes, preparation and digests.

    Args:
        model: The network, on the CPU.
        study: What it was trained for.
        path: The file.
        images: Prepared images in [0, 1], shape (N, C, S, S), to compare on beside random ones.
        model_sha256: Digest of the arrays, for the metadata.

    Returns:
        What the comparison found.

    Raises:
        OutputError: A package is missing, the network cannot be written as ONNX, or the two differ
            by more than ``LARGEST_DIFFERENCE``; there is no file then.
    """
    check_packages()
    whole = _Whole(model).eval()
    content = _written(whole, study, model_sha256)
    largest = 0.0
    for x_BCSS in _trials(study, images):
        largest = max(largest, difference(whole, content, x_BCSS, tuple(study.tasks)))
    if not largest <= LARGEST_DIFFERENCE:  # nor where it is not a number
        raise OutputError(
            f"ONNX Runtime differs from torch by {largest:.2g}, more than {LARGEST_DIFFERENCE:g}.",
            remedy="Export without --onnx; the safetensors file is exact.",
        )
    write_atomic(path, content)
    return OnnxCheck(OPSET, largest, 0 if images is None else len(images))


def load_images(file: Path, study: Study) -> NDArray[np.float32]:
    """Read prepared images from a NumPy file.

    Args:
        file: An array in NumPy's own format, floats in [0, 1], shape (N, C, S, S).
        study: Whose image size S is.

    Raises:
        WeightsError: It is no such file.
    """
    size = study.backbone.image_size
    wanted = f"floats in [0, 1] of shape (N, 1 or 3, {size}, {size})"
    try:
        found = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise WeightsError(
            f"{file} is no array of NumPy: {error}.", remedy=f"Save {wanted} with numpy.save."
        ) from error
    fits = isinstance(found, np.ndarray) and found.ndim == 4 and len(found)  # noqa: PLR2004 - N, C, S, S
    fits = fits and found.shape[1] in (1, 3) and found.shape[2:] == (size, size)
    if not fits or found.dtype.kind != "f" or not ((found >= 0) & (found <= 1)).all():
        raise WeightsError(f"{file} does not hold {wanted}.", remedy=f"Save {wanted}.")
    values: NDArray[np.float32] = found.astype(np.float32)
    return values


def difference(whole: nn.Module, content: bytes, x_BCSS: Tensor, tasks: tuple[str, ...]) -> float:
    """Return the largest difference of any logit between ONNX Runtime and torch."""
    from onnxruntime import InferenceSession  # type: ignore[import-untyped] # noqa: PLC0415 - an extra

    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(list(tasks), {INPUT: x_BCSS.numpy()})
    with torch.inference_mode():
        expected = whole(x_BCSS)
    gaps = [
        float(np.abs(one - two.numpy()).max()) for one, two in zip(found, expected, strict=True)
    ]
    return math.inf if any(math.isnan(gap) for gap in gaps) else max(gaps)


def _written(whole: _Whole, study: Study, model_sha256: str) -> bytes:
    size = study.backbone.image_size
    if sum(value.nbytes for value in whole.state_dict().values()) > _LARGEST_BYTES:
        raise OutputError(
            "The network takes more than the 2 GiB that one ONNX file may hold.",
            remedy="Export without --onnx.",
        )
    try:
        program = cast(
            "torch.onnx.ONNXProgram",
            torch.onnx.export(
                whole,
                (torch.zeros(2, 3, size, size),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(study.tasks),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            ),
        )
        proto = program.model_proto
    except Exception as error:  # the exporter raises whatever a layer makes of it
        raise OutputError(
            f"{study.network} cannot be written as ONNX: {type(error).__name__}: {error}",
            remedy="Export without --onnx, or choose another backbone.",
        ) from error
    # The first operations broadcast over the channels, which torch's exporter cannot leave open.
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "channels"
    for name, value in _metadata(study, whole.model, model_sha256).items():
        proto.metadata_props.add(key=name, value=value)
    content: bytes = proto.SerializeToString()
    return content


def _metadata(study: Study, model: FederatedModel, model_sha256: str) -> dict[str, str]:
    """Return what the file says of itself: text by name, lists and tables as JSON."""
    tasks: dict[str, Any] = {n: task.model_dump(mode="json") for n, task in study.tasks.items()}
    return {
        "rarefed.study": study.name,
        "rarefed.study_digest": study.digest(),
        "rarefed.model_sha256": model_sha256,
        "rarefed.opset": str(OPSET),
        "rarefed.input": f"{INPUT}: float32 in [0, 1], (batch, 1 or 3, size, size), red first",
        "rarefed.image_size": str(study.backbone.image_size),
        "rarefed.normalisation": json.dumps(
            {"inside_graph": True, "mean": list(model.mean), "std": list(model.std)}
        ),
        "rarefed.outputs": "logits of each task's classes, (batch, classes); softmax gives "
        "probabilities",
        "rarefed.tasks": json.dumps(tasks, ensure_ascii=False),
        "rarefed.notice": "Not a medical device.",
    }


def _trials(study: Study, images: NDArray[np.floating] | None) -> Iterator[Tensor]:
    """Yield random images of both kinds, one alone and several, then those given."""
    size = study.backbone.image_size
    generator = torch.Generator().manual_seed(stream(study.seed, "onnx"))
    for count, channels in ((1, 3), (3, 3), (2, 1)):
        yield torch.rand(count, channels, size, size, generator=generator)
    if images is not None:
        yield from torch.from_numpy(images.astype(np.float32)).split(_AT_ONCE)
