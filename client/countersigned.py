"""Heads of the audit log that the coordinator has countersigned, and what they prove.

A vault's replies tell the head of its audit log; the next order names the last head that the
coordinator has got, and its seal covers that. Kept in the log, such a head and its seal are proof
that the coordinator knew the log up to there: no line before can change unseen, by whomever.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.pinned import Pinned
from common.chained_log import FIRST, Head
from common.enrolment import Hex64
from common.errors import SealError
from common.messages import head_to_part
from common.seals import COUNTERSIGNED, Seal, part_digest

DISPUTED = "disputed"
"""Event of the line of a head that the coordinator has countersigned and the log does not have."""
_MAX_PARTS = 64 * 1024
"""Characters of the parts' names and digests that a line may hold; no study needs as many."""


class _Proof(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    entries: Annotated[int, Field(ge=0)]
    head: Hex64
    site: str
    parts: dict[str, Hex64]
    signature: Annotated[str, Field(pattern="^[0-9a-f]{128}$")]
    key: Hex64


class Checked(NamedTuple):
    """What the countersignatures of an audit log say of it."""

    countersigned: int
    """The last line that the coordinator has countersigned; 0 for none."""
    disputed: int
    """Heads that the coordinator countersigned and that the log did not have then."""
    faults: list[str]
    """Each with its line. A dispute is one until the coordinator has countersigned its line."""


def proof_of(head: Head, seal: Seal, key: str) -> dict[str, Any] | None:
    """Return what proves to anybody that the coordinator has countersigned a head.

    Args:
        head: The head that an order names.
        seal: The order's seal.
        key: The coordinator's public order key, in hexadecimal.

    Returns:
        Values of a line of the audit log; None for an order of more parts than a line may hold.
    """
    if sum(len(name) + len(digest) for name, digest in seal.parts.items()) > _MAX_PARTS:
        return None
    return {**head._asdict(), **seal._asdict(), "parts": dict(seal.parts), "key": key}


def check(lines: Sequence[Mapping[str, Any]], pinned: Pinned | None) -> Checked:
    """Check every countersigned head of an audit log whose lines follow from one another.

    Only what the coordinator joined now has signed for this site counts; what another one did is
    checked as well. Where none is joined, all count.

    Args:
        lines: The log, from its first line on.
        pinned: Whom the site has joined.
    """
    last, disputes, faults = 0, [], []
    hashes = [FIRST, *(line["hash"] for line in lines)]
    for number, line in enumerate(lines, start=1):
        if (written := line.get("countersigned")) is None:
            continue
        if line.get("event") == DISPUTED:
            disputes.append(number)
            continue
        try:
            proof = _Proof.model_validate(written)
            _check_proof(proof, hashes)
        except (ValidationError, SealError, ValueError) as error:
            what = error.message if isinstance(error, SealError) else "it is malformed"
            faults.append(f"line {number}: the countersignature does not hold: {what}")
            continue
        if pinned is None or (proof.site, proof.key) == (pinned.site, pinned.order_key):
            last = max(last, proof.entries)
    faults += [
        f"line {number}: the coordinator has countersigned a head that this log does not have"
        for number in disputes
        if number > last
    ]
    return Checked(last, len(disputes), faults)


def _check_proof(proof: _Proof, hashes: Sequence[str]) -> None:
    """Check that a head is of this log and that the key in the proof has signed it.

    Args:
        proof: As it stands in a line.
        hashes: Of all lines, behind that of none.

    Raises:
        SealError: It is not.
    """
    head = Head(proof.entries, proof.head)
    if proof.parts.get(COUNTERSIGNED) != part_digest(head_to_part(head)):
        raise SealError("its order was of another head.")
    Seal(proof.site, proof.parts, proof.signature).check(proof.key)
    if len(hashes) <= head.entries or hashes[head.entries] != head.head:
        raise SealError(f"line {head.entries} or one before it is not what it was then.")
