"""Laws of the network of an ensemble: its members vote, and each learns as it would by itself."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from client.anchor import near_of
from client.cam_layers import cam_layer
from client.features import frozen_features
from client.losses import make_loss
from client.optim import make_optimizer
from client.phases import in_phase
from client.preprocess import normalise
from client.privacy import MembersApart
from client.private_check import faults_of
from client.private_gradients import PatientGradients
from common.ensemble import MemberHeads, check_votes, mean_probability, vote_alike
from common.errors import StudyError
from common.layout import SHARED, STATISTICS, head_group, votes_group, votes_name
from common.models import FederatedModel, build_model
from common.study import Study
from common.weights import layout_of, put, take

Make = Callable[..., Study]
CPU = torch.device("cpu")
SIZE = 32
VOTES: dict[str, Any] = {"federation": {"votes": "validation"}}
TWO: list[dict[str, Any]] = [{}, {"name": "test_convnext", "seed": 7}]


@pytest.fixture
def study_of() -> Make:
    """Return the maker of a study of two tasks, its network an ensemble unless it is told none."""

    def make(ensemble: list[dict[str, Any]] | None = None, **sections: Any) -> Study:
        backbone = {"name": "test_resnet", "weights": "none", "image_size": SIZE}
        values: dict[str, Any] = {
            "name": "voted",
            "rounds": 6,
            "seed": 3,
            "tasks": {
                "ct": {"modality": "CT", "classes": ["a", "b"]},
                "mr": {"modality": "MR", "classes": ["a", "b", "c"]},
            },
            "ensemble": TWO if ensemble is None else ensemble,
        }
        values |= {"backbone": backbone | sections.pop("backbone", {})}
        return Study.parse(values | sections)

    return make


def images(count: int = 4) -> Tensor:
    """Return images in [0, 1]."""
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def seen(model: FederatedModel, x_BCHW: Tensor) -> Tensor:
    """Return images as a network wants them."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    return normalise(x_BCHW, mean, std)


def alone(study: Study) -> list[FederatedModel]:
    """Return each member as its own study builds it."""
    return [build_model(member) for member in study.members]


def own(arrays: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return a member's arrays by the names that they have in a network of its own."""
    inner = f".members.{number}."
    return {name.replace(inner, "."): v for name, v in arrays.items() if inner in name}


# ---- what it is made of


def test_the_probability_is_the_mean_of_the_members(study_of: Make) -> None:
    """Softmax of its logits is the mean of what the members say, each with its own colours."""
    study = study_of([*TWO, {"name": "squeezenet1_1"}])
    model, members = build_model(study).eval(), [one.eval() for one in alone(study)]
    assert len({member.mean for member in members}) > 1
    for task in study.tasks:
        with torch.no_grad():
            found = model(seen(model, images()), task).softmax(dim=1)
            each = [m(seen(m, images()), task).softmax(dim=1) for m in members]
        torch.testing.assert_close(found, sum(each) / len(each), rtol=1e-5, atol=1e-6)


def test_the_mean_probability_by_hand() -> None:
    """Logits of two members become the logarithm of the mean of their softmax; none overflows."""
    logits_MBK = torch.tensor([[[0.0, 0.0], [900.0, -900.0]], [[math.log(3), 0.0], [900.0, 0.0]]])
    found = mean_probability(logits_MBK)
    torch.testing.assert_close(found[0].exp(), torch.tensor([(0.5 + 0.75) / 2, 0.375]))
    assert found.isfinite().all()


def test_a_weighted_mean_by_hand() -> None:
    """Each member's softmax counts as it weighs, one of no weight not at all; none overflows."""
    logits_MBK = torch.tensor([[[0.0, 0.0], [900.0, -900.0]], [[math.log(3), 0.0], [0.0, 900.0]]])
    found = mean_probability(logits_MBK, torch.tensor([0.8, 0.2]))
    torch.testing.assert_close(found[0].exp(), torch.tensor([0.8 * 0.5 + 0.2 * 0.75, 0.45]))
    torch.testing.assert_close(found[1].exp(), torch.tensor([0.8, 0.2]))
    first = mean_probability(logits_MBK, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(first, logits_MBK[0].log_softmax(dim=1))


def test_equal_weights_are_the_plain_mean(study_of: Make) -> None:
    """A network whose members may come to weigh otherwise begins with the same probabilities."""
    three = [*TWO, {"name": "test_efficientnet"}]
    plain, weighed = (build_model(s).eval() for s in (study_of(three), study_of(three, **VOTES)))
    extra = weighed.state_dict().keys() - plain.state_dict().keys()
    assert extra == {votes_name("ct"), votes_name("mr")}
    put(weighed, take(plain, plain.state_dict()))
    x = seen(plain, images())
    with torch.no_grad():
        torch.testing.assert_close(weighed(x, "ct"), plain(x, "ct"), rtol=1e-6, atol=1e-6)
    alike = np.full(3, 1 / 3, np.float32)
    assert np.array_equal(take(weighed, extra)[votes_name("mr")], alike)
    put(weighed, {votes_name("mr"): np.array([1, 0, 0], np.float32)})
    vote_alike(weighed.heads.values())
    assert np.array_equal(take(weighed, extra)[votes_name("mr")], alike)


def test_votes_travel_by_themselves_and_not_to_train(study_of: Make) -> None:
    """They are a group for each task, which orders to train do not have; the rest is as ever."""
    study = study_of(**VOTES)
    layout = layout_of(build_model(study), study)
    plain = layout_of(build_model(study_of()), study_of())
    votes = {votes_group(task): (votes_name(task),) for task in ("ct", "mr")}
    assert layout.groups == {**plain.groups, **votes}
    assert (layout.base, layout.local) == (plain.base, plain.local)
    assert layout.groups_of(["ct"]) == plain.groups_of(["ct"])
    more = set(layout.groups_of(["ct"], trained=False)) - set(layout.groups_of(["ct"]))
    assert more == {votes_group("ct")}
    assert plain.groups_of(["ct"], trained=False) == plain.groups_of(["ct"])


@pytest.mark.parametrize("votes", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], [math.inf, 0.0]])
def test_votes_that_are_no_shares_are_refused(votes: list[float]) -> None:
    """They are finite, at least 0, and have the sum 1 in single precision."""
    with pytest.raises(ValueError, match="are not shares"):
        check_votes(np.array(votes, np.float32))
    check_votes(np.full(7, 1 / 7, np.float32))


