"""How a site comes into the register and out of it, and all that is refused on the way."""

import multiprocessing
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.enrol import join, leave
from common.enrolment import Kit, Request, proof_of
from common.errors import (
    EnrolmentError,
    KitError,
    NotRunningError,
    ServiceError,
    UnknownSiteError,
    VersionError,
)
from common.versions import PROTOCOL
from server.config import ServerConfig, init_folder
from server.enrolment import MAX_KIT_DAYS, accept, invite, revoke
from server.register import load_sites


class Nodes(dict[int, str]):
    """Flower's list of nodes, as far as enrolment goes: it takes no key twice."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()

    def register(self, public_key: str, name: str) -> int:
        """Return the number of a new node."""
        if public_key in self.used:
            raise EnrolmentError(f"Public key of {name} already in use.")
        self.used.add(public_key)
        self[len(self.used)] = name
        return len(self.used)

    def unregister(self, node_id: int) -> None:
        """Take a node out; its key stays used."""
        if node_id not in self:
            raise UnknownSiteError("no such node")
        del self[node_id]


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return init_folder(tmp_path / "c", "trial", "localhost:21001")


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.fixture
def joined(config: ServerConfig, tmp_path: Path) -> Callable[[str], Request]:
    """Return what invites a site and lets it join, and gives its request."""

    def enter(site: str) -> Request:
        invite(config, site)
        return Request.load(join(config.kit_file(site), tmp_path / f"hospital-{site}"))

    return enter


def unchanged(config: ServerConfig, request: Request, nodes: Nodes, error: type[Exception]) -> str:
    """Assert that a request is refused and leaves no trace; return what is said."""
    before = config.sites_file.read_bytes() if config.sites_file.exists() else b""
    registered = dict(nodes)
    with pytest.raises(error) as caught:
        accept(config, request, nodes.register)
    after = config.sites_file.read_bytes() if config.sites_file.exists() else b""
    assert (after, dict(nodes)) == (before, registered)
    return str(caught.value)


def test_a_site_that_joined_is_enrolled(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """Kit, join, request, accept: the register then knows key, node and version."""
    request = joined("site-a")
    entry = accept(config, request, nodes.register)
    assert load_sites(config)["site-a"] == entry
    assert (entry.state, entry.public_key, entry.node_id) == ("enrolled", request.public_key, 1)
    assert (entry.protocol, entry.software) == (PROTOCOL, request.software)
    assert nodes == {1: "site-a"}


def test_the_code_stays_in_the_kit_alone(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """The register never holds the code, and the kit goes when it has served."""
    kit = invite(config, "site-a")
    assert kit.code not in config.sites_file.read_text(encoding="utf-8")
    assert config.kit_file("site-a").stat().st_mode & 0o777 == 0o600
    accept(config, joined("site-a"), nodes.register)
    assert not config.kit_file("site-a").exists()
    assert load_sites(config)["site-a"].verifier is None


def test_a_site_that_was_never_invited_is_unknown(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """A request under a name that is not in the register is refused."""
    request = joined("site-a")
    other = request.model_copy(update={"site": "site-b"})
    assert "invite site-b" in unchanged(config, other, nodes, UnknownSiteError)


def test_another_sites_name_is_refused(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """The holder of one kit cannot enrol under the name of another invited site."""
    request = joined("site-a")
    kit = Kit.load(config.kit_file("site-a"))
    invite(config, "site-b")
    claims = (
        request.model_copy(update={"site": "site-b"}),
        Request(
            site="site-b",
            public_key=request.public_key,
            proof=proof_of(kit.code, "site-b", request.public_key),
        ),
    )
    for claim in claims:
        assert "not made with the kit" in unchanged(config, claim, nodes, KitError)


def test_a_forged_proof_is_refused(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """Another key under the same proof, or another proof, is refused."""
    request, other = joined("site-a"), joined("site-b")
    for change in ({"public_key": other.public_key}, {"proof": other.proof}, {"proof": "0" * 128}):
        unchanged(config, request.model_copy(update=change), nodes, KitError)


def test_a_replayed_request_is_refused(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """A request serves once: not after acceptance, not after revocation, not with a new kit."""
    request = joined("site-a")
    accept(config, request, nodes.register)
    assert "enrolled already" in unchanged(config, request, nodes, KitError)
    revoke(config, "site-a", nodes.unregister)
    assert "revoked" in unchanged(config, request, nodes, KitError)
    invite(config, "site-a")
    assert "not made with the kit" in unchanged(config, request, nodes, KitError)


def test_an_expired_kit_is_refused(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """A request that comes after the kit's end is refused, however early it was made."""
    request = joined("site-a")
    late = datetime.now(UTC) + timedelta(days=7, seconds=1)
    with pytest.raises(KitError, match="expired"):
        accept(config, request, nodes.register, at=late)
    assert not nodes


