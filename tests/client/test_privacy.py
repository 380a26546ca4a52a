"""Laws of differentially private training."""

import copy
import random
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.anchor import near_of
from client.dataset import Images
from client.features import channel_statistics
from client.losses import make_loss
from client.plan import Plan
from client.preprocess import normalise
from client.privacy import preflight, train_privately
from client.train import Trained
from common.errors import DivergedError, PrivacyError
from common.imaging import Augmentation
from common.models import FederatedModel, build_model
from common.study import Study
from common.training import Training
from common.weights import take

CPU = torch.device("cpu")
NOBODY = 1e-12
"""A rate at which nobody is ever drawn."""
MakeStudy = Callable[..., Study]
MakeImages = Callable[..., Images]
RESNET = {"name": "test_resnet", "normalisation": "frozen"}
UNIT_SGD = {"optimizer": "sgd", "weight_decay": 0.0, "head_lr": 1.0, "backbone_lr": 1.0}
"""With these the first step changes the weights by minus the gradient."""


class Mixing(nn.Module):
    """Takes half of the batch's mean away: no known layer, yet every image touches all others."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        found: Tensor = self.backbone(x)
        return found - 0.5 * found.mean(0, keepdim=True)


@pytest.fixture
def make(make_study: MakeStudy) -> MakeStudy:
    """Return the maker of studies of a frozen ResNet, unless a test says otherwise."""

    def study(tasks: tuple[str, ...] = ("ct",), **sections: Any) -> Study:
        training = UNIT_SGD | sections.pop("training", {})
        backbone = sections.pop("backbone", RESNET)
        return make_study(tasks, backbone=backbone, training=training, **sections)

    return study


@pytest.fixture
def both(make_images: MakeImages) -> dict[str, Images]:
    """Two tasks: six patients with two images of one, of whom two have two of the other as well."""
    return {"ct": make_images(12), "mr": make_images(4, classes=3, channels=3)}


def plan_for(images: dict[str, Images], **given: Any) -> Plan:
    patients = len({patient for data in images.values() for patient in data.patients})
    quiet = Plan(0.0, 1.0, 1, patients, 1.0, 64, 8.0, 1e-3)
    return quiet._replace(**given)


def model_of(study: Study, *, heads: float = 1.0) -> FederatedModel:
    """Return the study's network, its heads' weights times ``heads``."""
    model = build_model(study).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for head in model.heads.values():
            for parameter in head.parameters():
                parameter.mul_(heads)
    return model


def run(
    study: Study, images: dict[str, Images], plan: Plan, *, heads: float = 1.0
) -> tuple[Trained, dict[str, Tensor], FederatedModel]:
    """Train the study's network; return what was done, the change of each weight, the network."""
    model = model_of(study, heads=heads)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    done = train_privately(model, images, study, plan, device=CPU)
    return done, {n: p.detach() - before[n] for n, p in model.named_parameters()}, model


def flat(arrays: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in arrays.values()])


def of_one(images: dict[str, Images], patient: str) -> dict[str, Images]:
    found = {}
    for task, data in images.items():
        own = [i for i, p in enumerate(data.patients) if p == patient]
        if own:
            found[task] = Images(data.pixels[own], data.labels[own], (patient,) * len(own))
    return found


