"""What the coordinator says about itself (``server.toml``), and how its folder is first made."""

import secrets
import stat
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field

from common.addresses import Address, Host, split_address
from common.errors import MissingFolderError, OutputError, ServiceError
from common.faults import Fault
from common.files import read_toml, write_atomic
from common.study import Slug
from common.study_faults import validated
from server import certificates, staging
from server.folder import Folder

SERVER_FILE = "server.toml"
SECRET_BYTES = 32

Port = Annotated[int, Field(ge=1, le=65535)]


def _listening(value: str) -> str:
    host, _ = split_address(value)
    try:
        ip_address(host)
    except ValueError:
        raise ValueError("give an IP address of this machine and a port, as 0.0.0.0:8443") from None
    return value


class ServerConfig(Folder):
    """The coordinator, as the person who runs it describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Slug
    """Name of the federation; it stands in every kit."""
    address: Address
    """What the sites call: ``host:port``, as seen from outside."""
    listen: Annotated[Address, AfterValidator(_listening)]
    """Where the public front listens: IP address and port of this machine."""
    also: tuple[Host, ...] = ()
    """Further host names and IP addresses that the front's certificate is good for."""
    superlink_port: Port = 18080
    """Port of Flower's SuperLink, on 127.0.0.1 only."""
    max_body_mb: Annotated[int, Field(ge=8, le=2048)] = 16
    """Largest request body in MB (Flower sends arrays in pieces of 5 MB)."""
    requests_per_second: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Rate that one address may call at."""
    connections_per_address: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Connections that one address may hold open."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the configuration of a coordinator's folder.

        A rotation that a crash interrupted is finished first.

        Raises:
            MissingFolderError: The folder or its ``server.toml`` does not exist.
            ServiceError: The folder is open to other users, or the file lists every fault.
        """
        folder = folder.absolute()
        values = _toml(folder / SERVER_FILE)
        _refuse_open(folder)
        config, faults = validated(cls, values)
        if config is None or faults:
            raise _refusal(folder / SERVER_FILE, faults)
        staging.finish(folder)
        config.lie_in(folder)
        return config

    @property
    def names(self) -> list[str]:
        """The names that the front's certificate is good for: address, further ones, loopback."""
        names = [split_address(self.address)[0], *self.also, "localhost", "127.0.0.1"]
        return list(dict.fromkeys(names))

    def order_public_key(self) -> str:
        """Return the public half of the key that seals orders: 64 hexadecimal digits."""
        from common.seals import load_order_key  # noqa: PLC0415 - brings Flower, half a second

        key = load_order_key(self.order_key.read_bytes())
        return key.public_key().public_bytes_raw().hex()


def init_folder(
    folder: Path,
    name: str,
    address: str,
    *,
    listen: str | None = None,
    also: Sequence[str] = (),
    superlink_port: int | None = None,
) -> ServerConfig:
    """Make a coordinator's folder: configuration, authority, certificates, keys, secret.

    Args:
        folder: A folder that does not exist or is empty.
        name: Name of the federation.
        address: What the sites call, ``host:port``.
        listen: IP address and port that the front listens on. By default the port of
            ``address``, on 127.0.0.1 for a loopback address and on every interface otherwise.
        also: Further names of the front's certificate.
        superlink_port: Port of SuperLink on 127.0.0.1; the default of ``ServerConfig`` if None.

    Raises:
        OutputError: The folder holds something, or cannot be made.
        ServiceError: A name, address or port is malformed; all faults are listed.
    """
    folder = folder.absolute()
    values: dict[str, Any] = {"name": name, "address": address}
    values["listen"] = _default_listen(address) if listen is None else listen
    if also:
        values["also"] = list(also)
    if superlink_port is not None:
        values["superlink_port"] = superlink_port
    config, faults = validated(ServerConfig, values)
    if config is None or faults:
        raise _refusal(Path(SERVER_FILE), faults)
    _make_empty(folder)
    config.lie_in(folder)
    try:
        _write_keys(config)
        # Last: a folder without it counts as none, and init may be repeated after clearing it.
        write_atomic(folder / SERVER_FILE, _toml_text(values).encode(), mode=0o600)
    except OSError as error:
        raise OutputError(
            f"Cannot write the coordinator's folder {folder}: {error.strerror}.",
            remedy="Make room and let this user write there; then remove the folder and repeat.",
        ) from error
    return config


