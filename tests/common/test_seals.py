"""Laws of the seal of an order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from common.arrays import Array as Values
from common.errors import SealError
from common.seals import Sealer, check_seal, load_order_key, new_order_key, part_digest
from common.wire_arrays import WireArrays

PEM, PUBLIC = new_order_key()
SHARED: dict[str, Values] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(7, np.int64),
}


def order(**changed: Any) -> RecordDict:
    """Return a small order of every kind of part."""
    parts: dict[str, Any] = {
        "order": ConfigRecord({"kind": "train", "round": 3, "big": True, "key": b"\0\1"}),
        "shared": WireArrays.of(SHARED).record,
        "base": WireArrays.of({"c": np.zeros(4, np.float32)}).record,
        "numbers": MetricRecord({"x": 0.1, "y": [1, 2]}),
        "countersigned": ConfigRecord({"entries": 7, "head": "ab" * 32}),
    }
    return RecordDict({k: v for k, v in (parts | changed).items() if v is not None})


def sealed(record: RecordDict, site: str = "site-a") -> RecordDict:
    Sealer(load_order_key(PEM)).seal(record, site)
    return record


def test_a_sealed_order_passes_at_its_site() -> None:
    """What was sealed is accepted, also after Flower has carried it."""
    record = sealed(order())
    seal = check_seal(record, "site-a", PUBLIC)
    assert len(seal.digest()) == 64
    carried = recorddict_from_proto(recorddict_to_proto(record))
    assert check_seal(carried, "site-a", PUBLIC) == seal


def test_the_digest_is_the_orders_own() -> None:
    """It is the same at every site, for every sending and without the base, and else another.

    What an order countersigns is no part of what it asks.
    """
    digest = check_seal(sealed(order()), "site-a", PUBLIC).digest()
    assert check_seal(sealed(order(), "site-b"), "site-b", PUBLIC).digest() == digest
    assert check_seal(sealed(order(base=None)), "site-a", PUBLIC).digest() == digest
    for head in ("ab" * 32, "cd" * 32):
        more = order(countersigned=ConfigRecord({"entries": 1, "head": head}))
        assert check_seal(sealed(more), "site-a", PUBLIC).digest() == digest
    other = order(order=ConfigRecord({"kind": "train", "round": 4}))
    assert check_seal(sealed(other), "site-a", PUBLIC).digest() != digest


def test_a_seal_is_proof_without_the_order() -> None:
    """The digests of the parts are what was signed: without one, or for another site, it fails."""
    seal = check_seal(sealed(order()), "site-a", PUBLIC)
    seal.check(PUBLIC)
    assert seal.parts["numbers"] == part_digest(order()["numbers"])
    fewer = {name: digest for name, digest in seal.parts.items() if name != "base"}
    for forged in (seal._replace(site="site-b"), seal._replace(parts=fewer)):
        with pytest.raises(SealError, match="coordinator"):
            forged.check(PUBLIC)


def test_a_site_takes_no_other_sites_order() -> None:
    """A seal for one site is refused at another, also when the site's name in it is changed."""
    record = sealed(order(), "site-b")
    with pytest.raises(SealError, match="another site"):
        check_seal(record, "site-a", PUBLIC)
    seal = record["seal"]
    assert isinstance(seal, ConfigRecord)
    seal["site"] = "site-a"
    with pytest.raises(SealError, match="coordinator"):
        check_seal(record, "site-a", PUBLIC)


def test_another_coordinators_seal_is_refused() -> None:
    """A seal made with another key does not pass."""
    with pytest.raises(SealError, match="coordinator"):
        check_seal(sealed(order()), "site-a", new_order_key()[1])