def test_votes_are_not_trained(study_of: Make) -> None:
    """They have no gradient, and are none of the parameters that privacy or a strategy counts."""
    model = build_model(study_of(**VOTES)).train()
    head = model.heads["ct"]
    assert isinstance(head, MemberHeads)
    assert head.votes is not None
    model(seen(model, images()), "ct").sum().backward()
    assert head.votes.grad is None
    assert not [name for name, _ in model.named_parameters() if "votes" in name]


def test_members_that_are_alike_say_what_one_says(study_of: Make) -> None:
    """Two members with the same arrays have the probabilities of one of them."""
    study = study_of(ensemble=[{"seed": 3}, {"seed": 4}])
    model, single = build_model(study).eval(), build_model(study.members[0]).eval()
    state = model.state_dict()
    model.load_state_dict({n: state[n.replace("members.1", "members.0")] for n in state})
    with torch.no_grad():
        one, two = (m(seen(m, images()), "ct").softmax(dim=1) for m in (single, model))
    torch.testing.assert_close(one, two)


def test_each_member_begins_as_its_own_study_would(study_of: Make) -> None:
    """A member's arrays, heads among them, are those of a study of its backbone and its seed."""
    study = study_of(ensemble=[{}, {}, {"name": "test_convnext"}, {"seed": 90}])
    assert [member.seed for member in study.members] == [3, 4, 5, 90]
    state = build_model(study).state_dict()
    for number, member in enumerate(alone(study)):
        mine = own(state, number)
        assert set(mine) == set(member.state_dict())
        assert all(torch.equal(mine[n], value) for n, value in member.state_dict().items())


