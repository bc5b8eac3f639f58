"""The server's certificates: checked when it starts, and read again at connections after they changed."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from time import monotonic

import grpc

from ..config import ConfigError, Security
from .secret_files import Reloaded, read_file


class Certificates:
    """TLS of the server: certificate and key, and the CA of the clients where they must show a certificate too."""

    def __init__(self, security: Security, *, clock: Callable[[], float] = monotonic) -> None:
        """
        Raises:
            ConfigError: a file is missing, open to other users or not PEM, or the key is not the certificate's.
        """
        if security.tls_certificate is None or security.tls_key is None:
            raise ConfigError("tls_certificate and tls_key are needed for TLS")
        self._certificate, self._key, self._client_ca = (
            security.tls_certificate,
            security.tls_key,
            security.tls_client_ca,
        )
        files = [path for path in (self._certificate, self._key, self._client_ca) if path is not None]
        self._reloaded = Reloaded(files, self._read, clock=clock)

    def credentials(self) -> grpc.ServerCredentials:
        """For the secure port. gRPC asks at each new connection; those that are open keep what they began with."""
        return grpc.dynamic_ssl_server_credentials(
            self._reloaded.value,
            self.changed,  # type: ignore[arg-type]  # the stubs miss that None means no change
            require_client_authentication=self._client_ca is not None,
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificates, where they are newer than those of the last call; called from gRPC's threads."""
        return self._reloaded.value if self._reloaded.refresh() else None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        before = self._contents()
        self._check()
        # The ssl module reads files by itself: what it checked and what gRPC gets must be the same.
        certificate, key, client_ca = after = self._contents()
        if before != after:
            raise ConfigError(f"tls_certificate: {self._certificate} and its key change while they are read")
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)

    def _contents(self) -> tuple[bytes, bytes, bytes | None]:
        return (
            read_file("tls_certificate", self._certificate, private=False),
            read_file("tls_key", self._key, private=True),
            None if self._client_ca is None else read_file("tls_client_ca", self._client_ca, private=False),
        )

    def _check(self) -> None:
        for option, path in (("tls_certificate", self._certificate), ("tls_client_ca", self._client_ca)):
            if path is not None:
                try:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
                except OSError as error:  # ssl.SSLError is one
                    raise ConfigError(f"{option}: {path} holds no PEM certificate") from error
        try:
            # Without a password of ours OpenSSL would ask for one on the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key, password="")
        except OSError as error:
            if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
                message = f"tls_key: {self._key} is not the key of the certificate {self._certificate}"
            else:
                message = f"tls_key: {self._key} holds no PEM private key without a password"
            raise ConfigError(message) from error
