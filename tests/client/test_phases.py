"""Laws of a phase at a site: what trains, what stays as it is, and what is computed once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from client.alone import train_alone
from client.config import SiteConfig
from client.dataset import Images, batches
from client.evaluate import logits_of
from client.optim import make_optimizer
from client.phases import PhaseFeatures, in_phase
from client.site import Site
from client.train import train
from common.errors import DivergedError
from common.messages import Order, Reply
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import put

MakeStudy = Callable[..., Study]
MakeImages = Callable[..., Images]
MakeHospital = Callable[..., SiteConfig]
MakeOrder = Callable[..., Order]
State = dict[str, torch.Tensor]

CPU = torch.device("cpu")
PHASES = [{"rounds": 2, "train": "head"}, {"rounds": 2, "train": "last:1"}]
ROUNDS = {"head": 1, "last:1": 3, "all": 5}
"""A round of each phase, and one after them."""
TRAINED = {"head": ("heads.",), "last:1": ("backbone.layer4.", "heads."), "all": ("",)}
"""How the names of what trains begin."""


@pytest.fixture
def phased(make_study: MakeStudy) -> Callable[..., Study]:
    """Return the maker of a study with two phases and living batch normalisation."""

    def make(**sections: Any) -> Study:
        training = {"phases": PHASES} | sections.pop("training", {})
        return make_study(training=training, rounds=6, **sections)

    return make


def one_round(
    study: Study, model: FederatedModel, images: Images, number: int, *, keep: bool = False
) -> None:
    order = batches({"ct": len(images)}, batch_size=4, epochs=1, seed=number)
    features = PhaseFeatures(model, study, "a", CPU).in_round(number) if keep else None
    with in_phase(model, study, number):
        train(model, {"ct": images}, order, study, number=number, device=CPU, features=features)


def state_of(model: FederatedModel) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: FederatedModel, before: State) -> set[str]:
    now = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(now[name], value)}


@contextmanager
def passes(model: FederatedModel, stage: str = "conv1") -> Iterator[list[int]]:
    """Count the images that go through a stage of the backbone; the number of each pass."""
    seen: list[int] = []
    module = model.backbone.get_submodule(stage)
    handle = module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        handle.remove()


# What trains


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("normalisation", ["average", "local", "frozen"])
@pytest.mark.parametrize("train_what", TRAINED)
def test_what_is_outside_a_phase_stays_to_the_last_bit(
    phased: MakeStudy, make_images: MakeImages, train_what: str, normalisation: str, *, keep: bool
) -> None:
    """In a round only what its phase trains changes: weights, and statistics with their counters.

    Everything that has a gradient, and every living statistic, does change.
    """
    study = phased(backbone={"normalisation": normalisation})
    model = build_model(study)
    alive = [name for name, _ in model.named_parameters()]
    alive += [name for name in model.state_dict() if "num_batches" in name or "running" in name]
    if normalisation == "frozen":
        alive = [name for name in alive if "running" not in name]
    before = state_of(model)
    one_round(study, model, make_images(), ROUNDS[train_what], keep=keep)
    expected = {name for name in alive if name.startswith(TRAINED[train_what])}
    assert changed(model, before) == expected


def test_what_does_not_train_has_no_gradient(phased: MakeStudy, make_images: MakeImages) -> None:
    """Only what the phase trains is in the optimizer, and nothing else has a gradient.

    A gradient of a wider round before counts no more: a bound on the norm would see it.
    """
    study = phased(training={"clip_norm": 1.0})
    model, images = build_model(study), make_images()
    one_round(study, model, images, ROUNDS["all"])
    assert any(value.grad is not None for value in model.backbone.parameters())
    for train_what in ("head", "last:1"):
        trained = [v for n, v in model.named_parameters() if n.startswith(TRAINED[train_what])]
        with in_phase(model, study, ROUNDS[train_what]):
            groups = make_optimizer(model, study.training).param_groups
            found = {id(value) for group in groups for value in group["params"]}
            assert found == {id(value) for value in trained}
            with_gradient = {id(v) for v in model.parameters() if v.grad is not None}
            assert with_gradient <= found


def test_resting_stages_are_in_evaluation_mode(phased: MakeStudy) -> None:
    """Putting the network into training mode leaves what rests in evaluation mode."""
    study = phased()
    model = build_model(study)
    with in_phase(model, study, ROUNDS["last:1"]):
        model.train()
        layers = [(n, m) for n, m in model.backbone.named_modules() if m._parameters]
        assert {name.split(".")[0] for name, module in layers if module.training} == {"layer4"}
        assert not any(m.training for n, m in layers if not n.startswith("layer4"))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("number", [1, 3, 5])
def test_after_a_round_the_network_is_as_it_was(
    phased: MakeStudy, make_images: MakeImages, number: int
) -> None:
    """What is trained and what rests is restored, also when the training has no finite end."""
    study, images = phased(), make_images()
    model = build_model(study)
    before = {name: value.requires_grad for name, value in model.named_parameters()}
    broken = Images(images.pixels[:] * float("nan"), images.labels, images.patients)
    with pytest.raises(DivergedError):
        one_round(study, model, broken, number)
    assert {name: value.requires_grad for name, value in model.named_parameters()} == before
    assert model.resting == ()
    model.train()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("train_what", ["head", "last:2"])
def test_a_phase_is_what_a_study_without_phases_would_train(
    phased: MakeStudy, make_study: MakeStudy, make_images: MakeImages, train_what: str
) -> None:
    """A round of a phase gives the arrays of a study that trains no more in any round."""
    images, trained = make_images(), []
    for study in (
        phased(training={"phases": [{"rounds": 1, "train": train_what}]}),
        make_study(training={"train": train_what}),
    ):
        model = build_model(study)
        one_round(study, model, images, 1)
        trained.append(model.state_dict())
    counts = {name for name in trained[0] if name.endswith("num_batches_tracked")}
    assert all(torch.equal(trained[0][n], v) for n, v in trained[1].items() if n not in counts)


def test_unfreezing_reaches_what_trains_in_the_end(
    make_study: MakeStudy, make_images: MakeImages
) -> None:
    """With each round one more stage changes, from the last one down to the second of five."""
    study = make_study(training={"unfreeze_every": 1, "train": "last:4"}, rounds=6)
    model, images = build_model(study), make_images()
    parts = ("heads", "layer4", "layer3", "layer2", "layer1")
    for number in range(1, 7):
        before = state_of(model)
        one_round(study, model, images, number, keep=True)
        found = {name.removeprefix("backbone.").split(".")[0] for name in changed(model, before)}
        assert found == set(parts[:number])


# What is computed once


@pytest.mark.parametrize("train_what", ["head", "last:1"])
def test_logits_of_a_phase_are_the_networks(
    phased: MakeStudy, make_images: MakeImages, train_what: str
) -> None:
    """An evaluation on kept features says what one of the whole network says."""
    study, images = phased(), make_images(70)
    model = build_model(study)
    features = PhaseFeatures(model, study, "a", CPU).in_round(ROUNDS[train_what])
    assert features is not None
    got = logits_of(model, images, "ct", device=CPU, features=features)
    assert np.allclose(got, logits_of(model, images, "ct", device=CPU), atol=1e-5)


def test_features_of_a_phase_go_with_it(phased: MakeStudy) -> None:
    """Rounds of a phase share their features; another phase, and none, have their own."""
    study = phased()
    features = PhaseFeatures(build_model(study), study, "a", CPU)
    kept = [features.in_round(number) for number in (1, 2, 3, 4, 5)]
    assert kept[0] is kept[1] is not None
    assert kept[2] is kept[3] is not None
    assert kept[0] is not kept[2]
    assert kept[4] is None


@pytest.mark.parametrize(
    ("array", "forgotten"),
    [("backbone.conv1.0.weight", True), ("backbone.layer1.0.bn1.running_mean", True),
     ("backbone.layer4.0.conv1.weight", False), ("heads.ct.bias", False)],
)  # fmt: skip
def test_other_values_of_what_rests_are_other_features(
    phased: MakeStudy, make_images: MakeImages, array: str, *, forgotten: bool
) -> None:
    """Features are computed again where an array of what does not train comes with other values."""
    study, images = phased(), make_images()
    model = build_model(study)
    features = PhaseFeatures(model, study, "a", CPU)

    def computed() -> int:
        kept = features.in_round(3)
        assert kept is not None
        with passes(model) as seen:
            kept.of(images, torch.arange(len(images)))
        return sum(seen)

    assert computed() == len(images)
    features.refresh()
    assert computed() == 0
    put(model, {array: model.state_dict()[array].numpy() + np.float32(1e-3)})
    features.refresh()
    assert computed() == (len(images) if forgotten else 0)


def answered(site: Site, order: Order) -> Reply:
    reply = site.answer(order).reply
    assert not reply.refusal
    return reply


def test_a_site_runs_the_frozen_part_once_in_a_phase(
    phased: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """In the rounds after a phase's first one no image goes through what does not train.

    After the phases every image does, in training and in the evaluation ahead of it.
    """
    study = phased()
    site = Site(make_hospital())
    model, images = build_model(study), site.prepare(study).tasks["ct"].splits
    held_out = len(images["validation"]) + len(images["test"])
    everything = len(images["train"]) + held_out
    found = []
    for number in range(1, study.rounds + 2):
        kind = "train" if number <= study.rounds else "evaluate"
        with passes(site.prepare(study).model) as seen:
            reply = answered(site, make_order(study, kind, model=model, number=number))
        new = {n: model.state_dict()[n].numpy() + a for g in reply.groups.values()
               for n, a in g.items()}  # fmt: skip
        put(model, new)
        found.append(sum(seen))
    probes = found[0] - everything, found[2] - everything
    assert max(probes) <= 8  # the trials of where the network can be divided, 2 images each
    assert [found[1], found[3]] == [0, 0]
    assert found[5:] == [everything, held_out]


def test_a_site_started_anew_gives_the_same(
    phased: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder
) -> None:
    """Whether its features are kept or computed again, a round's change is the same to the bit."""
    study, config = phased(), make_hospital()
    model, warm = build_model(study), Site(config)
    for number in range(1, 5):
        order = make_order(study, model=model, number=number)
        reply, other = answered(warm, order), answered(Site(config), order)
        for group, arrays in reply.groups.items():
            for name, value in arrays.items():
                assert np.array_equal(value, other.groups[group][name])
        put(model, {n: model.state_dict()[n].numpy() + a for g in reply.groups.values()
                    for n, a in g.items()})  # fmt: skip


@pytest.mark.parametrize("number", [1, 3])
def test_what_rests_sends_zeros(
    phased: MakeStudy, make_hospital: MakeHospital, make_order: MakeOrder, number: int
) -> None:
    """The same arrays travel in every round; those outside the phase come back as no change."""
    study = phased()
    reply = answered(Site(make_hospital()), make_order(study, number=number))
    assert set(reply.groups) == {"shared", "statistics", "head:ct"}
    trained = TRAINED["head" if number == 1 else "last:1"]
    for arrays in reply.groups.values():
        for name, value in arrays.items():
            assert bool(np.any(value)) == name.startswith(trained)


def test_alone_is_trained_by_the_same_phases(phased: MakeStudy, make_images: MakeImages) -> None:
    """A site by itself whose every round is of a phase trains what the phase trains."""
    study = phased().model_copy(update={"rounds": 4})
    model, images = build_model(study), make_images()
    before = state_of(model)
    train_alone(model, {"ct": images}, study, site="a", device=CPU)
    found = changed(model, before)
    assert found
    assert all(name.startswith(TRAINED["last:1"]) for name in found)
