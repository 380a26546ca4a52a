"""Named random streams: the same words give the same numbers on every machine.

A stream is named by what it is for, never by when it is used, so that adding a site, a task or
a round leaves every other stream as it was. Noise for differential privacy is no such stream: a
number that others can compute protects nobody.
"""

import hashlib


def stream(*names: str | int) -> int:
    """Return a seed in [0, 2**63) for the stream of these names.

    Args:
        names: What the stream is for, from the general to the particular, for example
            ``(study.seed, site, round, "shuffle")``.

    Raises:
        ValueError: No name was given.
    """
    if not names:
        raise ValueError("a stream needs at least one name")
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"rarefed-seed").digest()
    return int.from_bytes(digest, "big") >> 1
