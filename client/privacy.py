"""Differentially private training of one round: DP-SGD (Abadi et al. 2016), patient by patient.

A step draws patients at random. The gradient of each, the mean over its drawn images and over all
trained parameters as one vector, is cut to the norm C; the sum over the patients gets Gaussian
noise and is divided by the expected number of patients. One patient more or less changes the sum
by at most C, whatever its images and tasks.

Shapes: n patients of a chunk, B images, D features.
"""

import math
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from client.anchor import Near
from client.dataset import Images
from client.features import FrozenFeatures, frozen_features
from client.frozen_stages import frozen_part
from client.losses import Loss, make_loss
from client.objective import make_pull
from client.optim import make_optimizer, set_rates
from client.plan import Plan
from client.private_batches import Chunk, Picture, chunks, draw, pictures_by_patient
from client.private_check import faults_of
from client.private_gradients import PatientGradients
from client.private_noise import noise_for
from client.schedule import rate_factors
from client.train import Inputs, Trained, is_finite, training_inputs
from common.errors import DivergedError, PrivacyError
from common.models import FederatedModel
from common.private_models import check_private
from common.study import Study


class MembersApart(nn.Module):
    """A network that gives the logits that a loss is of, of each member of an ensemble its own.

    Args:
        network: Whose parameters it has.
    """

    def __init__(self, network: FederatedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, task: str) -> Tensor:
        """Return logits of images, or of features, as ``classify_apart`` does."""
        return self.network.classify_apart(self.network.features(x), task)


def train_privately(
    model: FederatedModel,
    images: Mapping[str, Images],
    study: Study,
    plan: Plan,
    *,
    device: torch.device,
    number: int = 1,
    lowered: int = 0,
    near: Near | None = None,
    features: FrozenFeatures | None = None,
) -> Trained:
    """Train ``model`` in place, with the steps, draws and noise of ``plan``.

    A step that draws nobody adds noise alone: leaving it out would tell that nobody was drawn.
    Draws, noise, dropout and augmentation take their randomness from the operating system,
    whatever was seeded. What does not train is in evaluation mode, without dropout, and what it
    gives of images that are not varied is computed once.

    Args:
        model: The network on ``device``; ``preflight`` has found it fit.
        images: Training images by task.
        study: Loss, optimizer, schedule, strategy and augmentation.
        plan: What makes the training private.
        device: Where the arithmetic runs.
        number: The round, from 1, which says where in its schedule the study is.
        lowered: How many times the schedule ``plateau`` has lowered the rates so far.
        near: What holds the weights near the initial ones, if the study asks for it.
        features: Where those of the images are kept from round to round, if they are.

    Returns:
        The steps made and the mean loss over the drawn images. No noise covers that loss: it is
        for the site's own log.

    Raises:
        PrivacyError: The images are not those of the patients that the plan was made for.
        DivergedError: The loss, a gradient or an array of the network is no longer finite; the
            caller discards the model.
    """
    patients = pictures_by_patient(images)
    if len(patients) != plan.patients:
        raise PrivacyError(
            f"The plan is for {plan.patients} training patients, but there are {len(patients)}.",
            remedy="Plan again for the patients that there are.",
        )
    schedule = study.training.schedule
    factors = rate_factors(schedule, number, study.rounds, plan.steps, lowered=lowered)
    with _without_heads(model, set(study.tasks) - set(images)), torch.random.fork_rng():
        # For dropout and augmentation: with a seed that others know, a patient would shift the
        # others' masks and variations.
        torch.manual_seed(secrets.randbits(63))
        features = features or frozen_features(model, device, study.backbone.image_size)
        return _train(
            model, images, patients, study, plan,
            device=device, factors=factors, near=near, features=features,
        )  # fmt: skip


@contextmanager
def _without_heads(model: FederatedModel, tasks: Collection[str]) -> Iterator[None]:
    """Have the heads of tasks that the site does not hold not train: they would get noise alone."""
    absent = [model.heads[task] for task in tasks]
    for head in absent:
        head.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        for head in absent:
            head.requires_grad_()


