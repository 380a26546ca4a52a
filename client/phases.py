"""What a phase of a study makes of the network at a site: which layers train in a round.

The network is built as ``training.train`` says, and what travels stays the same over all rounds.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from client.features import FrozenFeatures, frozen_features
from client.views import views_of
from common.models import FederatedModel
from common.phases import train_in_round, width
from common.stages import Stage
from common.study import Study


@contextmanager
def in_phase(model: FederatedModel, study: Study, number: int) -> Iterator[None]:
    """Have the network train what a round's phase trains, and no more.

    The other stages get no gradient and stay in evaluation mode, so that neither their weights
    nor their statistics change. Afterwards the network is as it was, also after an error.

    Args:
        model: The network of ``study``.
        study: Its phases, if it has any.
        number: The round; 1, 2, ...
    """
    held = [value for value in _outside(model, study, number) if value.requires_grad]
    for value in held:
        value.requires_grad = False
        value.grad = None  # of a round before; a bound on the gradient's norm would count it
    before, model.resting = model.resting, _at_rest(model, study, number)
    try:
        yield
    finally:
        for value in held:
            value.requires_grad = True
        model.resting = before
        model.train(model.training)


class PhaseFeatures:
    """Where a site's features are kept: one phase's at a time.

    Args:
        model: The network of ``study``, on ``device``.
        study: Its phases and the size of its images.
        site: The site's name, which the variations of its images depend on.
        device: Where the arithmetic runs.
        log: Told once if ``training.views`` asks for features that this network cannot keep.
    """

    def __init__(
        self,
        model: FederatedModel,
        study: Study,
        site: str,
        device: torch.device,
        log: logging.Logger | None = None,
    ) -> None:
        self._model, self._study, self._device, self._log = model, study, device, log
        self._views = views_of(study, site)
        self._train = ""
        self._features: FrozenFeatures | None = None

    def in_round(self, number: int) -> FrozenFeatures | None:
        """Return where features are kept in a round; None where the whole network is run.

        Those of another phase are forgotten.

        Args:
            number: The round, whose arrays the network holds; 1, 2, ...
        """
        train = train_in_round(self._study.training, number, len(self._model.stages))
        if train != self._train:
            size = self._study.backbone.image_size
            with in_phase(self._model, self._study, number):
                self._features = frozen_features(self._model, self._device, size, self._views)
            self._train = train
            self._tell_of_views(train)
        return self._features

    def _tell_of_views(self, train: str) -> None:
        """Tell that images are varied anew where a part is frozen that cannot be run by itself."""
        in_vain = self._views is not None and self._features is None and train != "all"
        if in_vain and self._log is not None:
            self._log.warning(
                "training.views is passed over with train = %r: this network cannot be divided "
                "there, so images are varied anew each time and go through all of it",
                train,
            )
            self._log = None

    def refresh(self) -> None:
        """Forget all features if what the phase does not train came with other values.

        A phase freezes what travels in each round all the same: a coordinator's momentum may move
        it.
        """
        if self._features is not None:
            self._features.refresh()

    def forget(self) -> None:
        """Forget all features: the whole network has got other weights."""
        if self._features is not None:
            self._features.forget()


def _stages_outside(model: FederatedModel, study: Study, number: int) -> tuple[Stage, ...]:
    """Return the stages that a phase does not train; none in rounds without one."""
    training, stages = study.training, model.stages
    train = train_in_round(training, number, len(stages))
    return () if train == training.train else stages[: len(stages) - width(train, len(stages))]


def _outside(model: FederatedModel, study: Study, number: int) -> list[nn.Parameter]:
    """Return the parameters of the stages that do not train in a round, as far as still alive."""
    names = {n for stage in _stages_outside(model, study, number) for n in stage.parameters}
    return [value for name, value in model.backbone.named_parameters() if name in names]


def _at_rest(model: FederatedModel, study: Study, number: int) -> tuple[nn.Module, ...]:
    """Return the modules of which nothing trains in a phase, those in them included."""
    names = {n for stage in _stages_outside(model, study, number) for n in stage.modules}
    if not names:
        return ()
    found = []
    for name, module in model.backbone.named_modules():
        values = list(module.parameters())
        if (values or name in names) and not any(value.requires_grad for value in values):
            found.append(module)
    return tuple(found)