def test_an_earlier_kit_serves_no_more(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """A second invitation of a site ends the first."""
    first = joined("site-a")
    invite(config, "site-a")
    unchanged(config, first, nodes, KitError)


def test_another_protocol_is_refused(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """A site whose software speaks another protocol is turned away here, not at round 1."""
    request = joined("site-a").model_copy(update={"protocol": PROTOCOL + 1})
    assert "Update rarefed" in unchanged(config, request, nodes, VersionError)


def test_a_key_belongs_to_one_site(config: ServerConfig, nodes: Nodes) -> None:
    """A key that another site has, or had, is refused under a second name."""
    kits = {site: invite(config, site) for site in ("site-a", "site-b")}
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    text = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    requests = {
        site: Request(site=site, public_key=text, proof=proof_of(kit.code, site, text))
        for site, kit in kits.items()
    }
    accept(config, requests["site-a"], nodes.register)
    assert "that of site-a" in unchanged(config, requests["site-b"], nodes, KitError)
    revoke(config, "site-a", nodes.unregister)
    assert "that of site-a" in unchanged(config, requests["site-b"], nodes, KitError)


def test_a_revoked_site_comes_back_with_a_new_key_only(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request], tmp_path: Path
) -> None:
    """After revocation the site can be invited again; its old key is refused for ever."""
    old = joined("site-a")
    accept(config, old, nodes.register)
    assert revoke(config, "site-a", nodes.unregister).state == "revoked"
    assert not nodes
    kit = invite(config, "site-a")
    proof = proof_of(kit.code, "site-a", old.public_key)
    again = Request(site="site-a", public_key=old.public_key, proof=proof)
    assert "is, or was" in unchanged(config, again, nodes, KitError)
    leave(tmp_path / "hospital-site-a")
    new = joined("site-a")
    entry = accept(config, new, nodes.register)
    assert (entry.state, entry.former_keys) == ("enrolled", (old.public_key,))
    assert new.public_key != old.public_key
    assert list(nodes.values()) == ["site-a"]


def test_an_enrolled_site_is_not_invited_again(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """A second kit of an enrolled site would let somebody take its place."""
    accept(config, joined("site-a"), nodes.register)
    with pytest.raises(EnrolmentError, match="enrolled already"):
        invite(config, "site-a")


@pytest.mark.parametrize(
    "failure", [NotRunningError("no answer"), RuntimeError(), KeyboardInterrupt()]
)
def test_a_registration_that_fails_half_way_can_be_repeated(
    config: ServerConfig,
    nodes: Nodes,
    joined: Callable[[str], Request],
    failure: BaseException,
) -> None:
    """The site stays invited, also past the kit's end; and only the same request is accepted."""
    request = joined("site-a")

    def fails(_key: str, _name: str) -> int:
        raise failure

    with pytest.raises(type(failure)):
        accept(config, request, fails)
    assert load_sites(config)["site-a"].state == "invited"
    for forbidden in (
        lambda: invite(config, "site-a"),
        lambda: revoke(config, "site-a", nodes.unregister),
    ):
        with pytest.raises(EnrolmentError, match="half accepted") as caught:
            forbidden()
        assert "Accept the same request again" in caught.value.remedy
    later = datetime.now(UTC) + timedelta(days=30)
    assert accept(config, request, nodes.register, at=later).state == "enrolled"


def test_another_request_does_not_replace_one_that_is_half_accepted(
    config: ServerConfig, nodes: Nodes, tmp_path: Path
) -> None:
    """Flower may hold the first key already; a second one would leave it there for nobody."""
    invite(config, "site-a")
    kit = config.kit_file("site-a")
    first, second = (Request.load(join(kit, tmp_path / name)) for name in ("one", "two"))

    def fails(_key: str, _name: str) -> int:
        raise NotRunningError("no answer")

    with pytest.raises(NotRunningError):
        accept(config, first, fails)
    assert "half accepted" in unchanged(config, second, nodes, KitError)
    assert accept(config, first, nodes.register).public_key == first.public_key


def test_what_flower_refuses_for_good_leaves_the_invitation(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """After a plain refusal nothing is pending, and the site can be invited anew."""
    request = joined("site-a")
    nodes.used.add(request.public_key)
    unchanged(config, request, nodes, EnrolmentError)
    invite(config, "site-a")


def test_a_revocation_that_fails_leaves_the_site_enrolled(
    config: ServerConfig, nodes: Nodes, joined: Callable[[str], Request]
) -> None:
    """While Flower still lets the site in, the register does not say otherwise."""
    accept(config, joined("site-a"), nodes.register)

    def fails(_node_id: int) -> None:
        raise NotRunningError("no answer")

    with pytest.raises(NotRunningError):
        revoke(config, "site-a", fails)
    assert load_sites(config)["site-a"].state == "enrolled"
    nodes.clear()  # as a revocation leaves it that died before the register was written
    assert revoke(config, "site-a", nodes.unregister).state == "revoked"


def test_only_who_is_there_is_revoked(config: ServerConfig, nodes: Nodes) -> None:
    """An unknown site and a revoked one are refused; an invited one needs nothing of Flower."""
    with pytest.raises(UnknownSiteError):
        revoke(config, "site-a", nodes.unregister)
    invite(config, "site-a")
    assert revoke(config, "site-a", nodes.unregister).state == "revoked"
    assert not config.kit_file("site-a").exists()
    with pytest.raises(UnknownSiteError, match="revoked already"):
        revoke(config, "site-a", nodes.unregister)


@pytest.mark.parametrize("site", ["", "../site", "Site", "a b", "a" * 64])
def test_names_that_cannot_be_are_refused(config: ServerConfig, site: str) -> None:
    """A site's name is plain, and never a way out of the folder of kits."""
    with pytest.raises(EnrolmentError, match="name"):
        invite(config, site)
    assert not any(config.kits.iterdir())


@pytest.mark.parametrize("days", [0, -1, MAX_KIT_DAYS + 1, float("nan")])
def test_a_kit_serves_for_a_limited_time(config: ServerConfig, days: float) -> None:
    """No kit is born expired, and none serves for ever."""
    with pytest.raises(EnrolmentError, match="days"):
        invite(config, "site-a", days=days)


def test_a_damaged_register_is_never_taken_for_an_empty_one(config: ServerConfig) -> None:
    """Otherwise a revoked key could be enrolled again."""
    for content in ("", "{", '{"site-a": {"state": "friend"}}'):
        config.sites_file.write_text(content, encoding="utf-8")
        with pytest.raises(ServiceError, match="cannot be read"):
            invite(config, "site-b")
        assert config.sites_file.read_text(encoding="utf-8") == content


def _invite(folder: Path, site: str) -> None:
    invite(ServerConfig.load(folder), site)


def test_invitations_at_the_same_time_are_all_kept(config: ServerConfig) -> None:
    """Two commands never overwrite each other's line in the register."""
    context = multiprocessing.get_context("fork")
    sites = [f"site-{number}" for number in range(6)]
    processes = [context.Process(target=_invite, args=(config.folder, site)) for site in sites]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert sorted(load_sites(config)) == sites
