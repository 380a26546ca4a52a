"""Making the sites' features alike, without any site seeing another's.

A discriminator learns to tell at which site an image was made from its features, and the backbone
learns to hide it (Ganin et al. 2016). No site has features of another: each teaches its copy of
the discriminator its own number, and what can tell sites apart is only the average of the copies,
which comes with the next round. At a site

    loss + CE(d(f(x)), own number) + weight * ramp * CE(d0(f(x)), 1/S each)

is minimised. The second term trains the discriminator d alone, and the third the backbone f alone,
against d0, the discriminator as it came. The third is the confusion of Tzeng et al. 2015 in place
of a reversed gradient: at a site, where all images have one number, d soon says it of every image.
To reverse that gradient drives a site's features away without end; the confusion of d0 has its
least where d0 says each number equally often.

Shapes: B batch, D features, S sites.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import OrderError
from common.models import FederatedModel
from common.study import Study


class Alignment:
    """What makes a site's features like those of the others, in one round.

    Args:
        discriminator: The network's own as the round begins, from features to the logits of S
            sites.
        study: Its weight, and how many rounds it has.
        place: The site's number, 0 to S - 1.
        number: The round; 1, 2, ...
    """

    def __init__(self, discriminator: nn.Module, study: Study, place: int, number: int) -> None:
        self._discriminator, self._place = discriminator, place
        self._before = copy.deepcopy(discriminator).requires_grad_(requires_grad=False)
        self._weight = study.training.adversarial_weight
        self._number, self._rounds = number, study.rounds

    def loss(self, features_BD: Tensor, done: float) -> Tensor:
        """Return what is added to the loss: what the discriminator and what the backbone minimises.

        Args:
            features_BD: What the backbone gave, before any dropout.
            done: Share of the round's steps that are done, 0 to below 1.

        Returns:
            A scalar, the mean over the images.
        """
        own_B = torch.full((len(features_BD),), self._place, device=features_BD.device)
        tells = F.cross_entropy(self._discriminator(features_BD.detach()), own_B)
        hides = -F.log_softmax(self._before(features_BD), dim=1).mean()
        weight = self._weight * ramp((self._number - 1 + done) / self._rounds)
        return tells + weight * hides


def ramp(progress: float) -> float:
    """Return the share of its weight that hiding has so far: 2 / (1 + exp(-10 p)) - 1.

    The discriminator, which begins at random, first has to know something (Ganin et al. 2016,
    section 5.2).

    Args:
        progress: p, how much of the study is done, 0 to 1.
    """
    return 2 / (1 + math.exp(-10 * progress)) - 1


def check_place(study: Study, place: int | None) -> None:
    """Refuse an order to train that does not say which site this is, where the study needs it.

    Raises:
        OrderError: It does not, or gives a number that the study has not.
    """
    most = study.training.adversarial_sites
    if most is not None and (place is None or place >= most):
        raise OrderError(
            f"The order gives this site the number {place}, where 0 to {most - 1} are asked for."
        )


def alignment_of(
    model: FederatedModel, study: Study, place: int | None, number: int
) -> Alignment | None:
    """Return what makes the site's features like the others'; None where nothing is to.

    Args:
        model: The network.
        study: As ``Alignment`` takes it.
        place: The site's number, as its order says it.
        number: The round.

    Raises:
        OrderError: As ``check_place``.
    """
    if model.discriminator is None:
        return None
    check_place(study, place)
    return Alignment(model.discriminator, study, place or 0, number)
