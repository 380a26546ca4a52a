"""Laws of the bins of log-odds."""

import numpy as np

from common.ranking import BINS, LOGIT_LIMIT, centres, edges, histogram_of, log_odds, ranking


def test_an_image_lies_in_the_bin_between_its_edges() -> None:
    """A log-odds is counted in the bin whose lower edge it reaches and whose upper it does not."""
    random = np.random.default_rng(0)
    logits = np.stack([np.zeros(500), random.normal(scale=30, size=500)], axis=1)
    labels = random.integers(0, 2, 500)
    bins = np.digitize(logits[:, 1], edges()) - 1
    (found,) = histogram_of(logits, labels, 1)
    for label in (0, 1):
        assert np.array_equal(found[label], np.bincount(bins[labels == label], minlength=BINS))


def test_edges_and_centres_rise_between_the_limits() -> None:
    """Edges go from one limit to the other through 0, and each centre lies between its edges."""
    at = edges()
    assert np.allclose([at[0], at[BINS // 2], at[-1]], [-LOGIT_LIMIT, 0, LOGIT_LIMIT])
    assert np.all((at[:-1] < centres()) & (centres() < at[1:]))
    far = np.abs(centres()) > 1
    assert np.all((at[1:] - at[:-1])[far] < 0.016 * np.abs(centres())[far])


def test_log_odds_are_those_of_the_probabilities() -> None:
    """The log-odds of a class are log p - log (1 - p) of its softmax probability."""
    logits = np.random.default_rng(1).normal(size=(50, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for k in range(4):
        assert np.allclose(log_odds(logits, k), np.log(p[:, k]) - np.log1p(-p[:, k]))


def test_empty_bins_change_no_ranking() -> None:
    """AUROC and average precision are the same to the bit without the bins that hold no image."""
    random = np.random.default_rng(2)
    logits = random.normal(size=(200, 3))
    histogram = histogram_of(logits, random.integers(0, 3, 200), None)
    used = histogram.any(axis=(0, 1))
    whole, few = ranking(histogram, histogram), ranking(histogram[..., used], histogram[..., used])
    assert all(np.array_equal(whole[name], few[name]) for name in whole)
