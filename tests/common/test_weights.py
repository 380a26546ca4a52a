"""Laws of which arrays travel, and of how they leave and enter the network."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from common.arrays import Array, digest
from common.layout import SHARED, STATISTICS, Layout, head_group
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import layout_of, put, take

TASKS = {
    "ct": {"modality": "CT", "classes": ["healthy", "gaucher"]},
    "mr": {"modality": "MR", "classes": ["a", "b", "c"]},
}
SMALL = ("test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050")
LOCAL = (
    ("test_resnet", "all"), ("test_resnet", "last:1"), ("mobilenetv3_small_050", "all"),
    ("mobilenetv3_small_050", "last:2"),
)  # fmt: skip
"""What trains batch normalisation; all else is refused with "local"."""
TRAIN = ("all", "last:1", "head")
CASES = [
    *((name, 64, norm, train) for name in SMALL for norm in ("average", "frozen")
      for train in TRAIN),
    *((name, 64, "local", train) for name, train in LOCAL),
    ("vit_tiny_patch16_224", 96, "average", "all"),
    ("swin_tiny_patch4_window7_224", 64, "average", "last:2"),
    ("levit_128s", 224, "local", "all"),
]  # fmt: skip
case = pytest.mark.parametrize(("name", "size", "normalisation", "train"), CASES)


def built(
    name: str, size: int, normalisation: str, train: str
) -> tuple[FederatedModel, Layout, Study]:
    values: dict[str, Any] = {
        "name": "study",
        "rounds": 1,
        "backbone": {
            "name": name,
            "weights": "start.safetensors",
            "image_size": size,
            "normalisation": normalisation,
        },
        "tasks": TASKS,
        "training": {"train": train},
    }
    study = Study.parse(values)
    model = build_model(study)
    return model, layout_of(model, study), study


def resnet(normalisation: str = "average", train: str = "all") -> tuple[FederatedModel, Layout]:
    model, layout, _ = built("test_resnet", 32, normalisation, train)
    return model, layout


@case
def test_every_array_is_of_one_kind(name: str, size: int, normalisation: str, train: str) -> None:
    """Each entry of the state is in one group, local or base; what each means, it is."""
    model, layout, study = built(name, size, normalisation, train)
    state = model.state_dict()
    kinds = [*layout.groups.values(), layout.local, layout.base]
    assert Counter(name for kind in kinds for name in kind) == Counter(list(state))

    travelling = [name for group in layout.groups.values() for name in group]
    assert all(state[name].dtype == torch.float32 for name in travelling)
    integers = {name for name, value in state.items() if not value.is_floating_point()}
    assert integers <= set(layout.base)
    for task in study.tasks:
        parts = tuple(f"heads.{task}.{part}" for part in ("weight", "bias"))
        assert layout.groups[head_group(task)] == parts
    if train == "head":
        assert layout.groups_of(study.tasks) == (head_group("ct"), head_group("mr"))

    living = {
        f"{prefix}.{entry}"
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for entry in ("weight", "bias", "running_mean", "running_var")
    }
    statistics = {name for name in living if "running" in name}
    assert set(layout.local) == (living if normalisation == "local" else set())
    assert set(layout.groups[STATISTICS]) == (set() if normalisation == "local" else statistics)


@case
def test_training_changes_what_travels_and_nothing_else(
    name: str, size: int, normalisation: str, train: str
) -> None:
    """A step in training mode leaves all of the base as it was but counters, bit for bit.

    Gradients reach arrays that travel or are local, and of those the heads always.
    """
    model, layout, study = built(name, size, normalisation, train)
    floats = [n for n in layout.base if model.state_dict()[n].is_floating_point()]
    before = take(model, floats)
    everything = take(model, model.state_dict())

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(0)
    loss = sum(
        model(torch.randn(2, 3, size, size) + 1, task).square().sum() for task in study.tasks
    )
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    optimizer.step()

    assert digest(take(model, floats)) == digest(before)
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    assert not reached & set(layout.base)
    for task in study.tasks:
        assert reached >= set(layout.groups[head_group(task)])
    after = take(model, model.state_dict())
    changed = {n for n in after if not np.array_equal(after[n], everything[n])}
    assert {n for n in changed if "num_batches_tracked" not in n}.isdisjoint(layout.base)
    assert set(layout.groups[STATISTICS]) <= changed


def test_frozen_statistics_are_used_as_they_are() -> None:
    """With frozen normalisation the network says the same in training and evaluation mode."""
    model, _ = resnet("frozen")
    assert not any(isinstance(module, _BatchNorm) for module in model.modules())
    x_BCHW = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        trained, evaluated = model.train()(x_BCHW, "ct"), model.eval()(x_BCHW, "ct")
    assert torch.equal(trained, evaluated)


def test_a_site_gets_the_groups_of_its_tasks() -> None:
    """The backbone's groups come first, then its own heads; empty groups are left out."""
    _, layout = resnet()
    assert layout.groups_of(["mr"]) == (SHARED, STATISTICS, "head:mr")
    assert layout.groups_of([]) == (SHARED, STATISTICS)
    assert resnet(train="head")[1].groups_of(["ct"]) == ("head:ct",)
    assert resnet("local")[1].groups_of(["ct"]) == (SHARED, "head:ct")


