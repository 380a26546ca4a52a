"""How long the coordinator waits, in one place; the deadline of a round is the study's own."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Waiting times in seconds."""

    sites_return: bool
    """Whether sites come and go, and whether one that refused may take part later."""
    gather_s: float = 0.0
    """How long enrolment waits for expected sites that are missing, once the study could begin."""
    recheck_s: float = 0.0
    """Pause before a site that was refused is asked again to declare itself."""
    probe_s: float = math.inf
    """How long a site may be silent before it is asked whether it still works on its order."""
    resend_s: float = 0.0
    """Pause before an order that was lost on its way is sent again."""
    resends: int = 0
    """How often one order is sent again in one round."""


AT_ONCE = Timing(sites_return=False)
"""Everybody is here from the beginning and nothing gets lost: a simulation."""

DEPLOYED = Timing(
    sites_return=True, gather_s=120.0, recheck_s=30.0, probe_s=60.0, resend_s=5.0, resends=50
)
"""Machines restart and lines break."""