def _train(
    model: FederatedModel,
    images: Mapping[str, Images],
    patients: Sequence[Sequence[Picture]],
    study: Study,
    plan: Plan,
    *,
    device: torch.device,
    factors: Sequence[float],
    near: Near | None,
    features: FrozenFeatures | None,
) -> Trained:
    pull = make_pull(model, study, near)
    optimizer = make_optimizer(model, study.training)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    network = model if features is None else features.network
    inputs = training_inputs(model, images, study, device=device, features=features, generator=None)
    loss_of, weight = make_loss(study.training), network.members * study.training.task_weight
    model.train()
    network.train()
    seen, total = 0, 0.0
    watched = PatientGradients(MembersApart(network))
    with noise_for(optimizer, plan, device) as add_noise, watched as gradients:
        for factor in factors:
            set_rates(optimizer, factor)
            drawn = draw(
                patients,
                sample_rate=plan.sample_rate,
                images_per_patient=plan.images_per_patient,
            )
            sums = {p: torch.zeros_like(p, requires_grad=False) for p in trained}
            for chunk in chunks(drawn, images=study.training.batch_size):
                total += _add_chunk(
                    sums, gradients, chunk, images, inputs, loss_of, weight, plan.clip_norm
                )
                seen += chunk.patients * chunk.images_each
            add_noise(sums)
            # After the noise: these hang on no patient, and are not to be cut with one.
            pull()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    if not is_finite(model):
        raise _diverged(f"The network is no longer finite after {plan.steps} steps.")
    return Trained(plan.steps, total / seen if seen else 0.0)


def preflight(model: FederatedModel, study: Study) -> None:
    """Refuse a network of which patients' gradients cannot be had, before any image is read.

    The machinery of the training tells the gradients of two random images apart, and must agree
    with autograd on each image by itself.

    Raises:
        PrivacyError: Names the backbone, what is wrong with it and the remedy.
    """
    check_private(model)
    task, size = next(iter(study.tasks)), study.backbone.image_size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, size, size, generator=generator).to(next(model.parameters()).device)
    mode = model.training
    part = frozen_part(model, size)
    wrong = faults_of(model, x, task) if part is None else faults_of(part.behind, part(x), task)
    model.train(mode)
    if wrong:
        raise PrivacyError(
            f"The gradients of single patients cannot be had of {study.network}:\n"
            + "\n".join(f"  - {fault}" for fault in wrong[:10]),
            remedy='Use training.train = "head", which any backbone can, or a backbone such as '
            "a ResNet with frozen normalisation, a ConvNeXt or a ViT.",
        )


def _add_chunk(
    sums: dict[nn.Parameter, Tensor],
    gradients: PatientGradients,
    chunk: Chunk,
    images: Mapping[str, Images],
    inputs: Inputs,
    loss_of: Loss,
    weight: float,
    clip_norm: float,
) -> float:
    """Add the clipped gradients of a chunk's patients up; return the sum of its images' losses."""
    gradients.start(chunk.patients, chunk.images_each)
    total = torch.zeros(())
    for task, indices in chunk.indices.items():
        flat = indices.ravel()
        logits_BK = gradients.forward(inputs(task, flat), task)
        labels_B = images[task].labels[torch.from_numpy(flat)].to(logits_BK.device)
        labels_B = labels_B.repeat(len(logits_BK) // len(flat))  # for each member of an ensemble
        total = total.to(logits_BK.device) + len(flat) * loss_of(logits_BK, labels_B)
    norms_n = gradients.backward(weight * total / chunk.images_each)
    loss = total.item()
    if not (math.isfinite(loss) and bool(norms_n.isfinite().all())):
        raise _diverged("The loss or the gradient of a patient is not finite.")
    factors_n = (clip_norm / (norms_n + 1e-6)).clamp(max=1.0)
    for parameter, found in gradients.sums(factors_n).items():
        sums[parameter] += found
    gradients.forget()
    return loss


def _diverged(what: str) -> DivergedError:
    return DivergedError(
        what, remedy="Lower training.head_lr or training.backbone_lr, or set privacy.clip_norm."
    )
