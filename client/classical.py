"""Classifiers of scikit-learn on features that are computed once: what networks are measured by.

They are fitted at once, without rounds, on one site's images; nothing of them is kept or sent.
Shapes: N training images, M images that are asked about, D features, K classes.
"""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Features = Literal["backbone", "handcrafted"]
Classifier = Literal["logistic", "svm", "forest", "elm"]
Floats = NDArray[np.float64]

FLOOR = 1e-6
"""Least probability of a class: one that the classifier has never seen, or no tree speaks for."""
TREES = 500
"""Of the random forest."""
HIDDEN = 500
"""Units of the extreme learning machine's hidden layer."""
_STEPS = 5000
"""Most steps of the logistic regression; it stops where it has converged."""


def fit_and_ask(
    features_ND: NDArray[np.floating],
    labels_N: NDArray[np.integer],
    asked_MD: NDArray[np.floating],
    classifier: Classifier,
    *,
    classes: int,
    balanced: bool = False,
    seed: int = 0,
) -> Floats:
    """Fit a classifier, and return the logarithm of what it says of each class, shape (M, K).

    Features are standardised by those it is fitted on. The settings are scikit-learn's defaults:

    - ``logistic``: multinomial logistic regression with an L2 penalty (C = 1).
    - ``svm``: support vectors with a Gaussian kernel, C = 1. What it says is the softmax of its
      margins, which is no calibrated probability: Platt's method would need folds of patients that
      a site with a rare disease does not have.
    - ``forest``: a random forest (Breiman 2001) of ``TREES`` trees.
    - ``elm``: extreme learning machine (Huang, Zhu and Siew 2006, Neurocomputing 70): a hidden
      layer of ``HIDDEN`` random units, and ridge regression (alpha = 1) on the classes as -1 and 1,
      as Huang et al. 2012 add. The softmax of its outputs is no calibrated probability either.

    Args:
        features_ND: Of the training images.
        labels_N: Class of each of them, in [0, K).
        asked_MD: Of the images that are asked about.
        classifier: Which.
        classes: K. A class that no training image is of has the probability ``FLOOR``.
        balanced: Whether a training image weighs in inverse proportion to the images of its class.
        seed: Of what is random, in [0, 2**63).
    """
    present = np.unique(labels_N)
    found: Floats = np.full((len(asked_MD), classes), np.log(FLOOR))
    if len(present) == 1 or not len(asked_MD):
        found[:, present] = 0.0
    else:
        pipeline = _pipeline(classifier, features_ND.shape[1], balanced=balanced, seed=seed)
        pipeline.fit(features_ND.astype(np.float64), labels_N)
        found[:, present] = _log_probabilities(pipeline, asked_MD.astype(np.float64))
    normalised: Floats = log_softmax(found, axis=1)
    return normalised


def _log_probabilities(pipeline: "Pipeline", asked_MD: Floats) -> Floats:
    """Return what a fitted classifier says of the classes that it knows."""
    if not hasattr(pipeline, "decision_function"):
        shares: Floats = pipeline.predict_proba(asked_MD)
        return np.log(np.maximum(shares, FLOOR))
    margins: Floats = pipeline.decision_function(asked_MD)
    if margins.ndim == 1:  # of two classes: that of the second one
        margins = np.stack([np.zeros_like(margins), margins], axis=1)
    log_p: Floats = log_softmax(margins, axis=1)
    return log_p


def _pipeline(classifier: Classifier, features: int, *, balanced: bool, seed: int) -> "Pipeline":
    """Return a classifier that is not fitted yet; scikit-learn takes a second to import."""
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415 - as above
    from sklearn.linear_model import LogisticRegression, RidgeClassifier  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import FunctionTransformer, StandardScaler  # noqa: PLC0415
    from sklearn.svm import SVC  # noqa: PLC0415

    weight = "balanced" if balanced else None
    state = seed % 2**32  # as many bits as scikit-learn takes
    if classifier == "logistic":
        steps: list[Any] = [LogisticRegression(max_iter=_STEPS, class_weight=weight)]
    elif classifier == "svm":
        steps = [SVC(gamma="scale", class_weight=weight, break_ties=True)]
    elif classifier == "forest":
        steps = [RandomForestClassifier(TREES, class_weight=weight, random_state=state)]
    else:
        layer = FunctionTransformer(_hidden, kw_args=_random_layer(features, seed))
        steps = [layer, RidgeClassifier(class_weight=weight)]
    return make_pipeline(StandardScaler(), *steps)


def _random_layer(features: int, seed: int) -> dict[str, Floats]:
    """Draw weights (D, H) and biases (H,) that are never trained.

    Huang et al. draw from [-1, 1] for a few inputs. With D of them the weights are multiplied by
    the root of 3 / D: the sum over D standardised inputs then has a variance of 1, while otherwise
    all units would be at one of their ends.
    """
    rng = np.random.default_rng(seed)
    weights_DH = rng.uniform(-1, 1, (features, HIDDEN)) * np.sqrt(3 / features)
    return {"weights_DH": weights_DH, "biases_H": rng.uniform(-1, 1, HIDDEN)}


def _hidden(x_ND: Floats, weights_DH: Floats, biases_H: Floats) -> Floats:
    hidden: Floats = expit(x_ND @ weights_DH + biases_H)
    return hidden
