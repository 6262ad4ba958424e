# SPDX-License-Identifier: Apache-2.0
"""What the API over TCP shows of itself and asks of clients, from files: certificate, key, CA of clients, tokens.

Theory of operation. Everything is read and tried before anything of it is used: the files' modes, the key against the
certificate, and one TLS handshake in memory with a client that trusts exactly this certificate, which finds what a real
client would find. All faults are reported at once, each with its file and the way out. Credentials are a value: a
connection keeps those that it began with, and a reload puts new ones in place for the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from switch.config.models import TcpSection, TokenSection
from switch.config.values import format_address
from switch.errors import ConfigError, Fault
from switch.plan import Change

MOST_BYTES = 1 << 20
SHORTEST_TOKEN, LONGEST_TOKEN = 20, 4096
WARN_BEFORE = 14 * 86400  # seconds before a certificate expires
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750 section 2.1, b64token
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL: the times are ours to judge, with their dates
# Forward secrecy and authenticated encryption only; TLS 1.3 has no other.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_NO_PAIR = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")  # the last: of another kind


@dataclass(frozen=True, slots=True)
class Token:
    """A token that opens the API. Of the secret itself only a digest is kept."""

    name: str
    access: str  # read or write
    digest: bytes


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a client sees of us."""

    digest: bytes  # of the certificate itself
    expires: float  # seconds since 1970


Stamp = tuple[tuple[int, ...], ...]


def stamp_of(section: TcpSection) -> Stamp:
    """Changes when somebody writes to one of the certificate files, or puts another in its place."""
    return tuple(_stamp(file) for file in (section.certificate, section.key, section.client_ca) if file)