def test_its_arrays_travel_as_those_of_one_network(study_of: Make, tmp_path: Path) -> None:
    """Groups hold the arrays of all members, and a file of them is the same network again."""
    study = study_of()
    model = build_model(study)
    layout = layout_of(model, study)
    for number, member in enumerate(study.members):
        single = layout_of(build_model(member), member)
        inner = f".members.{number}."
        for group, names in single.groups.items():
            found = [n.replace(inner, ".") for n in layout.groups[group] if inner in n]
            assert tuple(found) == names
    assert set(layout.groups) == {SHARED, STATISTICS, head_group("ct"), head_group("mr")}
    assert "backbone.members.0.conv1.0.weight" in layout.groups[SHARED]
    assert "heads.ct.members.1.weight" in layout.groups[head_group("ct")]
    assert not [name for name in model.state_dict() if "scales" in name or "shifts" in name]
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    other = build_model(study.model_copy(update={"seed": 50}))
    read = {name: value.numpy() for name, value in load_file(tmp_path / "m.safetensors").items()}
    put(other, read)
    x = seen(model, images())
    with torch.no_grad():
        assert torch.equal(model.eval()(x, "mr"), other.eval()(x, "mr"))


def test_local_normalisation_is_of_all_members(study_of: Make) -> None:
    """With FedBN the batch normalisation of each member stays at its site."""
    pair = [{}, {"name": "test_efficientnet"}]
    study = study_of(pair, backbone={"normalisation": "local"})
    layout = layout_of(build_model(study), study)
    assert not layout.groups[STATISTICS]
    assert {name.split(".")[2] for name in layout.local} == {"0", "1"}
    with pytest.raises(StudyError, match=r"test_vit cannot be trained(.|\n)*no batch normal"):
        build_model(study_of([{}, {"name": "test_vit"}], backbone={"normalisation": "local"}))


# ---- how it learns


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"loss": "focal", "class_weights": "balanced"},
        {"label_smoothing": 0.1, "loss": "cross_entropy"},
    ],
)
def test_each_member_has_the_gradient_that_it_would_have_alone(
    study_of: Make, training: dict[str, Any]
) -> None:
    """Of the members' losses' sum, as each of its own loss; the loss that is told is their mean."""
    study = study_of(training=training)
    labels = torch.tensor([0, 1, 1, 0])
    loss_of = make_loss(study.training, [2, 2])
    model, singles = build_model(study).train(), [one.train() for one in alone(study)]
    logits = model.classify_apart(model.features(seen(model, images())), "ct")
    assert logits.shape == (2 * len(labels), 2)
    loss = loss_of(logits, labels.repeat(model.members))
    (model.members * loss).backward()
    grads = {name: value.grad for name, value in model.named_parameters()}
    losses = []
    for number, single in enumerate(singles):
        alone_loss = loss_of(single(seen(single, images()), "ct"), labels)
        alone_loss.backward()
        losses.append(alone_loss.item())
        mine = own(grads, number)
        for name, value in single.named_parameters():
            if value.grad is None:
                assert mine[name] is None
            else:
                torch.testing.assert_close(mine[name], value.grad, rtol=1e-3, atol=1e-5)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_pull_to_the_beginning_is_that_of_each_member(study_of: Make) -> None:
    """What is distilled is the sum over the members of what each one by itself would distil."""
    near = {"distillation_weight": 2.0, "anchor_weight": 0.5}
    backbone = {"weights": "start.safetensors"}
    ensemble = [{}, {"name": "test_convnext", "weights": "other.safetensors"}]
    study = study_of(ensemble, backbone=backbone, training=near)

    def pulled(model: FederatedModel, of: Study) -> float:
        initial = take(model, model.state_dict())
        held = near_of(model, of, initial)
        assert held is not None
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(1.1)
        x = seen(model, images())
        return held.penalty(x, model.eval().features(x)).item()

    found = pulled(build_model(study), study)
    each = [pulled(build_model(member), member) for member in study.members]
    assert found == pytest.approx(sum(each), rel=1e-3)


@pytest.mark.parametrize("train", ["head", "last:1", "last:2"])
def test_what_freezes_freezes_in_every_member(study_of: Make, train: str) -> None:
    """Each member trains the layers that it would train by itself."""
    weights = {"weights": "start.safetensors"}
    ensemble = [{}, {"name": "test_convnext", "weights": "other.safetensors"}]
    study = study_of(ensemble, backbone=weights, training={"train": train})
    model = build_model(study)
    asks = {name: value.requires_grad for name, value in model.named_parameters()}
    for number, single in enumerate(alone(study)):
        mine = {name: value.requires_grad for name, value in single.named_parameters()}
        assert own(asks, number) == mine
    assert not any(isinstance(m, _BatchNorm) for m in model.modules()) or train != "head"


