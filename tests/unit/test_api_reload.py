# SPDX-License-Identifier: Apache-2.0
"""The API over TCP under change: what a new configuration or new files close, and what they leave alone."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from switch.api import tcp
from switch.api.addresses import listen_tcp
from switch.errors import SwitchError
from tests.interop.process import wait_until
from tests.support.daemon import service
from tests.support.pki import Pki
from tests.support.remote import Remote

PORT = {"name": "vm7", "type": "vhostuser", "socket": "/run/vm7.sock"}


@pytest.fixture(scope="module")
def pki(module_folder: Path) -> Pki:
    return Pki(module_folder / "pki")


@pytest.fixture
def remote(folder: Path, pki: Pki) -> Iterator[Remote]:
    with service(folder, pki.section()) as api:
        yield Remote(api, pki)


def serial(remote: Remote) -> object:
    """Of the certificate that the next connection gets."""
    with remote.raw() as plain, remote.context.wrap_socket(plain, server_hostname="localhost") as channel:
        return (channel.getpeercert() or {})["serialNumber"]


def test_a_new_certificate_holds_for_the_next_connection(remote: Remote) -> None:
    before = serial(remote)
    with remote.following("eye") as answer:
        remote.pki.issue("server", "DNS:localhost", "IP:127.0.0.1", "IP:::1")
        (step,) = remote.apply(remote.pki.section())["steps"]
        assert step["step"] == "SetListener"
        assert [change["field"] for change in step["changes"]] == ["certificate"]
        assert serial(remote) != before
        assert remote.goes_on(answer)
    assert remote.apply(remote.pki.section())["steps"] == []


def look(remote: Remote) -> list[str]:
    """Two looks at the files, as the daemon does them; which events there are then."""
    for _ in range(2):
        remote.api.call(remote.api.listener.look())
    events = remote.api.ask("GET", "/v1/events?kind=config")[1]["events"]
    return [f"{event['kind']}: {event['detail']}" for event in events]


def test_a_renewed_certificate_is_taken_up_by_itself(remote: Remote) -> None:
    before = serial(remote)
    assert look(remote) == []
    with remote.following("eye") as answer:
        remote.pki.issue("server", "DNS:localhost", "IP:127.0.0.1", "IP:::1")
        remote.api.call(remote.api.listener.look())
        assert serial(remote) == before, "one look is not enough: another file may follow"
        (event,) = look(remote)
        assert event.startswith("config_changed: set listener control.tcp at 127.0.0.1:0: certificate ")
        assert event.endswith("(new content)")
        assert serial(remote) != before
        assert remote.goes_on(answer)
    assert len(look(remote)) == 1
    assert remote.apply(remote.pki.section())["steps"] == []


def test_a_renewal_by_a_link_that_moves(folder: Path) -> None:
    """As Kubernetes does it: certificate and key behind one link, which is replaced as a whole."""
    generations = [Pki(folder / name) for name in ("one", "two")]
    for generation in generations:
        generation.section()
    current = folder / "current"
    current.symlink_to("one")
    names = {"certificate": str(current / "server.pem"), "key": str(current / "server.key")}
    with service(folder, generations[0].section(**names)) as api:
        before = serial(Remote(api, generations[0]))
        (folder / "next").symlink_to("two")
        (folder / "next").rename(current)
        remote = Remote(api, generations[1])
        assert len(look(remote)) == 1
        assert serial(remote) != before


@pytest.mark.parametrize("broken", ["half a pair", "gone", "empty", "readable by all"])
def test_a_broken_renewal_keeps_what_was_there(folder: Path, broken: str) -> None:
    pki = Pki(folder / "pki")
    with service(folder, pki.section()) as api:
        remote = Remote(api, pki)
        before = serial(remote)
        key = pki.folder / "server.key"
        good = key.read_text()
        if broken == "half a pair":
            key.write_text(pki.issue("other").with_suffix(".key").read_text())
        elif broken == "gone":
            key.unlink()
        elif broken == "empty":
            key.write_text("")
        else:
            key.write_text(good)
            key.chmod(0o644)
        (event,) = look(remote)
        assert event.startswith("config_refused: the certificate files changed and are not used, those of before stay")
        assert str(key) in event
        assert len(look(remote)) == 1, "said once"
        assert serial(remote) == before
        assert any("are not used" in line for line in remote.ask("GET", "/v1/show")[1]["warnings"])
        assert remote.api.control.apply_success
        key.unlink(missing_ok=True)
        key.touch(mode=0o600)
        key.write_text(good)
        assert look(remote)[1:] == [], "the same pair as before: nothing changed"
        assert not any("are not used" in line for line in remote.ask("GET", "/v1/show")[1]["warnings"])


def test_a_renewal_leaves_tokens_to_a_reload(remote: Remote) -> None:
    old = remote.bearer("eye")
    remote.pki.token("eye")
    remote.pki.issue("server", "DNS:localhost", "IP:127.0.0.1", "IP:::1")
    assert len(look(remote)) == 1
    assert remote.ask("GET", "/v1/ports", headers=old)[0] == 200
    remote.apply(remote.pki.section())
    assert remote.ask("GET", "/v1/ports", headers=old)[0] == 401


def test_a_token_that_is_no_more_closes_what_came_with_it(remote: Remote) -> None:
    old = remote.bearer("eye")
    with remote.following("eye") as closing, remote.following("ops") as staying:
        remote.pki.token("eye")
        remote.apply(remote.pki.section())
        with contextlib.suppress(http.client.HTTPException):
            assert closing.read() == b""
        assert remote.goes_on(staying)
    assert remote.ask("GET", "/v1/ports", headers=old)[0] == 401
    assert remote.ask("GET", "/v1/ports", token="eye")[0] == 200


def test_a_token_that_may_do_less_now_does_less(remote: Remote) -> None:
    section = remote.pki.section()
    section["tokens"][0]["access"] = "read"
    (step,) = remote.apply(section)["steps"]
    assert step["text"].endswith("tokens ops (write), eye (read) -> ops (read), eye (read)")
    assert remote.ask("POST", "/v1/ports", PORT)[0] == 403


@pytest.mark.parametrize("wider", [False, True])  # another port, or all addresses of the same one
def test_the_address_moves_and_connections_stay(remote: Remote, wider: bool) -> None:
    old = remote.port
    with remote.following("eye") as answer:
        remote.apply(remote.pki.section(listen=f":{old}" if wider else "[::1]:0"))
        assert remote.goes_on(answer)
    with contextlib.closing(remote.connect("::1")) as connection:
        connection.request("GET", "/v1/ports", headers=remote.bearer("eye"))
        assert connection.getresponse().status == 200
    if not wider:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", old), 20)


def test_whoever_takes_the_way_away_gets_an_answer_still(remote: Remote) -> None:
    port = remote.port
    with remote.following("eye") as answer:
        request = {"text": remote.api.text(None), "path": "laptop.yaml"}
        status, body, _ = remote.ask("POST", "/v1/config/apply", request)
        assert (status, [step["step"] for step in body["steps"]]) == (200, ["DelListener"])
        with contextlib.suppress(http.client.HTTPException):
            assert answer.read() == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 20)
    assert remote.api.listener.facts() is None
    remote.api.ask("POST", "/v1/config/rollback")
    assert remote.ask("GET", "/v1/ports")[0] == 200


def refused(remote: Remote, section: dict[str, Any], verb: str) -> dict[str, Any]:
    text = remote.api.text(section).replace("access: 10", "access: 11")
    status, body = remote.api.ask("POST", f"/v1/config/{verb}", {"text": text, "path": "/x.yaml"})
    assert status in (409, 422), body
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize("verb", ["plan", "apply"])
def test_files_that_are_wrong_change_nothing(remote: Remote, verb: str) -> None:
    error = refused(remote, remote.pki.section(key="/none.key", certificate="/none.pem"), verb)
    assert [fault["path"] for fault in error["faults"]] == ["control.tcp.certificate", "control.tcp.key"]
    assert remote.api.datapath.specs["vm1"].vlan.access == 10
    assert remote.ask("GET", "/v1/config")[1]["last_apply_success"] is (verb == "plan")


@pytest.mark.parametrize("verb", ["plan", "apply"])
def test_an_address_in_use_changes_nothing(remote: Remote, verb: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = refused(remote, remote.pki.section(listen=f"127.0.0.1:{port}"), verb)
    assert f"cannot listen for the API on 127.0.0.1:{port}: address already in use" in error["message"]
    assert remote.api.datapath.specs["vm1"].vlan.access == 10
    assert remote.ask("GET", "/v1/ports")[0] == 200


def test_two_switches_of_one_user_do_not_share_a_port(remote: Remote) -> None:
    with pytest.raises(SwitchError, match="another process listens there"):
        listen_tcp("127.0.0.1", remote.port)


def test_a_port_that_fails_takes_the_new_address_back(remote: Remote) -> None:
    old = remote.port
    remote.api.datapath.refuse["vm1"] = "no memory"
    error = refused(remote, remote.pki.section(listen="[::1]:0"), "apply")
    assert "no memory" in error["message"]
    assert remote.port == old
    assert remote.ask("GET", "/v1/ports")[0] == 200


def test_a_plan_says_what_would_change(remote: Remote) -> None:
    section = remote.pki.section(listen="[::1]:0")
    request = {"text": remote.api.text(section), "path": "/x.yaml"}
    (step,) = remote.ask("POST", "/v1/config/plan", request)[1]["steps"]
    assert (step["step"], step["impact"]) == ("SetListener", "none")
    assert step["text"] == "set listener control.tcp at [::1]:0: listen 127.0.0.1:0 -> [::1]:0"
    (step,) = remote.ask("POST", "/v1/config/plan", {"text": remote.api.text(None), "path": "/x.yaml"})[1]["steps"]
    assert step["text"] == "delete listener control.tcp at 127.0.0.1:0"
    assert remote.ask("GET", "/v1/ports")[0] == 200


def test_going_back_does_not_wait_for_a_certificate(remote: Remote) -> None:
    section = remote.pki.section()
    text = remote.api.text(None).replace("access: 10", "access: 11")
    assert remote.api.ask("POST", "/v1/config/apply", {"text": text, "path": "/x.yaml"})[0] == 200
    gone = Path(section["certificate"]).rename(remote.pki.folder / "gone.pem")
    try:
        assert remote.api.ask("POST", "/v1/config/rollback")[0] == 200
        assert remote.api.datapath.specs["vm1"].vlan.access == 10
        (warning,) = [line for line in remote.api.ask("GET", "/v1/show")[1]["warnings"] if "TCP" in line]
        assert "server.pem: cannot be read" in warning
        facts = remote.api.listener.facts()
        assert facts is not None
        assert not facts.listening
    finally:
        gone.rename(section["certificate"])


def test_other_certificates_of_clients_close_what_came_without(remote: Remote) -> None:
    with remote.following("eye") as answer:
        remote.apply(remote.pki.section(client_ca=str(remote.pki.ca)))
        with contextlib.suppress(http.client.HTTPException):
            assert answer.read() == b""
    with pytest.raises(OSError):  # noqa: PT011
        remote.ask("GET", "/v1/ports")


def test_what_does_not_work_anyway_is_no_reason_to_refuse_the_rest(folder: Path, pki: Pki) -> None:
    broken = pki.section(certificate=str(pki.folder / "never.pem"))
    with service(folder, broken) as api:
        changed = {"text": api.text(broken).replace("access: 10", "access: 11"), "path": "/x.yaml"}
        status, answer = api.ask("POST", "/v1/config/apply", changed)
        assert (status, [step["step"] for step in answer["steps"]]) == (200, ["SetPort"])
        assert any("never.pem: cannot be read" in line for line in api.control.warnings())
        other = {"text": api.text({**broken, "listen": "[::1]:0"}), "path": "/x.yaml"}
        assert api.ask("POST", "/v1/config/apply", other)[0] == 422, "a change of it is"
        assert api.ask("POST", "/v1/config/apply", {**changed, "text": api.text(None)})[0] == 200
        assert not any("TCP" in line for line in api.control.warnings())


def test_what_does_not_work_at_the_start_is_tried_again(
    folder: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "RETRY", 0.05)
    section = pki.section(certificate=str(pki.folder / "later.pem"), key=str(pki.folder / "later.key"))
    with service(folder, section) as api:
        assert any("later.pem: cannot be read" in line for line in api.control.warnings())
        assert api.ask("GET", "/v1/ports")[0] == 200, "the switch runs all the same"
        trying = api.start(api.listener.keep_trying())
        pki.issue("later", "IP:127.0.0.1")
        wait_until("it is served", lambda: api.listener.url)
        assert not any("TCP" in line for line in api.control.warnings())
        assert Remote(api, pki).ask("GET", "/v1/ports")[0] == 200
        trying.cancel()