def gradient_by_autograd(model: FederatedModel, images: dict[str, Images], study: Study) -> Tensor:
    """Return the gradient of the mean loss over all images, as one vector."""
    other = copy.deepcopy(model).train()
    count = sum(len(data) for data in images.values())
    total = torch.zeros(())
    for task, data in images.items():
        x_BCHW = normalise(data.pixels, *channel_statistics(other, CPU))
        total = total + make_loss(study.training)(other(x_BCHW, task), data.labels) * len(data)
    trained = [p for p in other.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(total / count, trained, materialize_grads=True)
    return torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.parametrize(
    ("name", "train", "loss"),
    [
        ("test_resnet", "all", "cross_entropy"),
        ("test_resnet", "all", "focal"),
        ("test_resnet", "last:1", "cross_entropy"),
        ("test_resnet", "head", "cross_entropy"),
        ("test_convnext", "all", "cross_entropy"),
        ("test_convnext", "last:1", "cross_entropy"),
        ("test_vit", "all", "cross_entropy"),
        ("test_vit", "head", "focal"),
    ],
)
def test_a_step_is_the_mean_of_clipped_gradients(
    name: str, train: str, loss: str, make: MakeStudy, both: dict[str, Images]
) -> None:
    """Without noise the step is a loop's: each patient's mean gradient, cut to C, summed, / qN."""
    backbone = RESNET | {"name": name}
    study = make(("ct", "mr"), backbone=backbone, training={"train": train, "loss": loss})
    model = model_of(study, heads=30)
    patients = sorted(set(both["ct"].patients))
    rows = [gradient_by_autograd(model, of_one(both, patient), study) for patient in patients]
    norms = torch.stack([row.norm() for row in rows])
    clip = norms.median().item()  # so that some are cut, and some are not
    assert norms.min() < clip < norms.max()
    expected = sum(row * min(1.0, clip / row.norm().item()) for row in rows) / len(rows)
    _, change, trained = run(study, both, plan_for(both, clip_norm=clip), heads=30)
    names = [name for name, p in trained.named_parameters() if p.requires_grad]
    assert all(change[name].eq(0).all() for name in set(change) - set(names))
    found = -flat({name: change[name] for name in names})
    assert (found - expected).norm() <= 1e-5 * clip


def test_a_patient_moves_the_sum_by_at_most_the_bound(
    make: MakeStudy, both: dict[str, Images]
) -> None:
    """Without one patient, with images of both tasks, the clipped sum differs by at most C."""
    study = make(("ct", "mr"))
    clip = 0.5
    _, whole, _ = run(study, both, plan_for(both, clip_norm=clip), heads=1000)
    moved = []
    for patient in sorted(set(both["ct"].patients)):
        left = {
            task: Images(
                data.pixels[keep], data.labels[keep], tuple(data.patients[i] for i in keep)
            )
            for task, data in both.items()
            for keep in [[i for i, p in enumerate(data.patients) if p != patient]]
        }
        _, without, _ = run(study, left, plan_for(left, clip_norm=clip), heads=1000)
        moved.append((6 * flat(whole) - 5 * flat(without)).norm().item())
    # The patients' gradients are far beyond the bound, so it is reached too.
    assert max(moved) <= clip * (1 + 1e-4)
    assert min(moved) >= clip * (1 - 1e-3)


@pytest.mark.parametrize("most", [2, 3, 7])
def test_chunks_do_not_change_the_step(most: int, make: MakeStudy, both: dict[str, Images]) -> None:
    """Patients that go through the network in small chunks give the step of all at once."""
    changes = []
    for batch_size in (64, most):
        study = make(("ct", "mr"), training={"batch_size": batch_size})
        done, change, _ = run(study, both, plan_for(both))
        changes.append((done.loss, flat(change)))
    (loss, whole), (other_loss, parts) = changes
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert (parts - whole).norm() <= 1e-5 * whole.norm()


def test_the_proximal_term_is_added_whole(make: MakeStudy, both: dict[str, Images]) -> None:
    """In the second step FedProx adds mu (w - w_start), which no bound of the gradients cuts."""
    rate, mu, clip = 0.1, 1000.0, 1e-2
    slow = {"head_lr": rate, "backbone_lr": rate}
    prox = {"strategy": "fedprox", "options": {"proximal_mu": mu}}
    plain, proximal = (
        make(("ct", "mr"), training=slow, federation=federation) for federation in ({}, prox)
    )
    plan = plan_for(both, clip_norm=clip)
    _, first, _ = run(plain, both, plan)
    _, without, _ = run(plain, both, plan._replace(steps=2))
    _, found, _ = run(proximal, both, plan._replace(steps=2))
    term = -rate * mu * flat(first)
    assert term.norm() > 10 * rate * clip  # beyond what clipped gradients could do
    assert ((flat(found) - flat(without)) - term).norm() <= 1e-3 * term.norm()


def test_the_anchor_is_added_whole(make: MakeStudy, both: dict[str, Images]) -> None:
    """A step adds anchor_weight (w - w0) for the backbone, which no bound of the gradients cuts."""
    rate, anchor, clip = 0.125, 2.0, 1e-2
    training = {"anchor_weight": anchor, "head_lr": rate, "backbone_lr": rate}
    study, plan = make(("ct", "mr"), training=training), plan_for(both, clip_norm=clip)
    found = []
    for off in (0.0, 1.0):
        model = model_of(study)
        initial = take(model, model.state_dict())
        near = near_of(model, study, {name: value + off for name, value in initial.items()})
        train_privately(model, both, study, plan, device=CPU, near=near)
        found.append({name: value.detach() for name, value in model.named_parameters()})
    here, there = found
    for name, value in there.items():
        pull = rate * anchor if name.startswith("backbone.") else 0.0
        assert torch.allclose(value - here[name], torch.full_like(value, pull), atol=1e-5), name


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_an_empty_draw_is_a_step_of_noise(
    name: str, make: MakeStudy, both: dict[str, Images]
) -> None:
    """Steps that draw nobody count, and change every trained weight by noise, each head's too."""
    study = make(("ct", "mr"), backbone=RESNET | {"name": name})
    plan = plan_for(both, sample_rate=NOBODY, noise_multiplier=NOBODY, steps=3)
    done, change, _ = run(study, both, plan)
    assert done == Trained(steps=3, loss=0.0)
    assert all(value.ne(0).all() for value in change.values())
    # A patient invented for the draw would move the weights by clip_norm / (q N), 10^11.
    assert all(value.abs().max() < 10 for value in change.values())


@pytest.mark.parametrize("train", ["all", "head"])
def test_the_noise_has_the_promised_deviation(
    train: str, make: MakeStudy, both: dict[str, Images]
) -> None:
    """The noise of a step is normal with deviation sigma C / (q N), the same for each weight."""
    study = make(("ct", "mr"), training={"train": train})
    sigma, clip = 3.0, 2.0
    plan = plan_for(both, sample_rate=NOBODY, noise_multiplier=sigma * NOBODY, clip_norm=clip)
    _, change, model = run(study, both, plan)
    trained = {n: change[n] for n, p in model.named_parameters() if p.requires_grad}
    noise = flat(trained) / (sigma * clip / 6)
    count = len(noise)
    assert abs(noise.square().mean().item() - 1) < 5 * (2 / count) ** 0.5  # chi-square
    assert abs(noise.mean().item()) < 5 * count**-0.5
    assert abs(noise.abs().lt(1).float().mean().item() - 0.6827) < 5 * 0.4654 * count**-0.5
    for value in trained.values():
        part = value / (sigma * clip / 6)
        assert (
            abs(part.square().mean().item() - 1) < 6 * (2 / part.numel()) ** 0.5 + 30 / part.numel()
        )


def test_no_seed_brings_the_noise_back(make: MakeStudy, both: dict[str, Images]) -> None:
    """Two runs with all generators seeded alike have noise that is not correlated."""
    study = make(("ct", "mr"))
    plan = plan_for(both, sample_rate=NOBODY, noise_multiplier=NOBODY)
    noises = []
    for _ in range(2):
        random.seed(study.seed)
        np.random.seed(study.seed)  # noqa: NPY002 - the global state is what is looked at
        torch.manual_seed(study.seed)
        noises.append(flat(run(study, both, plan)[1]))
    assert abs(torch.corrcoef(torch.stack(noises))[0, 1].item()) < 5 * len(noises[0]) ** -0.5


def test_global_randomness_is_untouched(make: MakeStudy, both: dict[str, Images]) -> None:
    """Draws and noise leave the random states of Python, NumPy and torch as they were."""
    study = make(("ct", "mr"))

    def state() -> tuple[object, ...]:
        numpy_state = str(np.random.get_state(legacy=False))  # noqa: NPY002 - the global one
        return random.getstate(), numpy_state, torch.get_rng_state().numpy().tobytes()

    model = model_of(study)
    before = state()
    plan = plan_for(both, noise_multiplier=1.0, sample_rate=0.5, images_per_patient=1, steps=2)
    preflight(model, study)
    train_privately(model, both, study, plan, device=CPU)
    assert state() == before


def test_dropout_is_no_secret_of_the_study(make: MakeStudy, both: dict[str, Images]) -> None:
    """What is dropped hangs on no seed: else one patient would shift the others' known masks."""
    study = make(("ct", "mr"))
    start, changes = model_of(study), []
    start.backbone = nn.Sequential(start.backbone, nn.Dropout(0.5))
    for _ in range(2):
        torch.manual_seed(study.seed)
        before, model = torch.get_rng_state(), copy.deepcopy(start)
        train_privately(model, both, study, plan_for(both), device=CPU)
        changes.append(flat(dict(model.named_parameters())))
        assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(changes[0], changes[1], atol=1e-4)


@pytest.mark.parametrize("train", ["all", "last:1", "head"])
def test_the_network_is_left_as_plain_training_leaves_it(
    train: str, make: MakeStudy, both: dict[str, Images]
) -> None:
    """Afterwards: no hooks, no marks, keys and frozen statistics the same, training mode."""
    study = make(("ct", "mr"), training={"train": train})
    model = model_of(study)
    keys, marks = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    preflight(model, study)
    train_privately(model, both, study, plan_for(both, noise_multiplier=1.0, steps=2), device=CPU)
    assert list(model.state_dict()) == keys
    assert [p.requires_grad for p in model.parameters()] == marks
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(not vars(p) and p.grad is None for p in model.parameters())
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert not any(m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_the_head_of_a_task_that_is_not_here_stays(
    make: MakeStudy, make_images: MakeImages
) -> None:
    """No noise goes into a head whose task the site does not hold."""
    images = {"ct": make_images(6)}
    _, change, model = run(make(("ct", "mr")), images, plan_for(images, noise_multiplier=1.0))
    assert {n for n, value in change.items() if not value.any()} == {
        "heads.mr.weight",
        "heads.mr.bias",
    }
    assert all(p.requires_grad for p in model.parameters())


def test_the_loss_is_the_mean_over_the_drawn_images(
    make: MakeStudy, both: dict[str, Images]
) -> None:
    """The loss for the site's own log is plain cross-entropy before the step."""
    study = make(("ct", "mr"))
    model = model_of(study).eval()
    losses = [
        nn.functional.cross_entropy(
            model(normalise(data.pixels, *channel_statistics(model, CPU)), task),
            data.labels,
            reduction="none",
        )
        for task, data in both.items()
    ]
    done, _, _ = run(study, both, plan_for(both))
    assert done.loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def varying(study: Study, **changes: Any) -> Study:
    """Return a study whose tasks all vary their training images."""
    asked = Augmentation(**changes)
    tasks = {n: task.model_copy(update={"augmentation": asked}) for n, task in study.tasks.items()}
    return study.model_copy(update={"tasks": tasks})


@pytest.mark.parametrize("train", ["all", "last:1", "head"])
def test_varied_images_train_privately(
    train: str, make: MakeStudy, both: dict[str, Images]
) -> None:
    """Changes of nothing give the step without them; real ones hang on no seed of the study."""
    study = make(("ct", "mr"), training={"train": train})
    zeros = dict.fromkeys(["rotation", "zoom", "contrast", "brightness", "elastic", "noise"], 0.0)
    steps = []
    for changes in (None, zeros, {"rotation": 90.0}, {"rotation": 90.0}):
        asked = study if changes is None else varying(study, **changes)
        preflight(model_of(asked), asked)
        torch.manual_seed(study.seed)
        before = torch.get_rng_state()
        steps.append(flat(run(asked, both, plan_for(both, clip_norm=10.0))[1]))
        assert torch.equal(torch.get_rng_state(), before)
    plain, nothing, one, other = steps
    assert torch.allclose(nothing, plain, atol=1e-5)
    assert not torch.allclose(one, plain, atol=1e-4)
    assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("loss", get_args(Training.model_fields["loss"].annotation))
def test_no_image_weighs_in_the_loss_of_another(loss: Any) -> None:
    """Of every loss: the slope at an image's logits is the same whatever the others' labels."""
    loss_of = make_loss(Training(loss=loss))
    logits_BK = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slopes = [
        torch.autograd.grad(loss_of(logits_BK, torch.tensor([0, *others])), logits_BK)[0][0]
        for others in ((0, 0, 0), (1, 1, 2), (2, 1, 0))
    ]
    assert slopes[0].any()
    assert torch.equal(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2])


def test_a_plan_for_others_is_refused(make: MakeStudy, both: dict[str, Images]) -> None:
    """A plan with another number of patients than there are is not carried out."""
    with pytest.raises(PrivacyError, match="for 7 training patients, but there are 6"):
        run(make(("ct", "mr")), both, plan_for(both, patients=7))


@pytest.mark.parametrize("train", ["all", "head"])
def test_what_is_not_finite_is_an_error(
    train: str, make: MakeStudy, both: dict[str, Images]
) -> None:
    """A network that is no longer finite, before or after the step, is not handed back as one."""
    study = make(("ct", "mr"), training={"train": train})
    model = model_of(study)
    with torch.no_grad():
        next(model.heads["ct"].parameters())[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="not finite"):
        train_privately(model, both, study, plan_for(both), device=CPU)
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(DivergedError, match="no longer finite after 1 steps"):
        run(study, both, plan_for(both, noise_multiplier=1e38, clip_norm=1e3))


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "test_resnet"},
        {"name": "test_efficientnet"},
    ],
)
def test_living_batch_norm_is_refused(backbone: dict[str, Any], make_study: MakeStudy) -> None:
    """Batch norm that would learn from all images of a batch is refused before any is read."""
    study = make_study(backbone=backbone)
    with pytest.raises(PrivacyError, match="BatchNorm"):
        preflight(build_model(study), study)


@pytest.mark.parametrize("train", ["all", "last:1", "head"])
def test_the_preflight_names_backbone_and_remedy(train: str, make: MakeStudy) -> None:
    """A network that mixes images in disguise is refused by name, but not where it is frozen."""
    study = make(training={"train": train})
    model = build_model(study)
    mode = model.training
    preflight(model, study)
    model.backbone = Mixing(model.backbone)
    if train == "head":
        preflight(model, study)
    else:
        with pytest.raises(PrivacyError, match=r"of test_resnet:\n  - .*autograd") as refused:
            preflight(model, study)
        assert 'train = "head"' in refused.value.remedy
    assert all(module.training == mode for module in model.modules())