@pytest.mark.parametrize(
    "seal",
    [
        None,
        ConfigRecord({}),
        ConfigRecord({"site": "site-a"}),
        ConfigRecord({"site": "site-a", "signature": ""}),
        ConfigRecord({"site": "site-a", "signature": "0" * 127}),
        ConfigRecord({"site": "site-a", "signature": "x" * 128}),
        ConfigRecord({"site": "site-a", "signature": 0}),
        ConfigRecord({"site": "site-a", "signature": ["0" * 128]}),
        MetricRecord({"site": 1, "signature": 2}),
    ],
)
def test_an_order_without_a_seal_is_refused(seal: Any) -> None:
    """No seal, or something else in its place, is refused as a seal and not as a crash."""
    record = sealed(order())
    del record["seal"]
    if seal is not None:
        record["seal"] = seal
    with pytest.raises(SealError, match="no seal"):
        check_seal(record, "site-a", PUBLIC)


def as_values(name: str, **changed: Any) -> Callable[[RecordDict], None]:
    def change(record: RecordDict) -> None:
        part = record[name]
        assert isinstance(part, ConfigRecord)
        record[name] = ConfigRecord(dict(part) | changed)

    return change


def as_array(change_array: Callable[[Array], Array]) -> Callable[[RecordDict], None]:
    def change(record: RecordDict) -> None:
        part = record["shared"]
        assert isinstance(part, ArrayRecord)
        part["a"] = change_array(part["a"])

    return change


def flipped(array: Array) -> Array:
    return Array(array.dtype, array.shape, array.stype, array.data[:-1] + b"\xff")


def renamed(record: RecordDict) -> None:
    part = record["shared"]
    assert isinstance(part, ArrayRecord)
    record["shared"] = ArrayRecord({"b": part["a"], "a": part["b"]})


def swapped(record: RecordDict) -> None:
    record["shared"], record["base"] = record["base"], record["shared"]


def of_another_kind(record: RecordDict) -> None:
    record["numbers"] = ConfigRecord({"x": 0.1, "y": [1, 2]})


def added(record: RecordDict) -> None:
    record["more"] = ConfigRecord({})


def removed(record: RecordDict) -> None:
    del record["numbers"]


@pytest.mark.parametrize(
    "change",
    [
        as_values("order", round=4),
        as_values("order", round=3.0),
        as_values("order", big=1),
        as_values("order", key="AAE="),
        as_values("order", more=""),
        as_values("countersigned", entries=8),
        as_array(flipped),
        as_array(lambda a: Array("int32", a.shape, a.stype, a.data)),
        as_array(lambda a: Array(a.dtype, (3, 2), a.stype, a.data)),
        as_array(lambda a: Array(a.dtype, a.shape, "torch", a.data)),
        renamed,
        swapped,
        of_another_kind,
        added,
        removed,
    ],
)
def test_whatever_is_changed_breaks_the_seal(change: Callable[[RecordDict], None]) -> None:
    """A value, type, name, dtype, shape, byte or part that is not as sealed is refused."""
    record = sealed(order())
    change(record)
    with pytest.raises(SealError, match="coordinator"):
        check_seal(record, "site-a", PUBLIC)


def test_shared_arrays_are_digested_once_and_never_mistaken() -> None:
    """A sealer that has seen thousands of records that came and went seals each as its own."""
    sealer = Sealer(load_order_key(PEM))
    shared = WireArrays.of(SHARED).record
    for number in range(100):
        own = WireArrays.of({"x": np.full(3, number)}).record
        record = RecordDict({"shared": shared, "own": own})
        sealer.seal(record, "site-a")
        check_seal(record, "site-a", PUBLIC)
        del own, record
    assert sealer._known[id(shared)][1] == part_digest(shared)
    sealer.forget()
    record = RecordDict({"shared": shared})
    sealer.seal(record, "site-a")
    check_seal(record, "site-a", PUBLIC)


def test_a_second_seal_takes_the_firsts_place() -> None:
    """An order that is sealed for another site is then that site's."""
    record = sealed(sealed(order()), "site-b")
    check_seal(record, "site-b", PUBLIC)


def test_an_order_key_comes_back_from_its_file() -> None:
    """The PEM is the private key of the public one; another kind of key is refused."""
    assert load_order_key(PEM).public_key().public_bytes_raw().hex() == PUBLIC
    other = generate_private_key(SECP384R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    for wrong in (b"", b"no key", other):
        with pytest.raises(ValueError, match=r"."):
            load_order_key(wrong)
