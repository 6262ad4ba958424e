# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests, made by openssl: a CA, what it signs, tokens. And the section of the file that names them."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path
from typing import Any

from tests.interop import needs

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments: str | Path) -> None:
    program = needs.program("openssl", "openssl")
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr


class Pki:
    """Files in `folder`: NAME.pem and NAME.key of each certificate, NAME.token of each token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.ca = self.authority("ca")

    def authority(self, name: str) -> Path:
        """A CA that nobody else knows."""
        certificate = self.folder / f"{name}.pem"
        openssl(
            "req", "-x509", *KEY, "-keyout", certificate.with_suffix(".key"), "-out", certificate,
            "-subj", f"/CN={name}", "-days", "400", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        return certificate

    def issue(
        self, name: str, *names: str, usage: str = "serverAuth", ca: Path | None = None, key: tuple[str, ...] = KEY
    ) -> Path:
        """A certificate for `names`, such as DNS:localhost or IP:127.0.0.1."""
        ca = ca or self.ca
        certificate = self.folder / f"{name}.pem"
        request = self.folder / f"{name}.csr"
        extensions = self.folder / f"{name}.ext"
        lines = [
            f"extendedKeyUsage={usage}",
            "authorityKeyIdentifier=keyid",
            *([f"subjectAltName={','.join(names)}"] if names else []),
        ]
        extensions.write_text("\n".join(lines) + "\n")
        openssl("req", *key, "-keyout", certificate.with_suffix(".key"), "-out", request, "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca.with_suffix(".key"), "-CAcreateserial",
            "-out", certificate, "-days", "365", "-extfile", extensions,
        )  # fmt: skip
        certificate.with_suffix(".key").chmod(0o600)
        return certificate

    def token(self, name: str, value: str = "") -> Path:
        path = self.folder / f"{name}.token"
        path.touch(mode=0o600)
        path.write_text((value or secrets.token_hex(32)) + "\n")
        return path

    def section(self, **more: Any) -> dict[str, Any]:
        """control.tcp with a certificate for this machine, and tokens: ops may write, eye may read."""
        certificate = self.folder / "server.pem"
        if not certificate.exists():
            self.issue("server", "DNS:localhost", "IP:127.0.0.1", "IP:::1")
        tokens = []
        for name, access in (("ops", "write"), ("eye", "read")):
            file = self.folder / f"{name}.token"
            tokens.append({"name": name, "file": str(file if file.exists() else self.token(name)), "access": access})
        return {
            "listen": "127.0.0.1:0",
            "certificate": str(certificate),
            "key": str(certificate.with_suffix(".key")),
            "tokens": tokens,
            **more,
        }
