"""How far sites lie apart in a metric: the worst of them, the range, the standard deviation."""

import statistics
from collections.abc import Mapping
from typing import Any

LESS_IS_BETTER = frozenset({"brier", "calibration_error", "loss", "auroc_bound"})


def spread(values: Mapping[str, float | None], metric: str) -> dict[str, Any] | None:
    """Return the spread of a metric over the sites that have it; None of fewer than two.

    Args:
        values: By site; None where it is not defined.
        metric: A name of ``common.metrics.METRICS``.

    Returns:
        ``lowest`` and ``highest`` value, ``worst_site`` (the first by name of equals), ``std`` (the
        standard deviation over the sites, with n - 1) and ``sites``, how many they are.
    """
    known = {site: value for site, value in sorted(values.items()) if value is not None}
    if len(known) < 2:  # noqa: PLR2004 - one site has no spread
        return None
    pick = max if metric in LESS_IS_BETTER else min
    return {
        "lowest": min(known.values()),
        "highest": max(known.values()),
        "worst_site": pick(known, key=lambda site: known[site]),
        "std": statistics.stdev(known.values()),
        "sites": len(known),
    }
