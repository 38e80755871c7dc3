"""Certificates made for one test with the `openssl` command, and a provider that shows them."""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

from echo import EchoProvider

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


class Authority:
    """Whoever trusts `certificate` trusts what it issues."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        self.certificate, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl("req", "-x509", *_KEY, "-keyout", self._key, "-out", self.certificate, "-subj", f"/CN={name}")

    def issue(self, name: str, names: str, days: int = 1, extensions: str = "") -> ssl.SSLContext:
        """A certificate for `names`, such as `DNS:localhost`, as a server uses it."""
        certificate, key, request = (self.folder / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        file = self.folder / f"{name}.ext"
        file.write_text(f"subjectAltName={names}\nbasicConstraints=critical,CA:FALSE\n{extensions}\n")
        signed = ["-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", days, "-extfile", file]
        _openssl("x509", "-req", "-in", request, "-out", certificate, *signed)
        return server_context(certificate, key)


def self_signed(folder: Path, name: str, names: str) -> ssl.SSLContext:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    _openssl(
        *("req", "-x509", *_KEY, "-keyout", key, "-out", certificate, "-subj", f"/CN={name}"),
        *("-addext", f"subjectAltName={names}"),
    )
    return server_context(certificate, key)


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


class TLSProvider(EchoProvider):
    """An echo behind TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.accepted = 0
        super().__init__()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.accepted += 1
        # One that does not begin must not hold up the others.
        connection.settimeout(10)
        try:
            return self._context.wrap_socket(connection, server_side=True), address
        except OSError:
            connection.close()
            raise

    def url(self, host: str) -> str:
        return f"https://{host}:{self.server_port}/v1"
