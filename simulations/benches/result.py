"""What a bench says: one JSON object, the last line of its standard output."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

KEYS = ("name", "figure", "against", "ratio", "limit", "holds", "details")


@dataclass(frozen=True)
class Result:
    """One figure, what it was measured against, and whether it keeps its limit."""

    name: str
    figure: float
    against: dict[str, Any]
    """``what``, ``figure`` and ``unit`` of the floor or the peer, from the same run."""
    ratio: float
    limit: float
    holds: bool
    details: dict[str, Any] = field(default_factory=dict)

    def tell(self) -> int:
        """Print the object and return the exit code: 0 if the limit is kept, else 1."""
        print(json.dumps(asdict(self), allow_nan=False), flush=True)
        return 0 if self.holds else 1