def _stamp(file: str) -> tuple[int, ...]:
    try:
        found = Path(file).stat()
    except OSError as error:
        return (error.errno or 0,)
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Everything that a listener needs, tried."""

    section: TcpSection
    context: ssl.SSLContext
    certificate: Certificate
    client_ca: bytes  # digest of the file; empty without one
    tokens: tuple[Token, ...]
    stamp: Stamp  # of the certificate files, before they were read

    def match(self, given: str) -> Token | None:
        """Whose token it is. Takes as long for a wrong one as for a right one, whatever they have in common."""
        digest = _digest(given.encode())
        found = None
        for token in self.tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def warning(self) -> str:
        """What a person should know of the certificate; "" when nothing."""
        left = self.certificate.expires - time.time()
        if left > WARN_BEFORE:
            return ""
        when = "expired" if left < 0 else "expires"
        return (
            f"control.tcp: the certificate in {self.section.certificate} {when} {_date(self.certificate.expires)}; "
            "renew it: the new one is taken up by itself"
        )


def load_credentials(section: TcpSection, tokens: tuple[Token, ...] | None = None) -> Credentials:
    """Read and try the files that a section names. ConfigError lists everything that is wrong with them. With `tokens`,
    those stay as they are, and their files are not looked at."""
    faults = _Faults()
    stamp = stamp_of(section)
    certificate = faults.read("certificate", section.certificate)
    key = faults.read("key", section.key, secret=True)
    client_ca = faults.read("client_ca", section.client_ca) if section.client_ca else b""
    if tokens is None:
        tokens = tuple(_tokens(section.tokens, faults))
    if certificate:
        faults.check_pem("certificate", section.certificate, certificate, b"CERTIFICATE")
    if key:
        faults.check_pem("key", section.key, key, b"PRIVATE KEY")
    if client_ca:
        faults.check_pem("client_ca", section.client_ca or "", client_ca, b"CERTIFICATE")
    if faults.found:
        raise ConfigError(faults.found)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    seen: Certificate | None = None
    try:
        # The callback keeps OpenSSL from asking for a passphrase at a terminal.
        context.load_cert_chain(section.certificate, section.key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        faults.openssl(section, error)
    else:
        seen = _as_a_client_sees_it(context, section, faults)
    if section.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(section.client_ca)
        except (ssl.SSLError, OSError) as error:
            faults.add(
                "client_ca", section.client_ca, f"OpenSSL does not take it as PEM certificates ({_words(error)})"
            )
    if faults.found or seen is None:
        raise ConfigError(faults.found)
    return Credentials(section, context, seen, _digest(client_ca) if client_ca else b"", tokens, stamp)


def changes(old: Credentials, new: Credentials) -> tuple[Change, ...]:
    """What differs for clients, contents of the files included."""
    found = []

    def compare(key: str, before: str, after: str, same: bool) -> None:
        if before != after:
            found.append(Change(key, before, after))
        elif not same:
            found.append(Change(key, before, f"{after} (new content)"))

    one, two = old.section, new.section
    compare("listen", format_address(one.listen), format_address(two.listen), True)
    compare(
        "certificate",
        f"{one.certificate} until {_date(old.certificate.expires)}",
        f"{two.certificate} until {_date(new.certificate.expires)}",
        old.certificate == new.certificate,
    )
    compare("key", one.key, two.key, True)
    compare("client_ca", one.client_ca or "none", two.client_ca or "none", old.client_ca == new.client_ca)
    compare("tokens", _listed(old.tokens), _listed(new.tokens), old.tokens == new.tokens)
    return tuple(found)


def _listed(tokens: tuple[Token, ...]) -> str:
    return ", ".join(f"{token.name} ({token.access})" for token in tokens)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # or a FIFO would wait for its writer
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Faults:
    """What is wrong with the files of a section."""

    def __init__(self) -> None:
        self.found: list[Fault] = []

    def add(self, key: str, file: str, reason: str) -> None:
        self.found.append(Fault(f"control.tcp.{key}", f"{file}: {reason}"))

    def read(self, key: str, file: str, secret: bool = False) -> bytes:
        """The contents; b"" and a fault when there are none to be had, or too many may read them."""
        try:
            with _opened(file) as descriptor:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    self.add(key, file, "is no regular file")
                    return b""
                if secret and found.st_mode & stat.S_IRWXO:
                    mode = stat.S_IMODE(found.st_mode)
                    self.add(key, file, f"everybody may use it (mode {mode:04o}): chmod 0600, or 0640 for a group")
                    return b""
                content = os.read(descriptor, MOST_BYTES + 1)
        except OSError as error:
            remedy = {
                FileNotFoundError: ": check the path",
                PermissionError: f": user {os.geteuid()} needs to read it",
            }.get(type(error), "")
            self.add(key, file, f"cannot be read, {(error.strerror or str(error)).lower()}{remedy}")
            return b""
        if len(content) > MOST_BYTES:
            self.add(key, file, "is larger than 1 MiB: not what belongs here")
            return b""
        if not content.strip():
            self.add(key, file, "is empty")
            return b""
        return content

    def check_pem(self, key: str, file: str, content: bytes, label: bytes) -> None:
        """Whether it holds what belongs there, as far as can be said without OpenSSL."""
        what = label.decode().lower()
        labels = re.findall(rb"-----BEGIN ([A-Z0-9 ]+)-----", content)
        if not any(found.endswith(label) for found in labels):
            if labels:
                there = ", ".join(sorted({found.decode().lower() for found in labels}))
                self.add(key, file, f"holds no {what} but {there}")
            else:
                command = "x509" if what == "certificate" else "pkey"
                self.add(key, file, f"is not PEM: openssl {command} -inform DER -in FILE converts DER")
        elif label == b"PRIVATE KEY" and (b"ENCRYPTED" in content):
            self.add(key, file, f"needs a passphrase, and nobody can type it here: openssl pkey -in {file} -out NEW")

    def openssl(self, section: TcpSection, error: OSError) -> None:
        """The certificate and the key do not make a pair, or OpenSSL refuses one of them."""
        if getattr(error, "reason", None) in _NO_PAIR:
            self.add("key", section.key, f"is not the key of the certificate in {section.certificate}")
        elif getattr(error, "reason", None):
            self.add("certificate", section.certificate, f"OpenSSL refuses it ({_words(error)})")
        else:
            self.add("certificate", section.certificate, f"it or the key in {section.key} is damaged ({_words(error)})")


def _tokens(sections: tuple[TokenSection, ...], faults: _Faults) -> Iterator[Token]:
    owner: dict[bytes, str] = {}
    for index, section in enumerate(sections):
        key = f"tokens[{index}].file"
        content = faults.read(key, section.file, secret=True)
        if not content:
            continue
        token = content.strip().decode(errors="replace")
        if len(token.split()) > 1:
            faults.add(key, section.file, "holds more than one word: a token is one line without spaces")
        elif not _TOKEN.fullmatch(token):
            faults.add(key, section.file, "is no token: letters, digits and . _ ~ + / - only, = at the end")
        elif not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
            faults.add(
                key, section.file,
                f"the token has {len(token)} characters, not {SHORTEST_TOKEN} to {LONGEST_TOKEN}: "
                f"openssl rand -hex 32 makes a good one",
            )  # fmt: skip
        else:
            digest = _digest(token.encode())
            other = owner.setdefault(digest, section.name)
            if other == section.name:
                yield Token(section.name, section.access, digest)
            else:
                faults.add(key, section.file, f"is the token of {other} too: each name needs its own")


def _as_a_client_sees_it(server: ssl.SSLContext, section: TcpSection, faults: _Faults) -> Certificate | None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(section.certificate)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    us, them = server.wrap_bio(there, back, server_side=True), client.wrap_bio(back, there)
    try:
        for side in (them, us, them, us):  # hello; our certificate; finished, twice
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        seen, encoded = them.getpeercert(), them.getpeercert(binary_form=True)
    except (ssl.SSLError, ValueError) as error:
        faults.add("certificate", section.certificate, f"clients would refuse it ({_words(error)})")
        return None
    if not seen or not encoded:
        faults.add("certificate", section.certificate, "shows no certificate to clients")
        return None
    begins, expires = (ssl.cert_time_to_seconds(str(seen[key])) for key in ("notBefore", "notAfter"))
    if expires <= time.time():
        faults.add("certificate", section.certificate, f"expired {_date(expires)}: renew it")
        return None
    if begins > time.time():
        faults.add("certificate", section.certificate, f"is not valid before {_date(begins)}: is the clock right?")
        return None
    return Certificate(_digest(encoded), expires)


def _words(error: Exception) -> str:
    """OpenSSL's reason without the noise around it."""
    said = getattr(error, "verify_message", None) or getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(said or error).replace("_", " ").lower()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
