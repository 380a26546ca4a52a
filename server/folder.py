"""Where each file of the coordinator's folder lies.

The folder is for its owner alone (0700). ``server.toml`` says what a person decides; everything
else in it is made by ``rarefed-server``.
"""

from pathlib import Path

from pydantic import BaseModel, PrivateAttr


class Folder(BaseModel):
    """The coordinator's folder."""

    _folder: Path = PrivateAttr(default=Path())

    def lie_in(self, folder: Path) -> None:
        """Say where the folder is; absolute."""
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The coordinator's folder, absolute."""
        return self._folder

    @property
    def authority_certificate(self) -> Path:
        """The present authority, which signs the front's certificate."""
        return self.folder / "authority.crt"

    @property
    def authority_key(self) -> Path:
        """Private key of the present authority."""
        return self.folder / "authority.key"

    @property
    def authorities(self) -> Path:
        """The present authority and those before it that are still valid: what a kit carries."""
        return self.folder / "authorities.pem"

    @property
    def renewal(self) -> Path:
        """The present authority and the proof, signed by those before it, that it follows them."""
        return self.folder / "renewal.pem"

    @property
    def server_certificate(self) -> Path:
        """The front's certificate, with what a site of an older authority needs to verify it."""
        return self.folder / "server.crt"

    @property
    def server_key(self) -> Path:
        """Private key of the front."""
        return self.folder / "server.key"

    @property
    def order_key(self) -> Path:
        """Private Ed25519 key that seals orders."""
        return self.folder / "order.key"

    @property
    def loopback_certificate(self) -> Path:
        """SuperLink's own certificate, for localhost and 127.0.0.1."""
        return self.folder / "loopback.crt"

    @property
    def loopback_key(self) -> Path:
        """Private key of SuperLink's own certificate."""
        return self.folder / "loopback.key"

    @property
    def loopback_authority(self) -> Path:
        """What front, SuperExec and the commands verify SuperLink with."""
        return self.folder / "loopback-ca.crt"

    @property
    def superexec_secret(self) -> Path:
        """The secret that SuperLink and SuperExec share; raw bytes."""
        return self.folder / "superexec.secret"

    @property
    def sites_file(self) -> Path:
        """The register of sites."""
        return self.folder / "sites.json"

    @property
    def kits(self) -> Path:
        """Folder of the kits that wait for their site."""
        return self.folder / "kits"

    def kit_file(self, site: str) -> Path:
        """The kit of one site."""
        return self.kits / f"{site}.kit.json"

    @property
    def flower_home(self) -> Path:
        """``FLWR_HOME`` of the coordinator's processes."""
        return self.folder / "flower"

    @property
    def state_database(self) -> Path:
        """SuperLink's SQLite file."""
        return self.folder / "state.db"

    @property
    def nginx(self) -> Path:
        """Folder of the front's configuration and temporary files."""
        return self.folder / "nginx"

    @property
    def logs(self) -> Path:
        """Folder of the processes' output."""
        return self.folder / "logs"

    @property
    def processes_file(self) -> Path:
        """What the supervisor says of its processes."""
        return self.folder / "processes.json"

    @property
    def studies(self) -> Path:
        """Folder of the studies, one folder each."""
        return self.folder / "studies"
