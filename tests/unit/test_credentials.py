# SPDX-License-Identifier: Apache-2.0
"""Files of control.tcp: each mistake is answered with the file, what is wrong with it and the way out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from switch.api.credentials import Credentials, changes, load_credentials
from switch.config.models import TcpSection
from switch.errors import ConfigError
from tests.support.pki import Pki, openssl

DAY = 86400


@pytest.fixture(scope="module")
def pki(module_folder: Path) -> Pki:
    """Certificates of every kind; `section` gives fresh tokens."""
    pki = Pki(module_folder / "pki")
    pki.issue("server", "DNS:localhost")
    pki.issue("other", "DNS:localhost")
    pki.issue("rsa", key=("-newkey", "rsa:2048", "-nodes"))
    pki.issue("weak", key=("-newkey", "rsa:1024", "-nodes"))
    pki.issue("client", usage="clientAuth")
    folder = pki.folder
    openssl("x509", "-in", folder / "server.pem", "-outform", "DER", "-out", folder / "der.pem")
    openssl("pkey", "-in", folder / "server.key", "-aes128", "-passout", "pass:x", "-out", folder / "locked.key")
    (folder / "locked.key").chmod(0o600)
    lines = (folder / "server.pem").read_text().splitlines()
    (folder / "damaged.pem").write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    (folder / "empty").touch(mode=0o600)
    (folder / "large").write_bytes(bytes(2 << 20))
    os.mkfifo(folder / "fifo", 0o600)
    for name, token in (("short", "abc"), ("two", "a" * 30 + " b"), ("odd", "a" * 30 + "ä"), ("long", "x" * 5000)):
        pki.token(name, token)
    return pki


def section(pki: Pki, **more: Any) -> TcpSection:
    return TcpSection.model_validate(pki.section(**more))


def faults(wrong: TcpSection) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        load_credentials(wrong)
    return [(fault.path, fault.reason) for fault in caught.value.faults]


def test_good_files_give_a_context_and_tokens(pki: Pki) -> None:
    found = load_credentials(section(pki, client_ca=str(pki.ca)))
    assert [(token.name, token.access) for token in found.tokens] == [("ops", "write"), ("eye", "read")]
    assert 364 * DAY < found.certificate.expires - time.time() < 366 * DAY
    assert found.warning() == ""
    secret = (pki.folder / "eye.token").read_text().strip()
    match = found.match(secret)
    assert match is not None
    assert match.name == "eye"
    assert secret not in repr(found)


def test_the_key_may_stand_in_the_certificates_file_and_a_chain_too(pki: Pki, folder: Path) -> None:
    both = folder / "both.pem"
    both.touch(mode=0o600)
    both.write_text("".join((pki.folder / name).read_text() for name in ("server.pem", "ca.pem", "server.key")))
    assert load_credentials(section(pki, certificate=str(both), key=str(both))).tokens


@pytest.mark.parametrize("given", ["", "x", "Bearer", "é", "\x00" * 64, "ops", "0" * 64, "0" * 100_000])
def test_another_token_opens_nothing(pki: Pki, given: str) -> None:
    assert load_credentials(section(pki)).match(given) is None


@pytest.mark.parametrize(
    ("key", "file", "words"),
    [
        ("certificate", "none.pem", "cannot be read, no such file or directory: check the path"),
        ("certificate", ".", "is no regular file"),
        ("certificate", "fifo", "is no regular file"),
        ("certificate", "empty", "is empty"),
        ("certificate", "large", "larger than 1 MiB"),
        ("certificate", "der.pem", "is not PEM: openssl x509 -inform DER"),
        ("certificate", "server.key", "holds no certificate but private key"),
        ("certificate", "damaged.pem", "is damaged"),
        ("certificate", "client.pem", "clients would refuse it (unsuitable certificate purpose)"),
        ("certificate", "weak.pem", "OpenSSL refuses it (ee key too small)"),
        ("key", "none.key", "cannot be read, no such file or directory"),
        ("key", "other.key", "is not the key of the certificate in"),
        ("key", "rsa.key", "is not the key of the certificate in"),
        ("key", "locked.key", "needs a passphrase, and nobody can type it here: openssl pkey -in"),
        ("key", "short.token", "is not PEM: openssl pkey -inform DER"),
        ("client_ca", "none.pem", "cannot be read"),
        ("client_ca", "server.key", "holds no certificate but private key"),
        ("client_ca", "damaged.pem", "OpenSSL does not take it"),
        ("token", "none.token", "cannot be read"),
        ("token", "empty", "is empty"),
        ("token", "short.token", "the token has 3 characters, not 20 to 4096: openssl rand -hex 32 makes a good one"),
        ("token", "long.token", "the token has 5000 characters"),
        ("token", "two.token", "holds more than one word"),
        ("token", "odd.token", "is no token: letters, digits and"),
        ("token", "copy.token", "is the token of ops too: each name needs its own"),
    ],
)
def test_a_wrong_file_is_named_with_what_to_do(pki: Pki, key: str, file: str, words: str) -> None:
    given = pki.section()
    if key == "token":
        given["tokens"][1]["file"] = str(pki.folder / file)
        pki.token("copy", (pki.folder / "ops.token").read_text())
        path = "control.tcp.tokens[1].file"
    else:
        path = f"control.tcp.{key}"
        given[key] = str(pki.folder / file)
        if file in ("weak.pem", "client.pem"):
            given["key"] = str((pki.folder / file).with_suffix(".key"))
    (found,) = faults(TcpSection.model_validate(given))
    assert found[0] == path
    assert str(pki.folder / file) in found[1]
    assert words in found[1]


@pytest.mark.parametrize(
    ("mode", "accepted"),
    [(0o600, True), (0o400, True), (0o640, True), (0o644, False), (0o604, False), (0o602, False), (0o601, False)],
)
@pytest.mark.parametrize("name", ["server.key", "ops.token"])
def test_secrets_that_everybody_may_use_are_refused(pki: Pki, name: str, mode: int, accepted: bool) -> None:
    wanted = section(pki)
    (pki.folder / name).chmod(mode)
    try:
        if accepted:
            assert load_credentials(wanted)
        else:
            ((_, reason),) = faults(wanted)
            assert f"{pki.folder / name}: everybody may use it (mode {mode:04o}): chmod 0600" in reason
    finally:
        (pki.folder / name).chmod(0o600)


def test_every_fault_is_reported_at_once(pki: Pki) -> None:
    given = pki.section(certificate="/none.pem", key="/none.key", client_ca="/none.ca")
    given["tokens"][0]["file"] = "/none.token"
    assert [path for path, _ in faults(TcpSection.model_validate(given))] == [
        "control.tcp.certificate", "control.tcp.key", "control.tcp.client_ca", "control.tcp.tokens[0].file",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("days", "words"), [(366, "expired 20"), (365, "expired 20"), (-1, "is not valid before 20")]
)  # of the year that the certificate has
def test_a_certificate_out_of_its_time_is_refused(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, days: int, words: str
) -> None:
    now = time.time() + days * DAY
    monkeypatch.setattr(time, "time", lambda: now)
    (found,) = faults(section(pki))
    assert found[0] == "control.tcp.certificate"
    assert words in found[1]


def test_a_certificate_that_will_expire_is_a_warning(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_credentials(section(pki))
    for seconds, words in ((13 * DAY, "expires 20"), (-1, "expired 20")):
        now = found.certificate.expires - seconds
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert f"the certificate in {pki.folder}/server.pem {words}" in found.warning()


Edit = Callable[[Pki, dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "key", "after"),
    [
        (lambda pki, given: given.update(listen="[::1]:9"), "listen", "[::1]:9"),
        (
            lambda pki, given: pki.issue("server", "DNS:localhost"),
            "certificate",
            "",
        ),  # what is new of it is its date, or the content
        (lambda pki, given: given.update(client_ca=str(pki.ca)), "client_ca", "ca.pem"),
        (lambda pki, given: given["tokens"].pop(), "tokens", "ops (write)"),
        (lambda pki, given: given["tokens"][1].update(access="write"), "tokens", "ops (write), eye (write)"),
        (lambda pki, given: pki.token("eye"), "tokens", "ops (write), eye (read) (new content)"),
    ],
)
def test_what_differs_is_told_and_never_the_secret(pki: Pki, edit: Edit, key: str, after: str) -> None:
    given = pki.section()
    old: Credentials = load_credentials(TcpSection.model_validate(given))
    assert changes(old, load_credentials(TcpSection.model_validate(given))) == ()
    edit(pki, given)
    (change,) = changes(old, load_credentials(TcpSection.model_validate(given)))
    assert change.field == key
    assert str(change.new).endswith(after)
    assert (pki.folder / "eye.token").read_text().strip() not in str(change)
