"""Weights of training images that come from elsewhere, by how like the site's own they are.

The weight of such an image is the ratio of the two densities at its features, p_own / p_source,
which is importance weighting under covariate shift (Shimodaira 2000; Sugiyama, Suzuki and Kanamori
2012, "Density Ratio Estimation in Machine Learning", chapter 4: by logistic regression). Features
are those of the network as the round finds it.
Shapes: N images, D features.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.dataset import Images
from client.features import FrozenFeatures, batches_of
from client.out_of_distribution import pooled_features
from common.models import FederatedModel
from common.seeds import stream
from common.study import Study

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

FOLDS = 5
COMPONENTS = 16
"""Principal components of the features that tell source from own; with more, a few images could
always be told apart."""
MOST = 10.0
"""Most that an image may weigh more, or less, than the median one of the source."""

Floats = NDArray[np.float64]


def source_weights(
    model: FederatedModel,
    images: Mapping[str, Images],
    study: Study,
    *,
    device: torch.device,
    features: FrozenFeatures | None = None,
) -> dict[str, Tensor]:
    """Return what each training image weighs, float32 of shape (N,), by task.

    Tasks without source images are left out, and all of them where the study asks for no weights.

    Args:
        model: The network on ``device``; it is in evaluation mode afterwards.
        images: Training images by task.
        study: Whose ``training.source_weighting`` asks for them.
        device: Where the arithmetic runs.
        features: Where those of the images are kept; None where the whole network is run.

    Raises:
        DivergedError: A feature is not finite.
    """
    found: dict[str, Tensor] = {}
    for task, own in images.items() if study.training.source_weighting == "similarity" else ():
        source_N = np.array([bool(origin.row.source) for origin in own.origins], bool)
        if source_N.any() and not source_N.all():
            features_ND = _features_of(model, own, device, features)
            seed = stream(study.seed, "source", task)
            weights_N = similarity_weights(features_ND, source_N, own.patients, seed=seed)
            found[task] = torch.from_numpy(weights_N).float().to(device)
    return found


def similarity_weights(
    features_ND: NDArray[np.floating],
    source_N: NDArray[np.bool_],
    patients: Sequence[str],
    *,
    seed: int,
) -> Floats:
    """Return what each image weighs, shape (N,): one on average over the source, and the own ones.

    A logistic regression tells source from own; what it says of an image comes from patients that
    it was not fitted on. The ratio is cut at ``MOST`` times the median of the source, and its
    inverse. With fewer than two patients on either side nothing is told, and all weigh one.

    Args:
        features_ND: Of all training images.
        source_N: Which of them come from elsewhere.
        patients: Of each image.
        seed: Of how patients are dealt into folds, in [0, 2**63).
    """
    from sklearn.model_selection import PredefinedSplit, cross_val_predict  # noqa: PLC0415 - slow

    weights_N: Floats = np.ones(len(source_N))
    folds_N = _folds(source_N, patients, seed)
    if folds_N is None:
        return weights_N
    # Patients are dealt, not images: a fold to fit on may have few of them, yet two at least.
    fewest = len(source_N) - int(np.bincount(folds_N).max())
    most = min(len(source_N) // 2, fewest) - 1
    log_ratios_N = cross_val_predict(
        _regression(min(COMPONENTS, features_ND.shape[1], most)),
        features_ND.astype(np.float64),
        ~source_N,
        cv=PredefinedSplit(folds_N),
        method="decision_function",
    )
    of_source = log_ratios_N[source_N]
    ratios = np.exp(np.clip(of_source - np.median(of_source), -np.log(MOST), np.log(MOST)))
    weights_N[source_N] = ratios / ratios.mean()
    return weights_N


def _folds(
    source_N: NDArray[np.bool_], patients: Sequence[str], seed: int
) -> NDArray[np.int64] | None:
    """Deal the patients of either side into folds in turn, so that every fold has both."""
    rng = np.random.default_rng(seed)
    owners_N = np.array(patients, str)
    sides = [(side_N, np.unique(owners_N[side_N])) for side_N in (source_N, ~source_N)]
    count = min(FOLDS, *(len(names) for _, names in sides))
    if count < 2:  # noqa: PLR2004 - one to fit on, one to ask about
        return None
    folds_N = np.zeros(len(source_N), np.int64)
    for side_N, names in sides:
        of_names = rng.permutation(len(names)) % count
        folds_N[side_N] = of_names[np.searchsorted(names, owners_N[side_N])]
    return folds_N


def _regression(components: int) -> "Pipeline":
    """Return a classifier whose decision is log(p_own / p_source): both sides weigh the same."""
    from sklearn.decomposition import PCA  # noqa: PLC0415 - takes a second to import
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    return make_pipeline(
        StandardScaler(),
        PCA(components, svd_solver="full"),
        LogisticRegression(class_weight="balanced", max_iter=1000),
    )


def _features_of(
    model: FederatedModel, images: Images, device: torch.device, features: FrozenFeatures | None
) -> NDArray[np.float32]:
    model.eval()
    if features is None:
        return pooled_features(model, images, device=device)
    features.network.eval()
    with torch.no_grad():  # what is kept is trained on later, which inference mode would forbid
        parts = [features.network.features(features.of(images, b)) for b in batches_of(images)]
    found: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
    return found
