# SPDX-License-Identifier: Apache-2.0
"""The way to a daemon on another machine: https, its certificate checked, a token from a file.

Loaded only when the daemon is named by an URL.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from switch.errors import ControlError

DEFAULT_PORT = 9481
CONNECT_TIME = 10.0  # seconds
NAMES = {"token_file": "--token-file", "cacert": "--cacert", "cert": "--cert", "key": "--key"}

# What OpenSSL's verification says (X509_V_ERR_*), in the words of somebody who wants it to work.
EXPIRED, NOT_YET_VALID, HOSTNAME, ADDRESS = 10, 9, 62, 64
UNTRUSTED = (18, 19, 20, 21)


@dataclass(slots=True)
class Identity:
    """Files that say who we are and whom we trust. Empty: none."""

    token_file: str = ""
    cacert: str = ""
    cert: str = ""
    key: str = ""


def is_remote(control: str) -> bool:
    return "://" in control


def place(control: str) -> tuple[str, int]:
    """(host, port) of https://HOST[:PORT]."""
    shape = "write https://HOST:PORT, https://[IPV6]:PORT, or the path of a socket"
    try:
        url = urlsplit(control)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ControlError(f"{control} cannot name a daemon ({error}): {shape}") from None
    if url.scheme == "http":
        raise ControlError(f"{control}: the API over TCP is https only; {shape}")
    if url.scheme != "https" or not host or url.path not in ("", "/") or url.query or url.fragment or url.username:
        raise ControlError(f"{control} cannot name a daemon: {shape}")
    return host, DEFAULT_PORT if port is None else port


def token(identity: Identity, control: str) -> str:
    """What the file says."""
    if not identity.token_file:
        raise ControlError(f"{control} wants a token: name its file with --token-file or $SWITCH_TOKEN_FILE")
    try:
        text = Path(identity.token_file).read_text(encoding="ascii").strip()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ControlError(f"cannot read the token file {identity.token_file}: {why}") from error
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or len(text.split()) != 1:
        raise ControlError(f"{identity.token_file} holds no token: one line without spaces is expected")
    return text


def connect(control: str, identity: Identity, timeout: float | None) -> ssl.SSLSocket:
    """A connection whose other end is who it should be."""
    host, port = place(control)
    context = _context(identity)
    try:
        channel = socket.create_connection(
            (host, port), CONNECT_TIME if timeout is None else min(timeout, CONNECT_TIME)
        )
    except OSError as error:
        raise ControlError(f"cannot reach switchd at {control}: {_unreachable(error, host)}") from error
    try:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a stream may say nothing for hours
        secured = context.wrap_socket(channel, server_hostname=host)
    except (OSError, ValueError) as error:
        channel.close()
        raise ControlError(f"cannot talk to switchd at {control}: {failed(error, identity)}") from error
    secured.settimeout(timeout)
    return secured


def _context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # --cacert may be the server's own certificate
    if identity.cacert:
        _load(lambda: context.load_verify_locations(identity.cacert), "cacert", identity.cacert)
    else:
        context.load_default_certs()
    if identity.key and not identity.cert:
        raise ControlError("--key goes with --cert, which is missing")
    if identity.cert:
        _load(lambda: context.load_cert_chain(identity.cert, identity.key or None), "cert", identity.cert)
    return context


def _load(load: object, option: str, file: str) -> None:
    assert callable(load)
    try:
        load()
    except ssl.SSLError as error:
        pair = "it and its key are no pair" if error.reason == "KEY_VALUES_MISMATCH" else "it is not what belongs there"
        what = "certificates in PEM" if option == "cacert" else "a certificate in PEM, with its key there or in --key"
        raise ControlError(f"{NAMES[option]} {file}: {pair} ({what}; {error.reason or error})") from error
    except OSError as error:
        raise ControlError(f"cannot read {NAMES[option]} {file}: {(error.strerror or str(error)).lower()}") from error


def _unreachable(error: OSError, host: str) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name {host} is not known ({error.strerror})"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there; control.tcp.listen in the daemon's configuration says where it does"
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIME:g} seconds; is a firewall between, is the address right?"
    return (error.strerror or str(error)).lower()


def failed(error: Exception, identity: Identity) -> str:
    """Why TLS went no further, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in UNTRUSTED:
            return (
                f"its certificate is not trusted ({error.verify_message}): name its CA with --cacert or $SWITCH_CACERT"
            )
        if error.verify_code in (HOSTNAME, ADDRESS):
            return f"its certificate is for another name ({error.verify_message.strip()}): use a name that it has"
        if error.verify_code in (EXPIRED, NOT_YET_VALID):
            return f"its certificate is out of its time ({error.verify_message}): renew it there; are the clocks right?"
        return f"its certificate cannot be used: {error.verify_message}"
    reason = str(getattr(error, "reason", "") or "")
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"):
        return "it does not speak TLS: is it the port of the metrics, or of something else?"
    if "ALERT" in reason:
        return f"it refuses us ({reason.replace('_', ' ').lower()}){_client_certificate(identity)}"
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIME:g} seconds: is it a TLS port?"
    return f"it closed the connection ({reason.replace('_', ' ').lower() or error}){_client_certificate(identity)}"


def _client_certificate(identity: Identity) -> str:
    if identity.cert:
        return f"; does its control.tcp.client_ca know the CA of {identity.cert}?"
    return "; with control.tcp.client_ca it wants a certificate of ours: --cert FILE --key FILE"