def test_phases_count_stages_from_each_members_end(study_of: Make) -> None:
    """A member with fewer stages is thawed sooner; another one goes on."""
    weights = {"weights": "start.safetensors"}
    ensemble = [{}, {"name": "test_convnext", "weights": "other.safetensors"}]
    study = study_of(ensemble, backbone=weights, training={"unfreeze_every": 1})
    model, singles = build_model(study), alone(study)
    assert len(model.stages) == max(len(single.stages) for single in singles)
    for number in range(1, study.rounds + 1):
        with in_phase(model, study, number):
            asks = {name: value.requires_grad for name, value in model.named_parameters()}
        for place, (single, member) in enumerate(zip(singles, study.members, strict=True)):
            with in_phase(single, member, number):
                mine = {name: value.requires_grad for name, value in single.named_parameters()}
            assert own(asks, place) == mine


def test_features_of_frozen_backbones_are_kept(study_of: Make) -> None:
    """Where heads alone train, features of all members are kept, and give the same logits."""
    weights = {"weights": "start.safetensors"}
    ensemble = [{}, {"name": "test_convnext", "weights": "other.safetensors"}]
    for train, kept in (("head", True), ("last:1", False)):
        study = study_of(ensemble, backbone=weights, training={"train": train})
        model = build_model(study).eval()
        features = frozen_features(model, CPU, SIZE)
        assert (features is not None) == kept
        if features is not None:
            x = seen(model, images())
            with torch.no_grad():
                assert torch.equal(features.network.eval()(features.part(x), "ct"), model(x, "ct"))
            assert features.network.members == 2


def test_rates_fall_from_layer_to_layer_in_each_member(study_of: Make) -> None:
    """With layer-wise decay each parameter has the rate that it has in its member alone."""
    study = study_of(training={"layer_decay": 0.5, "backbone_lr": 1.0})
    model = build_model(study)

    def rates(network: FederatedModel) -> dict[str, float]:
        names = {value: name for name, value in network.named_parameters()}
        groups = make_optimizer(network, study.training).param_groups
        return {names[value]: group["lr"] for group in groups for value in group["params"]}

    for number, single in enumerate(alone(study)):
        assert own(rates(model), number) == rates(single)


@pytest.mark.parametrize(
    ("train", "sections"), [("all", {}), ("head", {}), ("all", VOTES)], ids=["all", "head", "votes"]
)
def test_gradients_of_single_patients_can_be_had(
    study_of: Make, train: str, sections: dict[str, Any]
) -> None:
    """The machinery of private training agrees with autograd on every image."""
    weights = {"weights": "start.safetensors", "normalisation": "frozen"}
    ensemble = [{}, {"name": "test_convnext", "weights": "other.safetensors"}]
    study = study_of(ensemble, backbone=weights, training={"train": train}, **sections)
    model = build_model(study)
    assert faults_of(model, seen(model, images(3)), "mr") == []


def test_a_patients_gradient_is_that_of_all_members_losses(study_of: Make) -> None:
    """What private training bounds is the norm over the members, of the sum of their losses."""
    weights = {"weights": "start.safetensors", "normalisation": "frozen"}
    model = build_model(study_of([{}, {"seed": 90}], backbone=weights)).train()
    x, labels = seen(model, images(3)), torch.tensor([0, 2, 1])
    loss_of = torch.nn.CrossEntropyLoss()
    apart = MembersApart(model)
    with PatientGradients(apart) as gradients:
        gradients.start(3, 1)
        total = 3 * loss_of(gradients.forward(x, "mr"), labels.repeat(2))
        norms = gradients.backward(model.members * total)
    for image, label, norm in zip(x.split(1), labels, norms, strict=True):
        parts = apart(image, "mr")
        loss = sum(loss_of(part[None], label[None]) for part in parts)
        slopes = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        whole = sum(slope.square().sum().item() for slope in slopes if slope is not None)
        assert norm.item() == pytest.approx(math.sqrt(whole), rel=1e-3)


def test_maps_are_of_the_first_member(study_of: Make) -> None:
    """The layer of a map is that of the first member, by its name within the ensemble."""
    study = study_of()
    model = build_model(study)
    layer = cam_layer(model.backbone, SIZE, CPU)
    first = cam_layer(build_model(study.members[0]).backbone, SIZE, CPU)
    assert (layer.name, layer.grid) == (f"members.0.{first.name}", first.grid)
    assert model.backbone.get_submodule(layer.name) is layer.module