def _write_keys(config: ServerConfig) -> None:
    from common.seals import new_order_key  # noqa: PLC0415 - brings Flower, half a second

    authority = certificates.new_authority(config.name)
    server = certificates.issue_server_certificate(authority, config.names)
    # The loopback authority's key is never written: nothing else is to be signed with it.
    loopback_authority = certificates.new_authority("loopback")
    loopback = certificates.issue_server_certificate(
        loopback_authority, ("localhost", "127.0.0.1"), days=certificates.AUTHORITY_DAYS
    )
    files = {
        config.authority_certificate: authority.certificate_pem,
        config.authority_key: authority.key_pem,
        config.authorities: authority.certificate_pem,
        config.renewal: authority.certificate_pem,
        config.server_certificate: server.certificate_pem,
        config.server_key: server.key_pem,
        config.loopback_authority: loopback_authority.certificate_pem,
        config.loopback_certificate: loopback.certificate_pem,
        config.loopback_key: loopback.key_pem,
        config.order_key: new_order_key()[0],
        config.superexec_secret: secrets.token_bytes(SECRET_BYTES),
    }
    for path, content in files.items():
        write_atomic(path, content, mode=0o600)
    for subfolder in (config.kits, config.flower_home, config.nginx, config.logs, config.studies):
        subfolder.mkdir(mode=0o700)


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # also when it was there, and whatever the umask says
        found = any(folder.iterdir())
    except OSError as error:
        raise OutputError(
            f"Cannot make the folder {folder}: {error.strerror}.",
            remedy="Give --folder a place where this user may write.",
        ) from error
    if found:
        raise OutputError(
            f"{folder} is not empty; a coordinator that is there is never overwritten.",
            remedy="Give --folder a new place, or an empty folder.",
        )


def _default_listen(address: str) -> str:
    """Every interface, except for an address that only this machine can call."""
    host, _, port = address.rpartition(":")
    if host == "localhost" or host.startswith("127."):
        return f"127.0.0.1:{port}"
    if host.startswith("["):
        return f"[::1]:{port}" if host == "[::1]" else f"[::]:{port}"
    return f"0.0.0.0:{port}"


def _toml_text(values: dict[str, Any]) -> str:
    """The values are checked names, addresses and numbers: Python writes them as TOML does."""
    lines = ["# The coordinator. Every key is described in docs/coordinator.md."]
    for key, value in values.items():
        shown = str(value).replace("'", '"') if isinstance(value, list) else f'"{value}"'
        lines.append(f"{key} = {value if isinstance(value, int) else shown}")
    return "\n".join(lines) + "\n"


def _toml(file: Path) -> dict[str, Any]:
    remedy = "Run the command as the user who owns the coordinator's folder."
    try:
        return read_toml(file, ServiceError, remedy=remedy)
    except ServiceError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise MissingFolderError(
            f"There is no {file}.",
            remedy="Give the coordinator's folder with --folder, or make one: rarefed-server init",
        ) from error


def _refuse_open(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    # Passing through (x) shows nothing; reading and writing are the owner's.
    if mode & (stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH):
        raise ServiceError(
            f"The coordinator's folder {folder} is open to other users (mode {mode:03o}).",
            remedy=f"Run: chmod 700 {folder}",
        )


def _refusal(file: Path, faults: list[Fault]) -> ServiceError:
    lines = [f"  - {fault}" for fault in faults]
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return ServiceError(f"{file} has {count}:\n" + "\n".join(lines), remedy="Correct each of them.")
