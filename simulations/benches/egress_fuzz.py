"""Replies that a site must not send, against the one door out: none may pass.

Each is a good reply with one thing wrong: parts that nobody asked for, arrays of other names,
shapes or types, values that are no numbers, words in every place where a text may stand, figures of
too few patients, weights and numbers that are not the site's. It passes when anything leaves that
is not in the good reply. What is hidden in the lowest bits of a number of the right type cannot be
told from training, and is out of scope.
"""

import time
from collections import Counter
from typing import Annotated

import numpy as np
import typer

from client.attention_suppression import suppress_attention
from client.egress import release
from client.suppression import suppress
from common.errors import EgressError
from common.messages import Reply, reply_to_record
from common.seals import part_digest
from simulations.benches.egress_cases import Case, good_cases
from simulations.benches.egress_mutations import MUTATIONS
from simulations.benches.result import Result


def main(
    count: Annotated[int, typer.Option(help="How many replies.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Start of the random choices.")] = 0,
) -> None:
    """Try them, print, and end with 1 if one passes."""
    began = time.perf_counter()
    passed, outcomes = fuzz(count, seed)
    result = Result(
        name="egress_fuzz",
        figure=len(passed),
        against={"what": "replies tried", "figure": count, "unit": "replies"},
        ratio=len(passed) / count,
        limit=0,
        holds=not passed,
        details={"passed": passed[:20], **outcomes, "seconds": time.perf_counter() - began},
    )
    raise typer.Exit(result.tell())


def fuzz(count: int, seed: int) -> tuple[list[str], dict[str, int]]:
    """Try so many replies; return the kinds of those that passed, and how the others ended."""
    rng = np.random.default_rng(seed)
    cases = good_cases()
    good = [carried(door(case)) for case in cases]
    passed, outcomes = [], Counter({"held back": 0, "suppressed": 0})
    for number in range(count):
        which = int(rng.integers(len(cases)))
        kind = list(MUTATIONS)[number % len(MUTATIONS)]
        changed = MUTATIONS[kind](rng, cases[which])
        try:
            left = carried(door(changed))
        except EgressError:
            outcomes["held back"] += 1
            continue
        outcomes["suppressed"] += 1
        # Nothing may be in it but what the good reply has, of which metrics may be missing.
        gone = good[which].keys() - left.keys()
        if left.items() - good[which].items() or not all(n.startswith("metrics/") for n in gone):
            passed.append(kind)
    return passed, dict(outcomes)


def door(case: Case) -> Reply:
    """Let a reply out, or raise EgressError."""
    reply = case.reply
    if not case.bypass:
        order, limits, own = case.order, case.limits, case.own
        reply = suppress(reply, order, limits, own.behind)
        reply = suppress_attention(reply, order, limits, own.behind, own.looked)
    return release(reply, case.order, case.limits, case.own)


def carried(reply: Reply) -> dict[str, str]:
    """Return the digest of each part of a reply as it travels."""
    return {name: part_digest(part) for name, part in reply_to_record(reply).items()}


if __name__ == "__main__":
    typer.run(main)
