"""How a site comes into the register, and out of it: invite, accept, revoke."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pydantic import TypeAdapter, ValidationError

from common.enrolment import Kit, Request, check_protocol, proof_fits, verifier_of
from common.errors import EnrolmentError, KitError, UnknownSiteError
from common.study import Slug
from server.config import ServerConfig
from server.register import SiteEntry, load_sites, register, save_sites

__all__ = ["SiteEntry", "accept", "invite", "load_sites", "revoke"]

KIT_DAYS = 7
MAX_KIT_DAYS = 90


def invite(
    config: ServerConfig, site: str, *, days: float = KIT_DAYS, at: datetime | None = None
) -> Kit:
    """Make an enrolment kit; an earlier one of the same site no longer serves.

    The kit is written to ``config.kit_file(site)`` and goes to the hospital by any way, its
    fingerprint by another.

    Args:
        config: The coordinator.
        site: Name of the site: 1 to 63 of a-z, 0-9, '-' and '_'.
        days: How long the kit serves; above 0, at most ``MAX_KIT_DAYS``.
        at: The time; now by default.

    Raises:
        EnrolmentError: The site is enrolled already, or a request of it is half accepted, or
            its name or the number of days cannot be.
    """
    now = _whole_seconds(at)
    _check_invitation(site, days)
    code = secrets.token_hex(32)
    kit = Kit(
        coordinator=config.name,
        address=config.address,
        site=site,
        authority=config.authorities.read_text(encoding="ascii"),
        order_key=config.order_public_key(),
        code=code,
        issued=now,
        expires=now + timedelta(days=days),
    )
    with register(config) as sites:
        old = sites.get(site)
        if old is not None:
            _check_can_be_invited(site, old)
        sites[site] = SiteEntry(
            state="invited",
            verifier=verifier_of(code),
            expires=kit.expires,
            former_keys=old.former_keys if old else (),
            since=now,
        )
        save_sites(config, sites)
    kit.save(config.kit_file(site))
    return kit


def accept(
    config: ServerConfig,
    request: Request,
    register_node: Callable[[str, str], int],
    *,
    at: datetime | None = None,
) -> SiteEntry:
    """Enrol the site that a request comes from.

    The key is noted before Flower is asked to register it. If that fails half-way the site stays
    invited, and the same request, and no other, can be accepted later.

    Args:
        config: The coordinator.
        request: What the site made from its kit.
        register_node: Registers public key and name with Flower and returns the node's number;
            for a key that Flower has under this name already, that node's. An EnrolmentError
            from it means that Flower refused and holds nothing of it.
        at: The time; now by default.

    Raises:
        VersionError: The site speaks another version of the protocol.
        UnknownSiteError: No site of this name was invited.
        KitError: The request is replayed, expired, made with another kit, or with a key that
            was used before.
    """
    now = _whole_seconds(at)
    check_protocol(request.protocol, request.software, what=Request.what)
    with register(config) as sites:
        entry = _expected(sites, request, now)
        sites[request.site] = entry.model_copy(update={"public_key": request.public_key})
        save_sites(config, sites)
        try:
            node_id = register_node(request.public_key, request.site)
        except EnrolmentError:
            sites[request.site] = entry.model_copy(update={"public_key": None})
            save_sites(config, sites)
            raise
        enrolled = SiteEntry(
            state="enrolled",
            public_key=request.public_key,
            former_keys=entry.former_keys,
            node_id=node_id,
            protocol=request.protocol,
            software=request.software,
            since=now,
        )
        sites[request.site] = enrolled
        save_sites(config, sites)
    config.kit_file(request.site).unlink(missing_ok=True)
    return enrolled


def revoke(
    config: ServerConfig,
    site: str,
    unregister_node: Callable[[int], None],
    *,
    at: datetime | None = None,
) -> SiteEntry:
    """Take a site's right to take part; it can be invited again, with another key.

    Args:
        config: The coordinator.
        site: Its name.
        unregister_node: Takes a node out of Flower; an UnknownSiteError from it says that it is
            out already. If it fails otherwise, the site stays enrolled and the error is passed on.
        at: The time; now by default.

    Raises:
        UnknownSiteError: There is no such site, or it is revoked already.
        EnrolmentError: A request of the site is half accepted.
    """
    with register(config) as sites:
        entry = sites.get(site)
        if entry is None:
            raise _unknown(site, sites)
        if entry.state == "revoked":
            raise UnknownSiteError(
                f"{site} is revoked already.",
                remedy=f"To let it in again: rarefed-server invite {site}",
            )
        _check_not_half_accepted(site, entry)
        if entry.node_id is not None:
            with suppress(UnknownSiteError):  # out already, as a crash may have left it
                unregister_node(entry.node_id)
        keys = [*entry.former_keys, *([entry.public_key] if entry.public_key else [])]
        revoked = SiteEntry(
            state="revoked",
            former_keys=tuple(keys),
            protocol=entry.protocol,
            software=entry.software,
            since=_whole_seconds(at),
        )
        sites[site] = revoked
        save_sites(config, sites)
    config.kit_file(site).unlink(missing_ok=True)
    return revoked


def _expected(sites: dict[str, SiteEntry], request: Request, now: datetime) -> SiteEntry:
    """Return the invitation that a request answers, or refuse."""
    site = request.site
    entry = sites.get(site)
    if entry is None:
        raise _unknown(site, sites)
    if entry.state == "enrolled":
        raise KitError(
            f"{site} is enrolled already; a kit serves once.",
            remedy=f"Nothing is to be done. For a new key: revoke {site}, invite it again.",
        )
    if entry.state == "revoked" or entry.verifier is None or entry.expires is None:
        raise KitError(
            f"{site} was revoked, and no kit of it serves any more.",
            remedy=f"To let it in again: rarefed-server invite {site}",
        )
    # The proof first: without it, nobody learns more about the invitation.
    if not proof_fits(entry.verifier, request):
        raise KitError(
            f"The request was not made with the kit that {site} was last given.",
            remedy=f"Ask {site} which kit it used, and for which name. If it is lost: "
            f"rarefed-server invite {site}",
        )
    if entry.public_key not in {None, request.public_key}:
        raise KitError(
            f"Another request of {site} is half accepted.", remedy="Accept that one again."
        )
    # A request that was begun in time may be finished later.
    if entry.public_key is None and entry.expires <= now:
        raise KitError(
            f"The kit of {site} expired on {entry.expires:%Y-%m-%d %H:%M} UTC.",
            remedy=f"Make a new one: rarefed-server invite {site}",
        )
    _check_new_key(sites, request)
    return entry


def _check_new_key(sites: dict[str, SiteEntry], request: Request) -> None:
    for name, entry in sites.items():
        used = set(entry.former_keys)
        if name != request.site and entry.public_key:
            used.add(entry.public_key)
        if request.public_key in used:
            raise KitError(
                f"The key in the request of {request.site} is, or was, that of {name}.",
                remedy="A key belongs to one site and serves until it is revoked. Let the site "
                "leave ('rarefed-client leave') and join anew: that makes a new key.",
            )


def _check_invitation(site: str, days: float) -> None:
    try:
        TypeAdapter(Slug).validate_python(site)
    except ValidationError as error:
        raise EnrolmentError(
            f"{site!r} cannot be a site's name.",
            remedy="Use 1 to 63 of a-z, 0-9, '-' and '_', the first a letter or digit.",
        ) from error
    if not 0 < days <= MAX_KIT_DAYS:
        raise EnrolmentError(
            f"A kit cannot serve for {days} days.", remedy=f"Give 1 to {MAX_KIT_DAYS} days."
        )


def _check_can_be_invited(site: str, entry: SiteEntry) -> None:
    if entry.state == "enrolled":
        raise EnrolmentError(
            f"{site} is enrolled already.",
            remedy=f"If it needs a new key: rarefed-server revoke {site}, then invite it again.",
        )
    _check_not_half_accepted(site, entry)


def _check_not_half_accepted(site: str, entry: SiteEntry) -> None:
    """Flower may hold the key of a half accepted request, under a number that is not known."""
    if entry.state == "invited" and entry.public_key is not None:
        raise EnrolmentError(
            f"A request of {site} is half accepted: Flower may hold its key already.",
            remedy="Accept the same request again while the coordinator runs; after that the "
            "site can be revoked and invited.",
        )


def _unknown(site: str, sites: dict[str, SiteEntry]) -> UnknownSiteError:
    known = f"Known are {', '.join(sorted(sites))}. " if sites else ""
    return UnknownSiteError(
        f"There is no site {site} in the register.",
        remedy=f"{known}To let a new one in: rarefed-server invite {site}",
    )


def _whole_seconds(at: datetime | None) -> datetime:
    return (at or datetime.now(UTC)).replace(microsecond=0)
