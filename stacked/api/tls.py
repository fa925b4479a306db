"""HTTPS: a server's certificate, which is read again when its files change."""

from __future__ import annotations

import logging
import os
import ssl
from typing import Any, NoReturn

from stacked.config import TlsConfig
from stacked.errors import ConfigInvalid

logger = logging.getLogger("stacked.api")

Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """A context for handshakes. Connections that exist keep what they began with.

    Files are looked at for each handshake, which takes microseconds. A pair that does not fit (one
    file may be replaced before the other) is reported once, and the last one serves. Raises
    ConfigInvalid for files that cannot serve.
    """

    def __init__(self, tls: TlsConfig) -> None:
        self._tls = tls
        self._seen = self._stamp()
        self._current = self._load()
        self.context = self._load()
        self.context.sni_callback = self._choose

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._tls.cert, self._tls.key, password=_no_password)
        except (OSError, ssl.SSLError) as error:  # a SSLError is an OSError whose text is OpenSSL's
            raise ConfigInvalid(
                f"server.tls: {self._tls.cert} and {self._tls.key} are not a certificate and its "
                f"key in PEM form ({error.strerror or error})"
            ) from error
        if self._tls.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            # Who resumes a session is not verified again, and with TLS 1.2 needs no ticket for it.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0
            try:
                context.load_verify_locations(self._tls.ca)
            except (OSError, ssl.SSLError) as error:
                raise ConfigInvalid(f"server.tls.ca: {self._tls.ca} ({error})") from error
        return context

    def _stamp(self) -> Stamp:
        found = []
        for path in filter(None, (self._tls.cert, self._tls.key, self._tls.ca)):
            try:
                said = os.stat(path)
            except OSError:
                return ()
            found.append((said.st_ino, said.st_mtime_ns, said.st_size))
        return tuple(found)

    def _choose(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        """Called by OpenSSL for each handshake, with or without a server's name in it."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._current = self._load()
                logger.info("the certificate is another one: %s", self._tls.cert)
            except ConfigInvalid as error:
                logger.warning("%s; the last certificate is still served", error)
        connection.context = self._current


def _no_password() -> NoReturn:
    raise ConfigInvalid("server.tls.key: the key needs a password; store it without one")
