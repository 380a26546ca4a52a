"""The site's own log: what went wrong, in words that stay here."""

import io
import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

from client.config import SiteConfig
from common.errors import DataError

MAX_LOG_BYTES = 16 * 1024 * 1024
"""Size at which the log is set aside and begun anew; the one before it goes."""


class _PrivateLog(RotatingFileHandler):
    """A log that nobody else may read, and that orders without end cannot fill a disk with."""

    def _open(self) -> io.TextIOWrapper:
        Path(self.baseFilename).touch(mode=0o600)
        return super()._open()


def open_log(config: SiteConfig) -> logging.Logger:
    """Return the site's own log, a file in its state folder that nobody else may read.

    Raises:
        DataError: It cannot be written.
    """
    log = logging.getLogger(f"rarefed.site.{config.name}.{abs(hash(config.state))}")
    if not log.handlers:
        path = config.state / "site.log"
        try:
            config.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            handler = _PrivateLog(path, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"Cannot keep the site's log in {path}: {error.strerror}.",
                remedy="Let the user who runs the client write to the folder 'state' of site.toml.",
            ) from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.propagate = False
        log.setLevel(logging.INFO)
    return log