def test_local_arrays_are_sent_once_with_the_base() -> None:
    """What stays at a site begins at every site as the coordinator's initial values."""
    _, layout = resnet("local")
    assert layout.local
    assert set(layout.sent_once) == set(layout.base) | set(layout.local)


def test_freezing_moves_arrays_into_the_base() -> None:
    """The fewer stages train the less travels, and nothing is lost."""
    sizes = [len(resnet(train=train)[1].base) for train in ("all", "last:2", "last:1", "head")]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)


def test_taken_arrays_are_copies() -> None:
    """Writing into what was taken changes no weight, and training changes nothing taken."""
    model, layout = resnet()
    arrays = take(model, layout.groups[SHARED])
    assert list(arrays) == list(layout.groups[SHARED])
    before = digest(arrays)
    for name in arrays:
        arrays[name][...] = 7
    assert digest(take(model, layout.groups[SHARED])) == before
    kept = take(model, layout.groups[SHARED])
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    assert digest(kept) == before


def test_what_was_taken_can_be_put_back() -> None:
    """Take and put are inverse bit for bit, counters and scalars included."""
    model, _ = resnet()
    names = list(model.state_dict())
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for name, value in take(model, names).items():
        random = rng.integers(0, 2**40, value.shape, np.int64)
        arrays[name] = np.asarray(random if value.dtype == np.int64 else random / 2**39 - 1)
        arrays[name] = arrays[name].astype(value.dtype)
    assert any(value.ndim == 0 for value in arrays.values())
    put(model, arrays)
    assert digest(take(model, names)) == digest(arrays)
    fortran = {name: value.copy(order="F") for name, value in arrays.items()}
    put(model, fortran)
    assert digest(take(model, names)) == digest(arrays)


def test_put_keeps_no_hold_on_what_it_was_given() -> None:
    """Writing into an array after it was put changes no weight; read-only arrays are welcome."""
    model, layout = resnet()
    name = layout.groups["head:ct"][0]
    value = np.full(take(model, [name])[name].shape, 3, np.float32)
    value.flags.writeable = False
    put(model, {name: value})
    value.flags.writeable = True
    value[...] = 4
    assert (take(model, [name])[name] == 3).all()


HEAD = "heads.ct.bias"


@pytest.mark.parametrize(
    "misfit",
    [
        {"heads.xx.bias": np.zeros(2, np.float32)},
        {"backbone.conv1.weight": np.zeros(3, np.float32)},
        {HEAD: np.zeros((2, 1), np.float32)},
        {HEAD: np.zeros((), np.float32)},
        {HEAD: np.zeros(2, np.float64)},
        {HEAD: np.zeros(2, np.int64)},
        {HEAD: np.array(["a", "b"])},
    ],
    ids=["unknown", "shape", "more dimensions", "scalar", "float64", "integers", "text"],
)
def test_put_refuses_misfits_and_changes_nothing(misfit: dict[str, Array]) -> None:
    """One array of unknown name, other shape or other dtype, and none of all is put."""
    model, _ = resnet()
    names = list(model.state_dict())
    before = digest(take(model, names))
    good = {"heads.mr.bias": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=next(iter(misfit))):
        put(model, good | misfit)
    assert digest(take(model, names)) == before
    put(model, good)
    assert digest(take(model, names)) != before


@pytest.mark.parametrize("normalisation", ["average", "local"])
def test_personal_heads_stay_at_the_sites(normalisation: str) -> None:
    """No head travels; all of them begin with the base, and the rest is as without (FedPer)."""
    _, plain, study = built("test_resnet", 32, normalisation, "all")
    federation = study.federation.model_copy(update={"personal": "head"})
    personal = study.model_copy(update={"federation": federation})
    layout = layout_of(build_model(personal), personal)
    heads = {name for task in study.tasks for name in plain.groups[head_group(task)]}
    assert set(layout.local) == set(plain.local) | heads
    assert layout.base == plain.base
    assert all(layout.groups[head_group(task)] == () for task in study.tasks)
    assert all(layout.groups[name] == plain.groups[name] for name in (SHARED, STATISTICS))
    shared = (SHARED,) if normalisation == "local" else (SHARED, STATISTICS)
    assert layout.groups_of(study.tasks) == shared
